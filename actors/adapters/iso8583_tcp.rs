//! A way to a core over TCP: messages framed as its dialect says. TLS, where a core wants it, is a tunnel's business.

use std::io::{Error, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use wakala::iso8583::Framing;

use crate::ports::{BankLink, LinkEnds, LinkReader, LinkWriter, Wait};

/// Connects to one core.
#[derive(Clone, Debug)]
pub struct Iso8583Tcp {
    /// Host and port.
    address: String,
    framing: Framing,
}

impl Iso8583Tcp {
    #[must_use]
    pub fn new(address: &str, framing: Framing) -> Self {
        Self { address: address.to_owned(), framing }
    }
}

impl BankLink for Iso8583Tcp {
    fn connect(&self) -> Wait<'_, std::io::Result<LinkEnds>> {
        Box::pin(async {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            let framing = self.framing.clone();
            let writer = Writer { to: writer, framing: framing.clone() };
            Ok((Box::new(writer) as Box<dyn LinkWriter>, Box::new(Reader { from: reader, framing }) as _))
        })
    }
}

struct Writer {
    to: OwnedWriteHalf,
    framing: Framing,
}

impl LinkWriter for Writer {
    fn write<'a>(&'a mut self, message: &'a [u8]) -> Wait<'a, std::io::Result<()>> {
        Box::pin(async {
            let framed = self.framing.frame(message).map_err(|bad| Error::new(ErrorKind::InvalidInput, bad))?;
            self.to.write_all(&framed).await
        })
    }
}

struct Reader {
    from: OwnedReadHalf,
    framing: Framing,
}

impl LinkReader for Reader {
    fn read(&mut self) -> Wait<'_, std::io::Result<Option<Vec<u8>>>> {
        Box::pin(async {
            loop {
                let mut prefix = [0; 4];
                let prefix = &mut prefix[..self.framing.prefix_bytes()];
                // An end between two messages is an end, one inside a message an error.
                if self.from.read(&mut prefix[..1]).await? == 0 {
                    return Ok(None);
                }
                self.from.read_exact(&mut prefix[1..]).await?;
                let rest = self.framing.rest(prefix).map_err(|bad| Error::new(ErrorKind::InvalidData, bad))?;
                if rest == 0 {
                    continue;
                }
                let mut header = vec![0; self.framing.header.len()];
                self.from.read_exact(&mut header).await?;
                let mut message = vec![0; rest - header.len()];
                self.from.read_exact(&mut message).await?;
                return Ok(Some(message));
            }
        })
    }
}

//! A link between two who talk over TCP: it delays, thins, stalls and cuts, by seed.
//!
//! It stands between terminals and node, and between node and core. A cut is a reset (RST), at a moment or at a byte;
//! bytes that were under way are lost, as on a radio link.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// What a link does to those who use it.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Drawn for each chunk and direction; order is kept.
    pub delay: Range<Duration>,
    /// In each direction; `None` for no bound.
    pub bytes_per_second: Option<u64>,
    /// A connection is cut after so long.
    pub cut_after: Option<Range<Duration>>,
    /// A connection is cut after so many bytes, both directions counted together.
    pub cut_after_bytes: Option<Range<u64>>,
    /// One connection in so many loses one direction before it is cut: what is sent vanishes, and nobody is told.
    pub one_way_in: Option<u32>,
}

impl Weather {
    /// By the name that the command line takes.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
        match name {
            "none" => Some(Self::default()),
            // GPRS class 2 to 10 in a valley: 600 to 1,500 ms there and back, 9.6 to 40 kbit/s.
            "2g" => Some(Self {
                delay: millis(300)..millis(750),
                bytes_per_second: Some(2_500),
                cut_after: Some(seconds(30)..seconds(120)),
                one_way_in: Some(4),
                ..Self::default()
            }),
            // Every packet boundary and every byte is a place to be cut at.
            "cut" => Some(Self {
                delay: millis(0)..millis(20),
                cut_after: Some(seconds(1)..seconds(20)),
                cut_after_bytes: Some(20..3_000),
                one_way_in: Some(8),
                ..Self::default()
            }),
            _ => None,
        }
    }
}

/// The largest chunk that is passed on at once, in bytes.
const CHUNK_BYTES: usize = 4096;
/// Chunks under way in one direction; more are not read.
const CHUNKS: usize = 16;

/// A link that listens on an address of its own and leads to another.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    cut: watch::Sender<u64>,
    counts: Arc<Counts>,
    listening: tokio::task::JoinHandle<()>,
}

/// What went over a link.
#[derive(Debug, Default)]
pub struct Counts {
    /// Towards the listener of the far end.
    pub up_bytes: AtomicU64,
    pub down_bytes: AtomicU64,
    pub connections: AtomicUsize,
    /// Connections that the link cut.
    pub cuts: AtomicUsize,
}

impl Link {
    /// Opens a link to `to` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn open(to: SocketAddr, weather: Weather, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (cut, cuts) = watch::channel(0);
        let counts = Arc::new(Counts::default());
        let listening = tokio::spawn(listen(listener, to, weather, seed, cuts, counts.clone()));
        Ok(Self { address, cut, counts, listening })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Cuts every connection that is open now.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
        self.listening.abort();
    }
}

async fn listen(
    listener: TcpListener,
    to: SocketAddr,
    weather: Weather,
    seed: u64,
    cuts: watch::Receiver<u64>,
    counts: Arc<Counts>,
) {
    let mut number = 0;
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Out of descriptors: wait until some are free.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        number += 1;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number);
        counts.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(carry(near, to, weather.clone(), random, cuts.clone(), counts.clone()));
    }
}

/// Carries one connection until its ends have closed it or it is cut.
async fn carry(
    mut near: TcpStream,
    to: SocketAddr,
    weather: Weather,
    mut random: ChaCha8Rng,
    mut cuts: watch::Receiver<u64>,
    counts: Arc<Counts>,
) {
    cuts.mark_unchanged();
    let Ok(mut far) = TcpStream::connect(to).await else {
        let _ = near.set_zero_linger();
        return;
    };
    for stream in [&near, &far] {
        let _ = stream.set_nodelay(true);
    }
    let fate = Fate::draw(&weather, &mut random);
    let left = AtomicU64::new(fate.bytes);
    let closed = {
        let (near_reader, near_writer) = near.split();
        let (far_reader, far_writer) = far.split();
        let mut back = ChaCha8Rng::seed_from_u64(random.random());
        let there = Way { weather: &weather, left: &left, count: &counts.up_bytes, lost_from: fate.up_lost_from };
        let again = Way { count: &counts.down_bytes, lost_from: fate.down_lost_from, ..there };
        tokio::select! {
            ended = async {
                tokio::try_join!(
                    there.carry(near_reader, far_writer, &mut random),
                    again.carry(far_reader, near_writer, &mut back),
                )
            } => ended.is_ok(),
            () = sleep_until(fate.until) => false,
            _ = cuts.changed() => false,
        }
    };
    if !closed {
        counts.cuts.fetch_add(1, Ordering::Relaxed);
        // The close becomes a reset, and what was not delivered is thrown away.
        for stream in [&near, &far] {
            let _ = stream.set_zero_linger();
        }
    }
}

/// What will become of a connection.
struct Fate {
    until: Instant,
    bytes: u64,
    up_lost_from: Option<Instant>,
    down_lost_from: Option<Instant>,
}

impl Fate {
    fn draw(weather: &Weather, random: &mut ChaCha8Rng) -> Self {
        // A century is never.
        let never = Duration::from_secs(100 * 365 * 24 * 3600);
        let now = Instant::now();
        let life = weather.cut_after.clone().map(|range| random.random_range(range));
        let bytes = weather.cut_after_bytes.clone().map_or(u64::MAX, |range| random.random_range(range));
        let one_way = weather.one_way_in.is_some_and(|of| random.random_ratio(1, of.max(1)));
        let lost_from = life.filter(|_| one_way).map(|life| now + life.mul_f64(random.random_range(0.0..1.0)));
        let (up_lost_from, down_lost_from) =
            if random.random_bool(0.5) { (lost_from, None) } else { (None, lost_from) };
        Self { until: now + life.unwrap_or(never), bytes, up_lost_from, down_lost_from }
    }
}

/// The connection is to be cut.
struct Cut;

impl From<std::io::Error> for Cut {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// One direction of a connection.
#[derive(Clone, Copy)]
struct Way<'a> {
    weather: &'a Weather,
    /// Bytes until the cut, of both directions.
    left: &'a AtomicU64,
    count: &'a AtomicU64,
    lost_from: Option<Instant>,
}

impl Way<'_> {
    async fn carry(self, from: ReadHalf<'_>, to: WriteHalf<'_>, random: &mut ChaCha8Rng) -> Result<(), Cut> {
        let (sender, under_way) = mpsc::channel(CHUNKS);
        tokio::try_join!(self.take(from, sender, random), self.deliver(under_way, to))?;
        Ok(())
    }

    async fn take(
        self,
        mut from: ReadHalf<'_>,
        under_way: mpsc::Sender<(Instant, Vec<u8>)>,
        random: &mut ChaCha8Rng,
    ) -> Result<(), Cut> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut arrives = Instant::now();
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            self.count.fetch_add(u64::try_from(read).unwrap_or(0), Ordering::Relaxed);
            if self.lost_from.is_some_and(|from| Instant::now() >= from) {
                continue;
            }
            arrives = self.arrival(arrives, read, random);
            under_way.send((arrives, buffer[..read].to_vec())).await.map_err(|_| Cut)?;
        }
    }

    async fn deliver(
        self,
        mut under_way: mpsc::Receiver<(Instant, Vec<u8>)>,
        mut to: WriteHalf<'_>,
    ) -> Result<(), Cut> {
        while let Some((arrives, chunk)) = under_way.recv().await {
            sleep_until(arrives).await;
            let wanted = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            let take = |left: u64| Some(left.saturating_sub(wanted));
            let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or(0);
            let allowed = usize::try_from(before.min(wanted)).unwrap_or(chunk.len());
            to.write_all(&chunk[..allowed]).await?;
            if allowed < chunk.len() {
                return Err(Cut);
            }
        }
        Ok(to.shutdown().await?)
    }

    /// When a chunk that is read now arrives: after what was sent before it.
    fn arrival(self, before: Instant, bytes: usize, random: &mut ChaCha8Rng) -> Instant {
        let delay = self.weather.delay.clone();
        let delay = if delay.is_empty() { Duration::ZERO } else { random.random_range(delay) };
        let takes = self.weather.bytes_per_second.map_or(Duration::ZERO, |speed| {
            Duration::from_micros(u64::try_from(bytes).unwrap_or(0) * 1_000_000 / speed.max(1))
        });
        before.max(Instant::now() + delay) + takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that gives back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await
                });
            }
        });
        address
    }

    async fn back(stream: &mut TcpStream, bytes: usize) -> std::io::Result<usize> {
        stream.write_all(&vec![7; bytes]).await?;
        let mut found = vec![0; bytes];
        stream.read_exact(&mut found).await
    }

    #[tokio::test]
    async fn fair_weather_carries_everything() {
        let link = Link::open(echo().await, Weather::default(), 1).await.expect("a link");
        let mut stream = TcpStream::connect(link.address()).await.expect("connected");
        assert_eq!(back(&mut stream, 100_000).await.expect("echoed"), 100_000);
        assert_eq!(link.counts().up_bytes.load(Ordering::Relaxed), 100_000);
    }

    #[tokio::test]
    async fn a_cut_is_a_reset() {
        let link = Link::open(echo().await, Weather::default(), 1).await.expect("a link");
        let mut stream = TcpStream::connect(link.address()).await.expect("connected");
        back(&mut stream, 10).await.expect("echoed");
        link.cut();
        let error = back(&mut stream, 10).await.expect_err("cut");
        assert!(
            matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe),
            "{error}"
        );
        let mut next = TcpStream::connect(link.address()).await.expect("connected");
        back(&mut next, 10).await.expect("a new connection is not cut");
    }

    #[tokio::test]
    async fn a_connection_is_cut_at_its_byte_and_the_same_seed_cuts_at_the_same() {
        let weather = Weather { cut_after_bytes: Some(20..3_000), ..Weather::default() };
        let mut delivered = Vec::new();
        for _ in 0..2 {
            let link = Link::open(echo().await, weather.clone(), 42).await.expect("a link");
            let mut stream = TcpStream::connect(link.address()).await.expect("connected");
            let mut whole = 0;
            while back(&mut stream, 10).await.is_ok() {
                whole += 10;
            }
            delivered.push(whole);
        }
        assert_eq!(delivered[0], delivered[1]);
        assert!(delivered[0] <= 1_500);
    }

    #[tokio::test]
    async fn delay_and_bandwidth_take_their_time() {
        let millis = Duration::from_millis;
        let weather = Weather { delay: millis(50)..millis(60), bytes_per_second: Some(10_000), ..Weather::default() };
        let link = Link::open(echo().await, weather, 1).await.expect("a link");
        let mut stream = TcpStream::connect(link.address()).await.expect("connected");
        let began = Instant::now();
        back(&mut stream, 1_000).await.expect("echoed");
        // 50 ms and 100 ms each way.
        assert!(began.elapsed() >= millis(300), "{:?}", began.elapsed());
    }
}

//! Ports for what is started here and must know its port beforehand.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Below those that the kernel gives to outgoing connections (`ip_local_port_range`): none sits on a port before its node does,
/// or when that starts again.
const PORTS: Range<u16> = 10_000..20_000;

/// A port of 127.0.0.1 that nobody listens on, and that this process has not given to anybody yet.
///
/// # Errors
/// When there is none.
pub fn free_port() -> io::Result<SocketAddr> {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(())));
    let address = |nth: u64| {
        let port = PORTS.start + u16::try_from(nth % u64::from(PORTS.end - PORTS.start)).unwrap_or_default();
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    };
    let free = |&address: &SocketAddr| TcpListener::bind(address).is_ok();
    let mut addresses = PORTS.map(|_| address(NEXT.fetch_add(1, Ordering::Relaxed)));
    addresses.find(free).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_or_while_somebody_listens_on_it() {
        let taken = TcpListener::bind(free_port().expect("a port")).expect("it is free");
        let mut given: Vec<u16> = (0..500).map(|_| free_port().expect("a port").port()).collect();
        given.push(taken.local_addr().expect("bound").port());
        assert!(given.iter().all(|port| PORTS.contains(port)));
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), 501);
    }
}

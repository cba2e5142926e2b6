//! Where a node listens: checked when the node is made, looked up when it is connected.
//!
//! A name that cannot be resolved now may be later: its node is down until then, as one that does not answer. Invariant:
//! what was found is kept, so that a reconnection asks no resolver. That one may be on this machine, and swapped out to
//! the very node that is to be connected.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::OnceLock;
use std::time::Duration;

use super::RemoteError;

/// `HOST:PORT`, and where that is, once it was known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    text: String,
    found: OnceLock<Vec<SocketAddr>>,
}

impl Address {
    /// The address that `text` says. Asks nobody.
    ///
    /// # Errors
    /// `InvalidInput` for what can never be one: there is no host, or no port from 0 to 65535.
    pub fn new(text: &str) -> io::Result<Self> {
        let bad = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        match text.rsplit_once(':') {
            None => bad("no port; HOST:PORT is needed"),
            Some(("", _)) => bad("no host; HOST:PORT is needed"),
            Some((_, port)) if port.parse::<u16>().is_err() => bad("a port is a number up to 65535"),
            Some(_) => Ok(Self { text: text.to_owned(), found: OnceLock::new() }),
        }
    }

    /// As it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn resolve(&self) -> Result<&[SocketAddr], RemoteError> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let found: Vec<_> = self.text.to_socket_addrs().map_err(RemoteError::Resolve)?.collect();
        if found.is_empty() {
            return Err(RemoteError::Resolve(io::ErrorKind::AddrNotAvailable.into()));
        }
        Ok(self.found.get_or_init(|| found))
    }

    /// A connection to the first of its addresses that takes one, each tried for `timeout`. Small messages are sent at
    /// once.
    ///
    /// # Errors
    /// [`RemoteError::Resolve`], or [`RemoteError::Connect`] with the last address's error.
    pub fn connect(&self, timeout: Duration) -> Result<TcpStream, RemoteError> {
        let mut last = io::ErrorKind::AddrNotAvailable.into();
        for address in self.resolve()? {
            match TcpStream::connect_timeout(address, timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(RemoteError::Connect)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(RemoteError::Connect(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn what_can_be_an_address_is_one_and_nothing_is_asked() {
        for text in ["host:1", "[::1]:9", "127.0.0.1:7000", "no.such.host.invalid:65535"] {
            assert_eq!(Address::new(text).unwrap().text(), text);
        }
        for text in ["", "host", ":1", "host:", "host:65536", "host:-1", "[::1]"] {
            assert_eq!(Address::new(text).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{text}");
        }
    }

    #[test]
    fn a_name_is_looked_up_when_it_is_connected_and_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::new(&format!("localhost:{}", listener.local_addr().unwrap().port())).unwrap();
        assert!(address.found.get().is_none());
        address.connect(Duration::from_secs(5)).unwrap();
        assert!(address.found.get().is_some());
        // Longer than a label can be: no resolver is asked.
        let nowhere = Address::new(&format!("{}.invalid:1", "x".repeat(64))).unwrap();
        for _ in 0..2 {
            let error = nowhere.connect(Duration::from_secs(5)).unwrap_err();
            assert!(matches!(error, RemoteError::Resolve(_)), "{error}");
        }
        assert!(nowhere.found.get().is_none(), "it is looked up again the next time");
    }
}

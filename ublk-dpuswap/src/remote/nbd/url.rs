//! Names of exports: the URLs of the NBD project's document "The NBD URI specification", as far as they are of use here.

use std::path::PathBuf;

use super::wire::{DEFAULT_PORT, MAX_NAME_BYTES};
use crate::error::Error;
use crate::remote::address::Address;

/// Longest name of a node: what its place in the table of nodes holds.
pub const MAX_NODE_NAME_BYTES: usize = 120;

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// A host and its port.
    Tcp(Address),
    /// A Unix socket.
    Unix(PathBuf),
}

/// What a URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The server.
    pub server: Server,
    /// The export; empty for the server's default.
    pub export: String,
    /// Whether what is stored there may be overwritten.
    pub take: bool,
}

impl Url {
    /// Reads a URL. Looks nothing up.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let bad = |what: &str| {
            Error::Option(format!(
                "node {url}: {what}; it looks like nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH"
            ))
        };
        if url.len() > MAX_NODE_NAME_BYTES {
            return Err(bad(&format!("longer than {MAX_NODE_NAME_BYTES} bytes")));
        }
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("no URL"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, export) = place.split_once('/').unwrap_or((place, ""));
        let export = decoded(export).ok_or_else(|| bad("a bad %-sequence"))?;
        if export.len() > MAX_NAME_BYTES || export.contains('\0') {
            return Err(bad("an export cannot have that name"));
        }
        let (mut take, mut socket) = (false, None);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("take", "yes")) => take = true,
                Some(("take", "no")) => take = false,
                Some(("socket", path)) if scheme == "nbd+unix" => {
                    socket = Some(decoded(path).ok_or_else(|| bad("a bad %-sequence"))?);
                }
                _ => return Err(bad(&format!("unknown parameter {part}"))),
            }
        }
        let server = match (scheme, socket) {
            ("nbd", _) if host.is_empty() => return Err(bad("no host")),
            ("nbd", _) => {
                Server::Tcp(address(host).map_err(|source| Error::NodeName { node: url.to_owned(), source })?)
            }
            ("nbd+unix", Some(path)) if host.is_empty() && !path.is_empty() => Server::Unix(path.into()),
            ("nbd+unix", Some(_)) => return Err(bad("a host beside a socket")),
            ("nbd+unix", None) => return Err(bad("no socket=PATH")),
            ("nbds" | "nbds+unix", _) => return Err(bad("TLS is not spoken here")),
            _ => return Err(bad("no NBD URL")),
        };
        Ok(Self { server, export, take })
    }
}

fn address(host: &str) -> std::io::Result<Address> {
    // A colon inside brackets is not that of a port.
    let has_port = host.rfind(':') > host.rfind(']') && host.contains(':');
    if has_port { Address::new(host) } else { Address::new(&format!("{host}:{DEFAULT_PORT}")) }
}

/// `text` with its %-sequences replaced; `None` when one is malformed or the result is not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push((digit()? * 16 + digit()?) as u8);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_parts_of_a_url_are_found() {
        let tcp = Url::parse("nbd://127.0.0.1:7000/swap%20a?take=yes").unwrap();
        let address = Address::new("127.0.0.1:7000").unwrap();
        assert_eq!(tcp, Url { server: Server::Tcp(address), export: "swap a".to_owned(), take: true });
        for (url, address) in [
            ("nbd://[::1]/", "[::1]:10809"),
            ("nbd://127.0.0.1", "127.0.0.1:10809"),
            ("nbd://no.such.host.invalid/e", "no.such.host.invalid:10809"),
            ("nbd://[::1]:9/x", "[::1]:9"),
        ] {
            let address = Address::new(address).unwrap();
            assert_eq!(Url::parse(url).unwrap().server, Server::Tcp(address), "{url}");
        }
        let unix = Url::parse("nbd+unix:///e?socket=/run/nbd%2fa").unwrap();
        assert_eq!(
            unix,
            Url { server: Server::Unix("/run/nbd/a".into()), export: "e".to_owned(), take: false }
        );
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, what) in [
            ("127.0.0.1:1", "no URL"),
            ("http://h/", "no NBD URL"),
            ("nbd:///e", "no host"),
            ("nbds://h/e", "TLS"),
            ("nbd+unix:///e", "no socket=PATH"),
            ("nbd+unix://h/e?socket=/x", "a host beside a socket"),
            ("nbd://127.0.0.1/e?socket=/x", "unknown parameter socket=/x"),
            ("nbd://127.0.0.1/e?take=maybe", "unknown parameter take=maybe"),
            ("nbd://127.0.0.1/%zz", "a bad %-sequence"),
            ("nbd://127.0.0.1/%00", "an export cannot have that name"),
            ("nbd://127.0.0.1:99999/e", "node nbd://127.0.0.1:99999/e: "),
        ] {
            let error = Url::parse(url).unwrap_err().to_string();
            assert!(error.contains(what), "{url}: {error}");
        }
        assert!(Url::parse(&format!("nbd://127.0.0.1/{}", "x".repeat(120))).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_url_or_an_error(text in "\\PC{0,60}", scheme in 0usize..3) {
            // Without a host that would have to be looked up.
            let _ = Url::parse(&format!("{}{text}", ["nbd+unix:///", "nbd://127.0.0.1/", ""][scheme]));
        }
    }
}

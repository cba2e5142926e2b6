//! Who is there to borrow from: a list in the options, or etcd, where nodes are listed for as long as they live.
//!
//! None of this is on the I/O path: a thread of its own asks now and then. Being listed only makes a node known; whether it
//! can be used, its own connection shows. Not being able to ask changes nothing: the last list stands ([`Membership`]).

pub mod etcd;
pub mod register;

pub use etcd::{EtcdList, EtcdUrl};
pub use register::Registration;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most members of a list; more are left out.
pub const MAX_MEMBERS: usize = 256;
/// Longest name of a node.
pub const MAX_ID_BYTES: usize = 64;
/// Longest address of a node.
pub const MAX_ADDRESS_BYTES: usize = 120;
/// Longest description of a node.
pub const MAX_DESCRIPTION_BYTES: usize = 1024;

/// A node that can be borrowed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name in the list, unique there.
    pub id: String,
    /// What it says of itself.
    pub node: Description,
}

/// What a node says of itself; JSON in etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// `HOST:PORT`.
    pub addr: String,
    /// Blocks of 1 MiB it has; 0 when unknown.
    #[serde(default)]
    pub memory_blocks: u32,
    /// Of these, not lent.
    #[serde(default)]
    pub free_blocks: u32,
    /// Chosen at its start; another one means that it has forgotten everything. 0 when unknown.
    #[serde(default)]
    pub epoch: u64,
}

/// Why there is no list, or a node is not in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// No endpoint answers.
    #[error("etcd at {endpoint} does not answer: {source}")]
    Away {
        /// The one asked last.
        endpoint: String,
        /// Why.
        source: minreq::Error,
    },
    /// An endpoint answered with an error.
    #[error("etcd at {endpoint} refused ({status}): {text}")]
    Refused {
        /// The one asked.
        endpoint: String,
        /// HTTP status.
        status: i32,
        /// What it said.
        text: String,
    },
    /// An answer that cannot be etcd's.
    #[error("etcd at {endpoint}: {what}")]
    Answer {
        /// The one asked.
        endpoint: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A name or an address that cannot be.
    #[error("{0}")]
    Option(String),
    /// No thread can be started.
    #[error("a thread that keeps the node registered: {0}")]
    Thread(#[source] std::io::Error),
}

/// A source of lists.
pub trait Discovery: Send {
    /// Who is there now. Blocks, for a bounded time.
    ///
    /// # Errors
    /// Nobody can be asked.
    fn poll(&mut self) -> Result<Vec<Member>, DiscoverError>;
}

/// A list that does not change.
#[derive(Debug, Clone)]
pub struct StaticList(Vec<Member>);

impl StaticList {
    /// The nodes at these addresses, each named by its address.
    pub fn new<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Self {
        let member = |addr: &str| Member {
            id: addr.to_owned(),
            node: Description { addr: addr.to_owned(), memory_blocks: 0, free_blocks: 0, epoch: 0 },
        };
        Self(addresses.into_iter().map(member).collect())
    }
}

impl Discovery for StaticList {
    fn poll(&mut self) -> Result<Vec<Member>, DiscoverError> {
        Ok(self.0.clone())
    }
}

/// Whether `id` can name a node.
pub fn is_id(id: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._:[]-".contains(&byte);
    !id.is_empty() && id.len() <= MAX_ID_BYTES && id.bytes().all(fits)
}

impl Description {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() > MAX_DESCRIPTION_BYTES {
            return Err(format!("a description of {} bytes, {MAX_DESCRIPTION_BYTES} allowed", json.len()));
        }
        let read: Self =
            serde_json::from_slice(json).map_err(|error| format!("no description of a node: {error}"))?;
        read.check().map(|()| read)
    }

    /// Whether it can be true.
    ///
    /// # Errors
    /// Says what cannot.
    pub fn check(&self) -> Result<(), String> {
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-[]%".contains(&byte);
        let port = |(host, port): (&str, &str)| (host.to_owned(), port.parse::<u16>().unwrap_or(0));
        match self.addr.rsplit_once(':').map(port) {
            Some((host, 1..))
                if !host.is_empty() && host.bytes().all(name) && self.addr.len() <= MAX_ADDRESS_BYTES => {}
            _ => return Err(format!("{:?} is no HOST:PORT", self.addr)),
        }
        // In the name of a node these stand for something on the client's own machine.
        if self.addr.starts_with("file:") || self.addr.starts_with("mem:") {
            return Err(format!("{:?} is no HOST:PORT of another machine", self.addr));
        }
        if self.free_blocks > self.memory_blocks {
            return Err(format!("{} blocks free of {}", self.free_blocks, self.memory_blocks));
        }
        Ok(())
    }
}

/// What has changed between two lists.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// New in the list, or at another address than before.
    pub joined: Vec<Member>,
    /// Not in the list any more. Its blocks are still there, as long as its connection says so.
    pub left: Vec<Member>,
}

/// Follows the lists of a source. When the source cannot be asked, the last list stands, and nobody leaves.
pub struct Membership {
    source: Box<dyn Discovery>,
    members: BTreeMap<String, Description>,
    away: bool,
}

impl Membership {
    /// Nobody is known yet.
    pub fn new(source: Box<dyn Discovery>) -> Self {
        Self { source, members: BTreeMap::new(), away: false }
    }

    /// Asks again. Trouble is logged when it begins and when it ends.
    pub fn poll(&mut self) -> Changes {
        let list = match self.source.poll() {
            Ok(list) => list,
            Err(error) => {
                if !std::mem::replace(&mut self.away, true) {
                    log::warn!("the list of nodes stays as it is: {error}");
                }
                return Changes::default();
            }
        };
        if std::mem::replace(&mut self.away, false) {
            log::info!("the list of nodes is there again");
        }
        let new: BTreeMap<String, Description> =
            list.into_iter().map(|member| (member.id, member.node)).collect();
        let differs =
            |old: Option<&Description>, node: &Description| old.is_none_or(|old| old.addr != node.addr);
        let member = |(id, node): (&String, &Description)| Member { id: id.clone(), node: node.clone() };
        let joined =
            new.iter().filter(|(id, node)| differs(self.members.get(*id), node)).map(member).collect();
        let left = self.members.iter().filter(|(id, node)| differs(new.get(*id), node)).map(member).collect();
        self.members = new;
        Changes { joined, left }
    }

    /// Whether the source could not be asked the last time.
    pub fn is_away(&self) -> bool {
        self.away
    }

    /// The last list.
    pub fn members(&self) -> impl Iterator<Item = (&str, &Description)> {
        self.members.iter().map(|(id, node)| (id.as_str(), node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Scripted(Vec<Option<Vec<Member>>>);

    impl Discovery for Scripted {
        fn poll(&mut self) -> Result<Vec<Member>, DiscoverError> {
            self.0.remove(0).ok_or_else(|| DiscoverError::Option("away".to_owned()))
        }
    }

    fn list(addresses: &[&str]) -> Option<Vec<Member>> {
        StaticList::new(addresses.iter().copied()).poll().ok()
    }

    #[test]
    fn a_source_that_is_away_makes_nobody_leave() {
        let script = vec![list(&["a:1", "b:1"]), None, None, list(&["b:1", "c:1"])];
        let mut membership = Membership::new(Box::new(Scripted(script)));
        assert_eq!(membership.poll().joined.len(), 2);
        for _ in 0..2 {
            assert_eq!(membership.poll(), Changes::default());
            assert!(membership.is_away() && membership.members().count() == 2);
        }
        let changes = membership.poll();
        assert_eq!((changes.joined[0].id.as_str(), changes.left[0].id.as_str()), ("c:1", "a:1"));
        assert!(!membership.is_away());
    }

    #[test]
    fn a_node_that_moves_leaves_and_joins() {
        let at = |addr: &str, free_blocks| {
            let node = Description { addr: addr.to_owned(), memory_blocks: 9, free_blocks, epoch: 1 };
            Some(vec![Member { id: "n".to_owned(), node }])
        };
        let mut membership =
            Membership::new(Box::new(Scripted(vec![at("a:1", 9), at("a:1", 3), at("b:1", 3)])));
        assert_eq!(membership.poll().joined.len(), 1);
        assert_eq!(membership.poll(), Changes::default(), "lending some is no change");
        let changes = membership.poll();
        assert_eq!(
            (changes.joined[0].node.addr.as_str(), changes.left[0].node.addr.as_str()),
            ("b:1", "a:1")
        );
    }

    #[test]
    fn a_description_that_cannot_be_true_is_refused() {
        for (json, what) in [
            (r#"{"addr":"h:1","memory_blocks":4,"free_blocks":5}"#, "5 blocks free of 4"),
            (r#"{"addr":"h"}"#, "no HOST:PORT"),
            (r#"{"addr":"h:0"}"#, "no HOST:PORT"),
            (r#"{"addr":":70"}"#, "no HOST:PORT"),
            (r#"{"addr":"file:70"}"#, "no HOST:PORT of another machine"),
            (r#"{"addr":"nbd://h:70"}"#, "no HOST:PORT"),
            (r#"{"addr":"h\n:70"}"#, "no HOST:PORT"),
            (r#"{"addr":"h:70","memory_blocks":-1}"#, "no description"),
            (r#"[]"#, "no description"),
        ] {
            let error = Description::parse(json.as_bytes()).unwrap_err();
            assert!(error.contains(what), "{json}: {error}");
        }
        let more = Description::parse(br#"{"addr":"[::1]:70","zone":"b"}"#).unwrap();
        assert_eq!(more.addr, "[::1]:70");
        assert!(Description::parse(&[b' '; MAX_DESCRIPTION_BYTES + 1]).is_err());
        assert!(is_id("rack-3.n7:7001") && !is_id("") && !is_id("a/b") && !is_id(&"x".repeat(65)));
    }

    proptest! {
        #[test]
        fn descriptions_round_trip_and_garbage_is_an_error(
            port in 1u16.., memory_blocks: u32, epoch: u64, garbage in any::<Vec<u8>>(),
        ) {
            let node = Description { addr: format!("n:{port}"), memory_blocks, free_blocks: memory_blocks / 2, epoch };
            prop_assert_eq!(Description::parse(&serde_json::to_vec(&node).unwrap()).unwrap(), node);
            prop_assert!(Description::parse(&garbage).is_err());
        }
    }
}

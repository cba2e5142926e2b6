//! What a network would add (pure): models of links with latency, bandwidth and a cost per message, so that systems are
//! compared on the same link though the memory is in the next process.
//!
//! A node has one full-duplex link. A message first waits until the messages before it in its direction have left
//! (serialisation), so a busy link queues; the round trip is waited for besides. The model only says when an operation
//! would be over; the caller holds the answer back until then.
//!
//! The invariant: a link carries no more than its bandwidth in each direction, and no operation is over earlier than its
//! own bytes, message cost and round trip allow.
//!
//! Where the numbers come from; a number marked "remembered" was not read again for this program:
//!
//! - `rdma`: 4.3 us for a 4 KiB page is what Leap (ATC 2020) gives for an RDMA read (remembered), in the 3 to 5 us that are
//!   usual for one-sided reads of ConnectX-5 and -6 (remembered). The bandwidth is FDR InfiniBand's, the network that
//!   Infiniswap (NSDI 2017) was measured on (remembered): 56 Gb/s signalled, 54.3 Gb/s of data after 64b/66b coding. What the
//!   page's transfer leaves of the 4.3 us is split into a round trip and a cost per message (0.3 us, remembered).
//! - `pcie`: 31.5 GB/s is 16 lanes of PCI Express 4.0: 16 GT/s each, 128b/130b coding. The round trip of 0.9 us is in the
//!   range that Neugebauer et al. (SIGCOMM 2018) measured for DMA reads by a card (remembered); per message 50 ns, the
//!   headers and credits of 16 or more packets (remembered).
//! - `tcp`: a round trip of 24 us is the median that was measured on loopback between a program that polls and one that
//!   sleeps (4 KiB answers); 1.4 us per message is what one of 128 pipelined operations took there. The bandwidth is that of
//!   25 Gb/s Ethernet after the headers of a frame of 1500 bytes (1448 of 1538 bytes on the wire are data).

use std::str::FromStr;

/// Which link is modelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// None: what there is, as fast as it is.
    None,
    /// RDMA over FDR InfiniBand.
    Rdma,
    /// PCI Express 4.0 with 16 lanes.
    Pcie,
    /// TCP over 25 Gb/s Ethernet.
    Tcp,
}

impl LinkKind {
    /// Every kind, in the order of [`LinkKind::name`]s in messages.
    pub const ALL: [LinkKind; 4] = [LinkKind::None, LinkKind::Rdma, LinkKind::Pcie, LinkKind::Tcp];

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            LinkKind::None => "none",
            LinkKind::Rdma => "rdma",
            LinkKind::Pcie => "pcie",
            LinkKind::Tcp => "tcp",
        }
    }
}

impl FromStr for LinkKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = LinkKind::ALL.into_iter().find(|kind| kind.name() == text);
        kind.ok_or_else(|| format!("there is no link {text:?}; there are none, rdma, pcie and tcp"))
    }
}

/// The numbers of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkNumbers {
    /// From the end of the request's last byte to the beginning of the answer's first, without load, in ns.
    pub round_trip_ns: u64,
    /// In each direction, in bytes per second; 0 for no limit.
    pub bytes_per_s: u64,
    /// What each operation keeps the sending side busy, in ns, besides its bytes.
    pub per_message_ns: u64,
}

/// Numbers to take instead of a model's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkOverrides {
    /// Instead of [`LinkNumbers::round_trip_ns`].
    pub round_trip_ns: Option<u64>,
    /// Instead of [`LinkNumbers::bytes_per_s`].
    pub bytes_per_s: Option<u64>,
    /// Instead of [`LinkNumbers::per_message_ns`].
    pub per_message_ns: Option<u64>,
}

impl LinkNumbers {
    /// The numbers of a kind; the head of this module says where they come from.
    pub const fn of(kind: LinkKind) -> Self {
        let (round_trip_ns, bytes_per_s, per_message_ns) = match kind {
            LinkKind::None => (0, 0, 0),
            // 54.3 Gb/s; 4096 bytes take 604 ns, and 3396 + 300 + 604 ns are the 4.3 us.
            LinkKind::Rdma => (3_396, 6_787_500_000, 300),
            // 16e9 * 16 * 128 / 130 / 8.
            LinkKind::Pcie => (900, 31_507_692_307, 50),
            // 25e9 / 8 * 1448 / 1538.
            LinkKind::Tcp => (24_000, 2_942_132_639, 1_400),
        };
        Self { round_trip_ns, bytes_per_s, per_message_ns }
    }

    /// How long `bytes` take on the wire, in ns, rounded up.
    pub fn wire_ns(&self, bytes: u64) -> u64 {
        if self.bytes_per_s == 0 {
            return 0;
        }
        let ns = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_s));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

/// When each direction of a node's link is free.
#[derive(Debug, Clone, Copy, Default)]
struct Wire {
    out_free_ns: u64,
    in_free_ns: u64,
}

/// The links to all nodes of a device, one each.
#[derive(Debug, Clone)]
pub struct LinkModel {
    kind: LinkKind,
    numbers: LinkNumbers,
    wires: [Wire; crate::units::MAX_NODES],
}

impl LinkModel {
    /// Links of a kind, with some numbers changed. All are idle.
    pub fn new(kind: LinkKind, overrides: LinkOverrides) -> Self {
        let own = LinkNumbers::of(kind);
        let numbers = LinkNumbers {
            round_trip_ns: overrides.round_trip_ns.unwrap_or(own.round_trip_ns),
            bytes_per_s: overrides.bytes_per_s.unwrap_or(own.bytes_per_s),
            per_message_ns: overrides.per_message_ns.unwrap_or(own.per_message_ns),
        };
        Self { kind, numbers, wires: [Wire::default(); crate::units::MAX_NODES] }
    }

    /// Which link this is.
    pub fn kind(&self) -> LinkKind {
        self.kind
    }

    /// Its numbers.
    pub fn numbers(&self) -> LinkNumbers {
        self.numbers
    }

    /// Whether the model adds nothing, so that the clock need not be read for it.
    pub fn is_none(&self) -> bool {
        self.numbers == LinkNumbers::of(LinkKind::None)
    }

    /// When an operation is over that is sent to node `node` at `now_ns`, with `bytes_out` to carry there and `bytes_in` back.
    /// The link is busy with it from now on. A node that cannot be (beyond [`crate::units::MAX_NODES`]) has an idle link.
    pub fn due_ns(&mut self, node: u16, now_ns: u64, bytes_out: u64, bytes_in: u64) -> u64 {
        let numbers = self.numbers;
        let mut idle = Wire::default();
        let wire = self.wires.get_mut(usize::from(node)).unwrap_or(&mut idle);
        let sending_ns = numbers.per_message_ns.saturating_add(numbers.wire_ns(bytes_out));
        let sent_ns = now_ns.max(wire.out_free_ns).saturating_add(sending_ns);
        wire.out_free_ns = sent_ns;
        let answer_ns = sent_ns.saturating_add(numbers.round_trip_ns);
        if bytes_in == 0 {
            // An acknowledgement takes no room that would matter.
            return answer_ns;
        }
        let due_ns = answer_ns.max(wire.in_free_ns).saturating_add(numbers.wire_ns(bytes_in));
        wire.in_free_ns = due_ns;
        due_ns
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    fn model(kind: LinkKind) -> LinkModel {
        LinkModel::new(kind, LinkOverrides::default())
    }

    #[test]
    fn a_page_over_idle_rdma_takes_the_cited_time_in_both_directions() {
        assert_eq!(model(LinkKind::Rdma).due_ns(0, 1000, 0, PAGE), 1000 + 4300);
        assert_eq!(model(LinkKind::Rdma).due_ns(0, 1000, PAGE, 0), 1000 + 4300);
    }

    #[test]
    fn no_link_adds_nothing_whatever_is_sent() {
        let mut none = model(LinkKind::None);
        assert!(none.is_none() && !model(LinkKind::Pcie).is_none());
        for size in [0, 1, PAGE, u64::MAX] {
            assert_eq!(none.due_ns(3, 77, size, size), 77);
        }
    }

    #[test]
    fn names_are_read_back_and_others_are_refused_with_what_there_is() {
        for kind in LinkKind::ALL {
            assert_eq!(kind.name().parse::<LinkKind>(), Ok(kind));
        }
        assert!("RDMA".parse::<LinkKind>().unwrap_err().contains("none, rdma, pcie and tcp"));
    }

    #[test]
    fn the_bandwidths_are_what_their_formulas_give() {
        assert_eq!(LinkNumbers::of(LinkKind::Pcie).bytes_per_s, 16_000_000_000 * 16 / 8 * 128 / 130);
        assert_eq!(LinkNumbers::of(LinkKind::Tcp).bytes_per_s, 25_000_000_000 / 8 * 1448 / 1538);
        assert_eq!(LinkNumbers::of(LinkKind::Rdma).bytes_per_s, 54_300_000_000 / 8);
    }

    #[test]
    fn reads_that_are_sent_at_once_queue_for_the_slower_direction_only() {
        let numbers = LinkNumbers { round_trip_ns: 1000, bytes_per_s: 1_000_000_000, per_message_ns: 10 };
        let overrides = LinkOverrides {
            round_trip_ns: Some(1000),
            bytes_per_s: Some(1_000_000_000),
            per_message_ns: Some(10),
        };
        let mut link = LinkModel::new(LinkKind::Tcp, overrides);
        assert_eq!(link.numbers(), numbers);
        // One byte per ns: answers follow each other without a gap.
        for n in 1..=100 {
            assert_eq!(link.due_ns(0, 0, 0, PAGE), 10 + 1000 + n * PAGE);
        }
        // Writes use the other direction, which 100 requests have kept for 10 ns each, and another node's link is idle.
        assert_eq!(link.due_ns(0, 0, PAGE, 0), 100 * 10 + 10 + PAGE + 1000);
        assert_eq!(link.due_ns(1, 0, PAGE, 0), 10 + PAGE + 1000);
    }

    #[test]
    fn silly_numbers_saturate() {
        let overrides =
            LinkOverrides { round_trip_ns: Some(u64::MAX), bytes_per_s: Some(1), per_message_ns: None };
        let mut link = LinkModel::new(LinkKind::Rdma, overrides);
        assert_eq!(link.due_ns(0, u64::MAX, u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(link.due_ns(u16::MAX, 5, 0, 0), u64::MAX);
    }

    proptest! {
        /// Whatever is sent when: no direction carries more than its bandwidth in any stretch that ends with an operation, and
        /// none is over before its own time.
        #[test]
        fn a_link_never_carries_more_than_its_bandwidth(ops in prop::collection::vec((0u64..20_000, 0u64..65_536, 0u64..65_536), 1..60)) {
            let mut link = model(LinkKind::Tcp);
            let numbers = link.numbers();
            let mut now = 0;
            let mut answers: Vec<(u64, u64)> = Vec::new();
            for (pause, out, back) in ops {
                now += pause;
                let due = link.due_ns(0, now, out, back);
                let alone = numbers.per_message_ns + numbers.wire_ns(out) + numbers.round_trip_ns + numbers.wire_ns(back);
                prop_assert!(due >= now + alone);
                if back > 0 {
                    answers.push((due, back));
                }
            }
            for first in 0..answers.len() {
                for last in first + 1..answers.len() {
                    let carried: u64 = answers[first + 1..=last].iter().map(|(_, bytes)| *bytes).sum();
                    prop_assert!(answers[last].0 - answers[first].0 >= numbers.wire_ns(carried));
                }
            }
        }
    }
}

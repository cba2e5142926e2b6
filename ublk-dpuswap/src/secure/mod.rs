//! Connections between a device and its nodes that nobody else can read, change, replay or make.
//!
//! Both ends hold one key ([`Key`], in a file). A connection begins with the two messages of Noise's NNpsk0 pattern
//! (Noise protocol framework, revision 34, section 9.4): each end proves that it knows the key, and both get two fresh
//! keys, one per direction, that nobody learns who reads the key file later. From then on every message is sealed with
//! AES-256-GCM; its number on the connection is the nonce. So a message that is changed, dropped, repeated, moved to
//! another connection or sent back to its sender is not opened.
//!
//! There is no agreeing on less: an end with a key speaks only sealed messages, an end without one only plain ones.
//!
//! Invariant: nothing is done with a message before its tag has been checked. Sealing and opening allocate nothing.

mod handshake;
mod keyfile;

pub use handshake::{Initiator, respond};
pub use keyfile::{KeyFile, KeyFileError};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};

use crate::proto::{HEADER_BYTES, ProtoError, RANGE_BYTES, TAG_BYTES};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// The secret that a device and its nodes share. It is shown nowhere and wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// A key of these bytes.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the wiping from being optimised away.
        std::hint::black_box(&self.0);
    }
}

/// How an end of a connection protects it.
#[derive(Debug, Clone)]
pub enum Security {
    /// Not at all: anyone who can reach the port can borrow, read and change.
    Plaintext,
    /// With a key that both ends hold.
    Psk(Key),
}

/// One direction of a sealed connection: seals, or opens, its messages in their order.
pub struct Seal {
    key: LessSafeKey,
    counter: u64,
}

/// Both directions of a sealed connection, as one of its ends sees them.
pub struct Seals {
    /// For what this end sends.
    pub send: Seal,
    /// For what it receives.
    pub receive: Seal,
}

impl Seal {
    /// A direction that is sealed with this key, before its first message. `None` never happens for 32 bytes.
    fn new(key: &[u8; KEY_BYTES]) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key).ok()?;
        Some(Self { key: LessSafeKey::new(key), counter: 0 })
    }

    /// The next message's nonce. A key seals one direction of one connection, so a counter never repeats.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.counter.to_le_bytes());
        self.counter += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts `data` in place and gives the tag of the whole message. `clear` is what goes unencrypted between the
    /// header and the data, at most [`RANGE_BYTES`].
    ///
    /// # Errors
    /// [`ProtoError::Body`] when `clear` is longer than that.
    pub fn seal(
        &mut self,
        header: &[u8; HEADER_BYTES],
        clear: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], ProtoError> {
        let (head, len) = head(header, clear)?;
        let nonce = self.nonce();
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(&head[..len]), data);
        // Only more data than the cipher can take (64 GiB) makes it fail.
        let tag = tag.map_err(|_| ProtoError::Body)?;
        tag.as_ref().try_into().map_err(|_| ProtoError::Body)
    }

    /// Checks the tag and decrypts `data` in place. After an error `data` holds nothing of use.
    ///
    /// # Errors
    /// [`ProtoError::Forged`] when this is not the next message that the other end sealed.
    pub fn open(
        &mut self,
        header: &[u8; HEADER_BYTES],
        clear: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), ProtoError> {
        let (head, len) = head(header, clear)?;
        let (nonce, tag) = (self.nonce(), Tag::from(*tag));
        let opened = self.key.open_in_place_separate_tag(nonce, Aad::from(&head[..len]), tag, data, 0..);
        opened.map(|_| ()).map_err(|_| ProtoError::Forged)
    }
}

/// The part of a message that its tag protects without encrypting it, in one piece.
fn head(
    header: &[u8; HEADER_BYTES],
    clear: &[u8],
) -> Result<([u8; HEADER_BYTES + RANGE_BYTES], usize), ProtoError> {
    let mut head = [0; HEADER_BYTES + RANGE_BYTES];
    let len = HEADER_BYTES + clear.len();
    head[..HEADER_BYTES].copy_from_slice(header);
    head.get_mut(HEADER_BYTES..len).ok_or(ProtoError::Body)?.copy_from_slice(clear);
    Ok((head, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (Seals, Seals) {
        let key = Key::new([7; KEY_BYTES]);
        let (initiator, first) = Initiator::start(&key).unwrap();
        let (second, node) = respond(&key, &first).unwrap();
        (initiator.finish(&second).unwrap(), node)
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", Security::Psk(Key::new([0x5a; 32]))), "Psk(Key(..))");
    }

    #[test]
    fn a_message_cannot_be_repeated_left_out_reflected_or_moved_to_another_connection() {
        let (mut client, mut node) = pair();
        let (_, mut other) = pair();
        let header = [3; HEADER_BYTES];
        let (mut first, mut second) = (*b"first", *b"second");
        let first_tag = client.send.seal(&header, &[], &mut first).unwrap();
        let second_tag = client.send.seal(&header, &[], &mut second).unwrap();
        assert_ne!(&first, b"first", "it is encrypted");
        assert_eq!(other.receive.open(&header, &[], &mut first.clone(), &first_tag), Err(ProtoError::Forged));
        assert_eq!(
            client.receive.open(&header, &[], &mut first.clone(), &first_tag),
            Err(ProtoError::Forged)
        );
        let (mut copy, mut repeated) = (first, first);
        assert_eq!(node.receive.open(&header, &[], &mut copy, &first_tag), Ok(()));
        assert_eq!(&copy, b"first");
        assert_eq!(node.receive.open(&header, &[], &mut repeated, &first_tag), Err(ProtoError::Forged));
        // The refused one took the second's number: from here on nothing is opened.
        assert_eq!(node.receive.open(&header, &[], &mut second, &second_tag), Err(ProtoError::Forged));
        let (mut client, mut node) = pair();
        let (mut first, mut second) = (*b"first", *b"second");
        client.send.seal(&header, &[], &mut first).unwrap();
        let tag = client.send.seal(&header, &[], &mut second).unwrap();
        assert_eq!(
            node.receive.open(&header, &[], &mut second, &tag),
            Err(ProtoError::Forged),
            "one is missing"
        );
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_a_flipped_bit_anywhere_does_not(
            header: [u8; HEADER_BYTES], clear in proptest::collection::vec(any::<u8>(), 0..=RANGE_BYTES),
            data in proptest::collection::vec(any::<u8>(), 0..200), flip: prop::sample::Index,
        ) {
            let direction = || Seal::new(&[9; KEY_BYTES]).unwrap();
            let (mut client, mut node, mut again, mut node_again) =
                (direction(), direction(), direction(), direction());
            let mut sealed = data.clone();
            let tag = client.seal(&header, &clear, &mut sealed).unwrap();
            node.open(&header, &clear, &mut sealed, &tag).unwrap();
            prop_assert_eq!(&sealed, &data);
            let (mut header, mut clear, mut data) = (header, clear, data);
            let mut tag = again.seal(&header, &clear, &mut data).unwrap();
            let total = HEADER_BYTES + clear.len() + data.len() + TAG_BYTES;
            let bit = flip.index(total * 8);
            let bytes = header.iter_mut().chain(&mut clear).chain(&mut data).chain(&mut tag);
            bytes.into_iter().skip(bit / 8).take(1).for_each(|byte| *byte ^= 1 << (bit % 8));
            prop_assert_eq!(node_again.open(&header, &clear, &mut data, &tag), Err(ProtoError::Forged));
        }
    }

    proptest! {
        // A handshake takes some 20 ms in a debug build.
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn a_handshake_of_any_bytes_is_refused(message in proptest::collection::vec(any::<u8>(), 0..100)) {
            let key = Key::new([7; KEY_BYTES]);
            prop_assert!(respond(&key, &message).is_err());
            prop_assert!(Initiator::start(&key).unwrap().0.finish(&message).is_err());
        }

        #[test]
        fn a_handshake_with_a_flipped_bit_or_cut_short_is_refused(bit in 0usize..48 * 8, cut in 0usize..48) {
            let key = Key::new([7; KEY_BYTES]);
            let (initiator, first) = Initiator::start(&key).unwrap();
            let (second, _) = respond(&key, &first).unwrap();
            let (mut bad_first, mut bad_second) = (first, second);
            // X25519 ignores the top bit of a public key (RFC 7748, section 5); Noise's hash does not.
            bad_first[bit / 8] ^= 1 << (bit % 8);
            bad_second[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(respond(&key, &bad_first).is_err());
            prop_assert!(respond(&key, &first[..cut]).is_err());
            prop_assert!(initiator.finish(&bad_second).is_err());
            prop_assert!(Initiator::start(&key).unwrap().0.finish(&second[..cut]).is_err());
        }
    }

    #[test]
    fn another_key_is_noticed_by_the_node_and_an_answer_made_with_another_by_the_client() {
        let (key, other) = (Key::new([7; KEY_BYTES]), Key::new([8; KEY_BYTES]));
        let (_, first) = Initiator::start(&other).unwrap();
        assert!(matches!(respond(&key, &first), Err(ProtoError::Forged)));
        let (initiator, _) = Initiator::start(&key).unwrap();
        let (_, of_other) = Initiator::start(&other).unwrap();
        let (answer, _) = respond(&other, &of_other).unwrap();
        assert!(matches!(initiator.finish(&answer), Err(ProtoError::Forged)));
    }
}

//! The two messages that begin a sealed connection. Pure but for the system's random numbers.
//!
//! The pattern's name and the protocol's version go into the hash that both ends compare, so that neither can be
//! changed on the way. An old first message that is sent again gets an answer that only its first sender could use.

use snow::{Builder, HandshakeState};

use super::{Key, Seal, Seals};
use crate::proto::{HANDSHAKE_BYTES, ProtoError, VERSION};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: [u8; 8] = [b'D', b'P', b'S', b'W', VERSION.to_le_bytes()[0], VERSION.to_le_bytes()[1], 0, 0];

fn forged(_: snow::Error) -> ProtoError {
    ProtoError::Forged
}

fn build(
    key: &Key,
    end: fn(Builder<'_>) -> Result<HandshakeState, snow::Error>,
) -> Result<HandshakeState, ProtoError> {
    let pattern = PATTERN.parse().map_err(forged)?;
    let builder = Builder::new(pattern).prologue(&PROLOGUE).map_err(forged)?;
    end(builder.psk(0, &key.0).map_err(forged)?).map_err(forged)
}

fn write(state: &mut HandshakeState) -> Result<[u8; HANDSHAKE_BYTES], ProtoError> {
    let mut message = [0; HANDSHAKE_BYTES];
    match state.write_message(&[], &mut message) {
        Ok(HANDSHAKE_BYTES) => Ok(message),
        _ => Err(ProtoError::Forged),
    }
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Result<(), ProtoError> {
    match state.read_message(message, &mut [0; HANDSHAKE_BYTES]) {
        Ok(0) => Ok(()),
        _ => Err(ProtoError::Forged),
    }
}

/// The device's end between its message and the node's.
pub struct Initiator(HandshakeState);

impl Initiator {
    /// Begins; gives the first message.
    ///
    /// # Errors
    /// [`ProtoError::Forged`] when the system has no random numbers.
    pub fn start(key: &Key) -> Result<(Self, [u8; HANDSHAKE_BYTES]), ProtoError> {
        let mut state = build(key, |builder| builder.build_initiator())?;
        let message = write(&mut state)?;
        Ok((Self(state), message))
    }

    /// Reads the node's answer.
    ///
    /// # Errors
    /// [`ProtoError::Forged`] when it was not made by a holder of the key, for this very start.
    pub fn finish(mut self, answer: &[u8]) -> Result<Seals, ProtoError> {
        read(&mut self.0, answer)?;
        let (mut ours, mut theirs) = self.0.dangerously_get_raw_split();
        seals(&mut ours, &mut theirs)
    }
}

/// The node's end: reads the device's message; gives the answer and the sealed connection.
///
/// # Errors
/// [`ProtoError::Forged`] when the message was not made by a holder of the key.
pub fn respond(key: &Key, message: &[u8]) -> Result<([u8; HANDSHAKE_BYTES], Seals), ProtoError> {
    let mut state = build(key, |builder| builder.build_responder())?;
    read(&mut state, message)?;
    let answer = write(&mut state)?;
    let (mut theirs, mut ours) = state.dangerously_get_raw_split();
    Ok((answer, seals(&mut ours, &mut theirs)?))
}

fn seals(ours: &mut [u8; 32], theirs: &mut [u8; 32]) -> Result<Seals, ProtoError> {
    let made = Seal::new(ours).zip(Seal::new(theirs)).ok_or(ProtoError::Forged);
    ours.fill(0);
    theirs.fill(0);
    std::hint::black_box((ours, theirs));
    let (send, receive) = made?;
    Ok(Seals { send, receive })
}

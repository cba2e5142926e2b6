//! One connection of a node, from its first byte to its last.
//!
//! Invariant: nothing a peer sends costs more than one buffer and [`PATIENCE`] at a time, and nothing is done with a
//! message before it has been checked.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::store::{Session, Store};
use crate::proto::{
    self, Header, Hello, MAX_BLOCKS_PER_MESSAGE, MAX_CONTROL_BYTES, Opcode, ProtoError, RANGE_BYTES, Range,
    Status,
};
use crate::secure::{Security, respond};
use crate::units::{BLOCK_BYTES, RemoteBlock};
use crate::wire::{Channel, Fault, Incoming, Wire};

/// Time in which a new connection must say who it is, in which a message must be complete, and an answer gone out.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Payloads up to here need no buffer.
const SMALL_BYTES: usize = 8 << 10;

/// What connections share.
pub(super) struct Service {
    pub(super) store: Arc<Store>,
    pub(super) security: Security,
    pub(super) grace: Duration,
    pub(super) buffers: Buffers,
}

/// Why a connection ended, other than by its peer's wish.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What was sent.
    #[error("{0}")]
    Proto(#[from] ProtoError),
    /// The peer was refused.
    #[error("{0}")]
    Refused(Status),
    /// All buffers were in use for too long.
    #[error("no buffer for a large message: too many at once")]
    NoBuffer,
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io(error) => Self::Io(error),
            Fault::Proto(error) => Self::Proto(error),
        }
    }
}

/// Serves one connection.
pub(super) fn serve(service: &Service, wire: impl Wire) -> Result<(), End> {
    let mut channel = Channel::new(wire);
    let (header, session) = greet(service, &mut channel)?;
    let mut info = service.store.info(&session, Instant::now()).encode();
    let ended = answer(&mut channel, &header, Status::Ok, &mut info)
        .and_then(|()| serve_session(service, &mut channel, &session));
    let goodbye = matches!(ended, Ok(Some(_)));
    service.store.close(&session, goodbye, Instant::now());
    match ended? {
        // Answered only now: what a client hears of its goodbye is that its blocks are free.
        Some(bye) => answer(&mut channel, &bye, Status::Ok, &mut []),
        None => Ok(()),
    }
}

/// The handshake, if there is a key, and HELLO.
fn greet(service: &Service, channel: &mut Channel<impl Wire>) -> Result<(Header, Session), End> {
    let deadline = Instant::now() + PATIENCE;
    let mut body = [0; MAX_CONTROL_BYTES];
    let (mut header, mut len) = receive_greeting(channel, &mut body, deadline)?;
    match (&service.security, header.opcode) {
        (Security::Psk(key), Opcode::Secure) => {
            let Ok((mut message, seals)) = respond(key, &body[..len]) else {
                return refuse(channel, &header, Status::WrongKey);
            };
            answer(channel, &header, Status::Ok, &mut message)?;
            channel.secure(seals)?;
            (header, len) = receive_greeting(channel, &mut body, deadline)?;
        }
        (Security::Psk(_), _) => return refuse(channel, &header, Status::KeyNeeded),
        (Security::Plaintext, Opcode::Secure) => return refuse(channel, &header, Status::NoKey),
        (Security::Plaintext, _) => {}
    }
    let hello = Hello::decode(&body[..len]).ok().filter(|_| header.opcode == Opcode::Hello);
    let opened = match hello {
        Some(hello) if hello.block_bytes as usize == BLOCK_BYTES => service.store.open(&hello, service.grace),
        _ => Err(Status::BadRequest),
    };
    match opened {
        Ok(session) => Ok((header, session)),
        Err(status) => refuse(channel, &header, status),
    }
}

fn refuse<T>(channel: &mut Channel<impl Wire>, header: &Header, status: Status) -> Result<T, End> {
    answer(channel, header, status, &mut [])?;
    Err(End::Refused(status))
}

/// A peer of another version is told ours, then the connection is over, as with any malformed message: where the next
/// one would begin is not known.
fn receive_greeting(
    channel: &mut Channel<impl Wire>,
    body: &mut [u8; MAX_CONTROL_BYTES],
    deadline: Instant,
) -> Result<(Header, usize), End> {
    let left = deadline.saturating_duration_since(Instant::now());
    let incoming = match channel.header(Some(deadline), left) {
        Err(Fault::Proto(error @ ProtoError::Version(_))) if !channel.is_secure() => {
            let _ = answer(channel, &Header::request(Opcode::Hello, 0, 0), Status::Version, &mut []);
            return Err(error.into());
        }
        other => other?,
    };
    let len = incoming.header.payload_bytes as usize;
    let payload = body.get_mut(..len).ok_or(ProtoError::TooLong(len as u32))?;
    receive_payload(channel, &incoming, payload, deadline)?;
    Ok((incoming.header, len))
}

fn receive_payload(
    channel: &mut Channel<impl Wire>,
    incoming: &Incoming,
    payload: &mut [u8],
    deadline: Instant,
) -> Result<(), End> {
    channel.payload(incoming, payload, deadline)?;
    if incoming.header.reply { Err(ProtoError::Field.into()) } else { Ok(()) }
}

/// Serves requests until the client closes the connection, or says goodbye with the message that is returned.
fn serve_session(
    service: &Service,
    channel: &mut Channel<impl Wire>,
    session: &Session,
) -> Result<Option<Header>, End> {
    loop {
        let incoming = match channel.header(None, PATIENCE) {
            Err(Fault::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        if incoming.header.payload_bytes as usize > MAX_CONTROL_BYTES && !incoming.header.carries_data() {
            return Err(ProtoError::TooLong(incoming.header.payload_bytes).into());
        }
        let header = if incoming.header.payload_bytes as usize <= SMALL_BYTES {
            serve_small(service, channel, session, &incoming)?
        } else {
            serve_large(service, channel, session, &incoming)?
        };
        if header.opcode == Opcode::Bye {
            return Ok(Some(header));
        }
    }
}

/// A message of which the whole fits on the stack; not its answer, perhaps.
fn serve_small(
    service: &Service,
    channel: &mut Channel<impl Wire>,
    session: &Session,
    incoming: &Incoming,
) -> Result<Header, End> {
    let mut buffer = [0; SMALL_BYTES];
    let len = incoming.header.payload_bytes as usize;
    receive_payload(channel, incoming, &mut buffer[..len], Instant::now() + PATIENCE)?;
    let long_answer = incoming.header.opcode == Opcode::Read
        && Range::decode(&buffer[..len]).is_ok_and(|range| range.len_bytes as usize > SMALL_BYTES);
    if long_answer {
        let mut large = service.buffers.take(Instant::now() + PATIENCE).ok_or(End::NoBuffer)?;
        let bytes = large.bytes();
        bytes[..len].copy_from_slice(&buffer[..len]);
        return reply(service, channel, session, incoming, bytes);
    }
    reply(service, channel, session, incoming, &mut buffer)
}

fn serve_large(
    service: &Service,
    channel: &mut Channel<impl Wire>,
    session: &Session,
    incoming: &Incoming,
) -> Result<Header, End> {
    let mut large = service.buffers.take(Instant::now() + PATIENCE).ok_or(End::NoBuffer)?;
    let payload = large.bytes().get_mut(..incoming.header.payload_bytes as usize).ok_or(ProtoError::Body)?;
    receive_payload(channel, incoming, payload, Instant::now() + PATIENCE)?;
    reply(service, channel, session, incoming, large.bytes())
}

/// Does what a checked message asks for and answers. The request is at the beginning of `buffer`.
fn reply(
    service: &Service,
    channel: &mut Channel<impl Wire>,
    session: &Session,
    incoming: &Incoming,
    buffer: &mut [u8],
) -> Result<Header, End> {
    let start = Instant::now();
    let header = incoming.header;
    if header.opcode == Opcode::Bye {
        return Ok(header);
    }
    let len = header.payload_bytes as usize;
    let mut list = [0; MAX_CONTROL_BYTES];
    let done = handle(&service.store, session, header.opcode, buffer, len, &mut list);
    let (mut bytes_in, mut bytes_out) = (0, 0);
    match done {
        Ok(Reply::Nothing) => {
            bytes_in = len.saturating_sub(RANGE_BYTES);
            answer(channel, &header, Status::Ok, &mut [])?;
        }
        Ok(Reply::List(len)) => answer(channel, &header, Status::Ok, &mut list[..len])?,
        Ok(Reply::Data(len)) => {
            bytes_out = len;
            answer(channel, &header, Status::Ok, &mut buffer[..len])?;
        }
        Err(status) => answer(channel, &header, status, &mut [])?,
    }
    let latency_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    session.counters.count(done.is_ok(), bytes_in as u64, bytes_out as u64, latency_ns);
    if let (Opcode::Reserve, Err(status @ (Status::Quota | Status::Draining))) = (header.opcode, &done) {
        log::debug!("client {:016x}: lent nothing: {status}", session.client_id());
    }
    Ok(header)
}

/// Where the answer's payload is.
enum Reply {
    Nothing,
    List(usize),
    Data(usize),
}

fn handle(
    store: &Store,
    session: &Session,
    opcode: Opcode,
    buffer: &mut [u8],
    len: usize,
    list: &mut [u8; MAX_CONTROL_BYTES],
) -> Result<Reply, Status> {
    let bad = |_: ProtoError| Status::BadRequest;
    let number = |body: &[u8]| Ok(u32::from_le_bytes(body.try_into().map_err(|_| Status::BadRequest)?));
    let request = buffer.get(..len).ok_or(Status::BadRequest)?;
    let mut blocks = [RemoteBlock::default(); MAX_BLOCKS_PER_MESSAGE];
    match opcode {
        Opcode::Write => {
            let (body, data) = request.split_at_checked(RANGE_BYTES).ok_or(Status::BadRequest)?;
            store.write(session, &Range::decode(body).map_err(bad)?, data)?;
            Ok(Reply::Nothing)
        }
        Opcode::Read => {
            let range = Range::decode(request).map_err(bad)?;
            let out = buffer.get_mut(..range.len_bytes as usize).ok_or(Status::BadRequest)?;
            store.read(session, &range, out)?;
            Ok(Reply::Data(range.len_bytes as usize))
        }
        Opcode::Reserve => {
            let wanted = (number(request)? as usize).min(MAX_BLOCKS_PER_MESSAGE);
            let (granted, free) = store.reserve(session, &mut blocks[..wanted])?;
            Ok(Reply::List(proto::encode_list(free, &blocks[..granted], list)))
        }
        Opcode::Release => {
            let (_, blocks) = proto::decode_list(request).map_err(bad)?;
            let free = store.release(session, blocks)?;
            Ok(Reply::List(proto::encode_list(free, &[], list)))
        }
        Opcode::Held => {
            let (count, next) = store.list(session, number(request)?, &mut blocks)?;
            Ok(Reply::List(proto::encode_list(next, &blocks[..count], list)))
        }
        Opcode::Stat => {
            let info = store.info(session, Instant::now()).encode();
            list[..info.len()].copy_from_slice(&info);
            Ok(Reply::List(info.len()))
        }
        Opcode::Hello | Opcode::Bye | Opcode::Secure => Err(Status::BadRequest),
    }
}

fn answer(
    channel: &mut Channel<impl Wire>,
    request: &Header,
    status: Status,
    payload: &mut [u8],
) -> Result<(), End> {
    let header = request.answer(status, payload.len());
    Ok(channel.send(&header, &[], payload, Instant::now() + PATIENCE)?)
}

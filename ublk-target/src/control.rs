//! The daemon's control socket: one JSON request per connection, one line, and its answer.
//!
//! The answer is `{"ok": VALUE}` or `{"error": TEXT}` on one line. A long list comes as one line `{"item": VALUE}` for each
//! of its items, so that neither side needs room for all of it, and ends with `{"end": COUNT}`.
//!
//! The socket lies in the state directory, which only its owner may enter. Each client has a thread of its own, so that a
//! long report holds up no other; there are few of them at a time, and a client that sends nothing, garbage or too much
//! is cut off after a moment. A panic while a client is answered is that client's error. The queues never wait for these
//! threads.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::{
    fmt, io,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

/// The longest line in bytes: a request, an answer, or one item of it.
const MAX_LINE_BYTES: usize = 64 << 20;
/// How long a client may take to say or read something.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a daemon may take over an answer, or over the next item of one.
const DAEMON_PATIENCE: Duration = Duration::from_secs(60);
/// Clients that are answered at once; more wait.
const MAX_CLIENTS: usize = 8;
/// Stack of a client's thread: small, since a daemon under mlockall pays for all of it.
const STACK_BYTES: usize = 512 << 10;

/// The answer to a control request.
pub enum Answer<'a> {
    /// One value.
    Value(Value),
    /// A list that may be long: made and sent one by one.
    Items(Box<dyn Iterator<Item = Value> + 'a>),
}

impl<'a> Answer<'a> {
    /// A list that may be long.
    pub fn items(items: impl Iterator<Item = Value> + 'a) -> Answer<'a> {
        Answer::Items(Box::new(items))
    }
}

impl From<Value> for Answer<'_> {
    fn from(value: Value) -> Self {
        Answer::Value(value)
    }
}

impl fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Value(value) => write!(f, "Value({value})"),
            Answer::Items(_) => f.write_str("Items(..)"),
        }
    }
}

/// Who answers a daemon's clients.
pub trait Responder: Send + Sync + 'static {
    /// Answers one request. Called from several threads at once.
    ///
    /// # Errors
    /// A one-line reason, for the client.
    fn answer(&self, request: &Value) -> std::result::Result<Answer<'_>, String>;
}

/// A listening control socket.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, in place of a dead daemon's socket.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(path: &Path) -> Result<Listener> {
        let failed = |source| Error::State { path: path.to_owned(), what: "listening", source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        Ok(Listener { listener, path: path.to_owned() })
    }

    /// Answers clients for as long as the process lives.
    pub fn serve(self, responder: impl Responder) {
        let responder = Arc::new(responder);
        let seats = Arc::new(Seats::default());
        loop {
            let seat = seats.take();
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let (responder, path) = (Arc::clone(&responder), self.path.clone());
                    let spawned = std::thread::Builder::new()
                        .name("client".into())
                        .stack_size(STACK_BYTES)
                        .spawn(move || {
                            let _seat = seat;
                            if let Err(error) = answer_one(&stream, &*responder) {
                                log::warn!("{}: {error}", path.display());
                            }
                        });
                    // The client's connection is closed then, which tells it.
                    if let Err(error) = spawned {
                        log::warn!("{}: starting a thread: {error}", self.path.display());
                    }
                }
                Err(error) => {
                    log::warn!("{}: accept: {error}", self.path.display());
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

/// How many clients are being answered.
#[derive(Default)]
struct Seats {
    taken: Mutex<usize>,
    freed: Condvar,
}

impl Seats {
    /// Waits for a free seat.
    fn take(self: &Arc<Seats>) -> Seat {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut usize| *taken >= MAX_CLIENTS;
        let mut taken = self.freed.wait_while(taken, full).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Seat(Arc::clone(self))
    }
}

struct Seat(Arc<Seats>);

impl Drop for Seat {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

/// Reads one line of at most [`MAX_LINE_BYTES`]; empty at the end.
fn read_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
    if line.len() > MAX_LINE_BYTES {
        return Err(io::Error::other(format!("a line of more than {} MiB", MAX_LINE_BYTES >> 20)));
    }
    Ok(line)
}

/// Writes a line of at most `limit` bytes; in place of a longer one an error that says so.
fn write_line(to: &mut impl Write, value: &Value, limit: usize) -> io::Result<()> {
    let line = serde_json::to_vec(value)?;
    if line.len() >= limit {
        let why = format!("the answer has {} bytes, the limit is {limit}: ask for less", line.len());
        return writeln!(to, "{}", json!({ "error": why }));
    }
    to.write_all(&line)?;
    to.write_all(b"\n")
}

fn answer_one(stream: &UnixStream, responder: &impl Responder) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = read_line(&mut BufReader::new(stream))?;
    if line.is_empty() {
        return Ok(()); // Somebody looked whether anyone is here.
    }
    let mut out = BufWriter::with_capacity(64 << 10, stream);
    match serde_json::from_slice::<Value>(&line) {
        Ok(request) => {
            let answered = catch_unwind(AssertUnwindSafe(|| answer_request(&request, responder, &mut out)));
            match answered {
                Ok(sent) => sent?,
                Err(_) => {
                    log::error!("the handler of a control request panicked");
                    write_line(
                        &mut out,
                        &json!({ "error": "the daemon panicked on this request (see its log)" }),
                        MAX_LINE_BYTES,
                    )?;
                }
            }
        }
        Err(error) => {
            write_line(
                &mut out,
                &json!({ "error": format!("not a JSON request: {error}") }),
                MAX_LINE_BYTES,
            )?;
        }
    }
    out.flush()
}

fn answer_request(request: &Value, responder: &impl Responder, out: &mut impl Write) -> io::Result<()> {
    match responder.answer(request) {
        Ok(Answer::Value(value)) => write_line(out, &json!({ "ok": value }), MAX_LINE_BYTES),
        Ok(Answer::Items(items)) => {
            let mut count = 0u64;
            for item in items {
                write_line(out, &json!({ "item": item }), MAX_LINE_BYTES)?;
                count += 1;
            }
            write_line(out, &json!({ "end": count }), MAX_LINE_BYTES)
        }
        Err(message) => write_line(out, &json!({ "error": message }), MAX_LINE_BYTES),
    }
}

/// Asks device `id`'s daemon through the socket at `path`. A long list comes back as one array.
///
/// # Errors
/// [`Error::Daemon`] if it does not answer, [`Error::Refused`] with its reason if it will not.
pub fn ask(path: &Path, id: u32, request: &Value) -> Result<Value> {
    let mut items = Vec::new();
    let keep = |item| {
        items.push(item);
        Ok(())
    };
    match ask_each(path, id, request, keep)? {
        Some(value) => Ok(value),
        None => Ok(items.into()),
    }
}

/// Asks device `id`'s daemon through the socket at `path` and hands each item of a long list to `each` as it comes: then
/// the answer is `None`.
///
/// # Errors
/// As [`ask`], and what `each` says.
pub fn ask_each(
    path: &Path,
    id: u32,
    request: &Value,
    mut each: impl FnMut(Value) -> Result<()>,
) -> Result<Option<Value>> {
    let daemon = |source| Error::Daemon { id, source };
    let mut stream = UnixStream::connect(path).map_err(daemon)?;
    stream.set_read_timeout(Some(DAEMON_PATIENCE)).map_err(daemon)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(daemon)?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(daemon)?;
    let mut reader = BufReader::new(stream);
    let mut count = 0;
    loop {
        let line = read_line(&mut reader).map_err(daemon)?;
        if line.is_empty() {
            return Err(daemon(io::Error::other("it hung up before its answer was whole")));
        }
        let mut reply: Value = serde_json::from_slice(&line).map_err(|e| daemon(io::Error::other(e)))?;
        if let Some(item) = reply.get_mut("item").map(Value::take) {
            each(item)?;
            count += 1;
        } else if let Some(value) = reply.get_mut("ok").map(Value::take) {
            return Ok(Some(value));
        } else if let Some(message) = reply.get("error").and_then(Value::as_str) {
            return Err(Error::Refused { id, message: message.to_owned() });
        } else if reply.get("end").and_then(Value::as_u64) == Some(count) {
            return Ok(None);
        } else {
            return Err(daemon(io::Error::other("an answer of an unknown shape")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Answers `echo`, counts to `list`, panics, and holds `wait` until it is told to go on.
    struct Tester {
        waiting: Mutex<mpsc::Sender<()>>,
        go_on: Mutex<mpsc::Receiver<()>>,
    }

    impl Responder for Tester {
        fn answer(&self, request: &Value) -> std::result::Result<Answer<'_>, String> {
            match request["op"].as_str() {
                Some("echo") => Ok(request["value"].clone().into()),
                Some("list") => {
                    Ok(Answer::items((0..request["count"].as_u64().unwrap()).map(|n| json!({ "n": n }))))
                }
                Some("panic") => panic!("on purpose"),
                Some("panic late") => {
                    Ok(Answer::items((0..5).map(|n| if n < 3 { json!(n) } else { panic!("late") })))
                }
                Some("wait") => {
                    self.waiting.lock().unwrap().send(()).unwrap();
                    self.go_on.lock().unwrap().recv().unwrap();
                    Ok(json!("waited").into())
                }
                _ => Err("unknown".into()),
            }
        }
    }

    struct Server {
        _tmp: tempfile::TempDir,
        path: PathBuf,
        waiting: mpsc::Receiver<()>,
        go_on: mpsc::Sender<()>,
    }

    fn server() -> Server {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("0.sock");
        let listener = Listener::bind(&path).unwrap();
        let (tell, waiting) = mpsc::channel();
        let (go_on, told) = mpsc::channel();
        let tester = Tester { waiting: tell.into(), go_on: told.into() };
        std::thread::spawn(move || listener.serve(tester));
        Server { _tmp: tmp, path, waiting, go_on }
    }

    fn message(path: &Path, request: &Value) -> String {
        ask(path, 0, request).unwrap_err().to_string()
    }

    #[test]
    fn an_answer_and_a_refusal_both_arrive() {
        let server = server();
        assert_eq!(ask(&server.path, 0, &json!({"op": "echo", "value": [1, 2]})).unwrap(), json!([1, 2]));
        assert_eq!(ask(&server.path, 0, &json!({"op": "echo"})).unwrap(), Value::Null);
        assert_eq!(message(&server.path, &json!({"op": "?"})), "device 0: unknown");
    }

    #[test]
    fn garbage_and_a_silent_client_do_not_end_the_service() {
        let server = server();
        let mut stream = UnixStream::connect(&server.path).unwrap();
        stream.write_all(b"\xff\xfe not json\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("not a JSON request"), "{reply}");
        drop(UnixStream::connect(&server.path).unwrap());
        assert_eq!(ask(&server.path, 0, &json!({"op": "echo", "value": 3})).unwrap(), json!(3));
    }

    #[test]
    fn a_panic_is_its_clients_error_and_the_service_goes_on() {
        let server = server();
        for op in ["panic", "panic late"] {
            assert!(message(&server.path, &json!({ "op": op })).contains("panicked"), "{op}");
        }
        assert_eq!(ask(&server.path, 0, &json!({"op": "echo", "value": 3})).unwrap(), json!(3));
    }

    #[test]
    fn a_slow_answer_holds_up_no_other_client() {
        let server = server();
        let path = server.path.clone();
        let slow = std::thread::spawn(move || ask(&path, 0, &json!({"op": "wait"})).unwrap());
        server.waiting.recv().unwrap();
        assert_eq!(ask(&server.path, 0, &json!({"op": "echo", "value": 3})).unwrap(), json!(3));
        server.go_on.send(()).unwrap();
        assert_eq!(slow.join().unwrap(), "waited");
    }

    #[test]
    fn more_clients_than_seats_are_all_answered_in_the_end() {
        let server = server();
        let idle: Vec<_> = (0..MAX_CLIENTS).map(|_| UnixStream::connect(&server.path).unwrap()).collect();
        let path = server.path.clone();
        let late = std::thread::spawn(move || ask(&path, 0, &json!({"op": "echo", "value": 3})).unwrap());
        drop(idle);
        assert_eq!(late.join().unwrap(), 3);
    }

    #[test]
    fn a_long_list_comes_item_by_item_and_an_empty_one_is_a_list() {
        let server = server();
        let mut seen = 0;
        let last = ask_each(&server.path, 0, &json!({"op": "list", "count": 50_000}), |item| {
            assert_eq!(item["n"], seen);
            seen += 1;
            Ok(())
        });
        assert_eq!((last.unwrap(), seen), (None, 50_000));
        let list = ask(&server.path, 0, &json!({"op": "list", "count": 2})).unwrap();
        assert_eq!(list, json!([{ "n": 0 }, { "n": 1 }]));
        assert_eq!(ask(&server.path, 0, &json!({"op": "list", "count": 0})).unwrap(), json!([]));
    }

    #[test]
    fn an_answer_too_long_for_a_line_is_an_error_that_says_so() {
        let line = |text: &str| {
            let mut out = Vec::new();
            write_line(&mut out, &json!({ "ok": text }), 20).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(line("12345678"), "{\"ok\":\"12345678\"}\n");
        assert_eq!(
            line("1234567890123"),
            "{\"error\":\"the answer has 22 bytes, the limit is 20: ask for less\"}\n"
        );
    }

    #[test]
    fn a_daemon_that_is_gone_or_hangs_up_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("9.sock");
        let gone = ask(&path, 9, &json!({})).unwrap_err().to_string();
        assert!(gone.starts_with("device 9: its daemon does not answer"), "{gone}");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"item\": 1}\n").unwrap();
            read_line(&mut BufReader::new(&stream)).unwrap();
        });
        let cut = ask(&path, 9, &json!({})).unwrap_err().to_string();
        assert!(cut.contains("before its answer was whole"), "{cut}");
    }
}

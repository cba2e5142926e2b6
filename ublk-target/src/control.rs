//! The daemon's control socket: one JSON request and one JSON answer per connection, each one line.
//!
//! The socket lies in the state directory, which only its owner may enter. A client that sends nothing, garbage or too
//! much is cut off after a moment and disturbs no I/O: the queues never wait for this thread.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

/// The longest request or answer in bytes.
const MAX_LINE_BYTES: u64 = 64 << 20;
/// How long a client may take to say or read something.
const PATIENCE: Duration = Duration::from_secs(10);

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

    /// Answers clients, one after the other, for as long as the process lives.
    pub fn serve(self, answer: impl Fn(&Value) -> Result<Value, String>) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = answer_one(stream, &answer) {
                        log::warn!("{}: {error}", self.path.display());
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

fn answer_one(mut stream: UnixStream, answer: &impl Fn(&Value) -> Result<Value, String>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_LINE_BYTES)).read_line(&mut line)?;
    let reply = match serde_json::from_str::<Value>(&line) {
        Ok(request) => match answer(&request) {
            Ok(value) => json!({ "ok": value }),
            Err(message) => json!({ "error": message }),
        },
        Err(error) => json!({ "error": format!("not a JSON request: {error}") }),
    };
    stream.write_all(format!("{reply}\n").as_bytes())
}

/// Asks device `id`'s daemon through the socket at `path`.
///
/// # Errors
/// [`Error::Daemon`] if it does not answer, [`Error::Refused`] with its reason if it will not.
pub fn ask(path: &Path, id: u32, request: &Value) -> Result<Value> {
    let daemon = |source| Error::Daemon { id, source };
    let mut stream = UnixStream::connect(path).map_err(daemon)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(daemon)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(daemon)?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(daemon)?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut line).map_err(daemon)?;
    let mut reply: Value = serde_json::from_str(&line).map_err(|e| daemon(io::Error::other(e)))?;
    match (reply.get_mut("ok").map(Value::take), reply.get("error").and_then(Value::as_str)) {
        (Some(value), _) => Ok(value),
        (None, Some(message)) => Err(Error::Refused { id, message: message.to_owned() }),
        (None, None) => Err(daemon(io::Error::other("an answer of an unknown shape"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo_server() -> (tempfile::TempDir, PathBuf) {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("0.sock");
        let listener = Listener::bind(&path).unwrap();
        std::thread::spawn(move || {
            listener.serve(|request| match request["op"].as_str() {
                Some("echo") => Ok(request["value"].clone()),
                _ => Err("unknown".into()),
            });
        });
        (tmp, path)
    }

    #[test]
    fn an_answer_and_a_refusal_both_arrive() {
        let (_tmp, path) = echo_server();
        assert_eq!(ask(&path, 0, &json!({"op": "echo", "value": [1, 2]})).unwrap(), json!([1, 2]));
        let error = ask(&path, 0, &json!({"op": "?"})).unwrap_err();
        assert_eq!(error.to_string(), "device 0: unknown");
    }

    #[test]
    fn garbage_and_a_silent_client_do_not_end_the_service() {
        let (_tmp, path) = echo_server();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"\xff\xfe not json\n").unwrap();
        drop(stream);
        drop(UnixStream::connect(&path).unwrap());
        assert_eq!(ask(&path, 0, &json!({"op": "echo", "value": 3})).unwrap(), json!(3));
    }

    #[test]
    fn a_daemon_that_is_gone_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let error = ask(&tmp.path().join("9.sock"), 9, &json!({})).unwrap_err().to_string();
        assert!(error.starts_with("device 9: its daemon does not answer"), "{error}");
    }
}

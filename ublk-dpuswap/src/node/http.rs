//! A node's page for people and monitors: GET /health, /stats (JSON) and /metrics (Prometheus); and, from this machine
//! only, the orders POST /reclaim?bytes=N and POST /drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tiny_http::{Header, Method, Request, Response, Server};

use super::Node;
use crate::error::Error;
use crate::units::BLOCK_BYTES;

/// How often a stop is noticed.
const TICK: Duration = Duration::from_millis(100);

/// The listening page.
pub struct StatusPage {
    server: Server,
}

impl StatusPage {
    /// Listens.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| Error::System {
            what: format!("listening on {address}"),
            source: std::io::Error::other(source),
        };
        Ok(Self { server: Server::http(address).map_err(fail)? })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.server_addr().to_ip()
    }

    /// Answers for as long as the node runs.
    pub fn serve(self, node: &Arc<Node>) {
        while !node.is_stopping() {
            match self.server.recv_timeout(TICK) {
                Ok(Some(request)) => respond(node, request),
                Ok(None) => {}
                Err(error) => {
                    log::warn!("the status page: {error}");
                    std::thread::sleep(TICK);
                }
            }
        }
    }
}

fn respond(node: &Node, request: Request) {
    let local = request.remote_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    let (status, kind, text) = answer(node, request.method(), request.url(), local);
    let mut response = Response::from_string(text).with_status_code(status);
    if let Ok(header) = Header::from_bytes("Content-Type", kind) {
        response = response.with_header(header);
    }
    // Someone who does not wait for the answer does not get it.
    let _ = request.respond(response);
}

fn answer(node: &Node, method: &Method, url: &str, local: bool) -> (u16, &'static str, String) {
    const TEXT: &str = "text/plain; charset=utf-8";
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    match (method, path) {
        (Method::Get, "/health") if node.is_draining() => (503, TEXT, "draining\n".to_owned()),
        (Method::Get, "/health") => (200, TEXT, "ok\n".to_owned()),
        (Method::Get, "/stats") => match serde_json::to_string(&node.report()) {
            Ok(text) => (200, "application/json", text + "\n"),
            Err(error) => (500, TEXT, format!("{error}\n")),
        },
        (Method::Get, "/metrics") => {
            (200, "text/plain; version=0.0.4; charset=utf-8", node.report().metrics())
        }
        (Method::Post, "/reclaim" | "/drain") if !local => {
            (403, TEXT, "orders are taken from this machine only\n".to_owned())
        }
        (Method::Post, "/reclaim") => match query.strip_prefix("bytes=").map(str::parse::<u64>) {
            Some(Ok(bytes)) => {
                let wanted = node.reclaim(bytes.div_ceil(BLOCK_BYTES as u64));
                (200, TEXT, format!("{wanted} MiB are wanted back\n"))
            }
            _ => {
                (400, TEXT, "POST /reclaim?bytes=N, N a number of bytes; 0 takes the order back\n".to_owned())
            }
        },
        (Method::Post, "/drain") => {
            node.drain();
            (200, TEXT, "draining\n".to_owned())
        }
        (_, "/health" | "/stats" | "/metrics" | "/reclaim" | "/drain") => {
            (405, TEXT, format!("{method} is not what this is for\n"))
        }
        _ => (404, TEXT, "GET /health, /stats, /metrics; POST /reclaim?bytes=N, /drain\n".to_owned()),
    }
}

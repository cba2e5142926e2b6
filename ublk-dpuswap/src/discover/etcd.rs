//! etcd, through the JSON gateway of its version 3 API: `/v3/kv/range`, `/v3/kv/put`, `/v3/lease/grant`, `/v3/lease/keepalive`,
//! `/v3/lease/revoke` (etcd's documentation, "gRPC gateway"; messages as in `rpc.proto`: 64-bit numbers are JSON strings,
//! keys and values base64, fields that are 0 or empty are left out). Plain HTTP, as in a trusted network: what is listed is
//! only where to knock, and a node still has to prove that it has the key.
//!
//! Invariant: no answer is read past [`MAX_ANSWER_BYTES`], and every request ends in bounded time.

use std::collections::HashSet;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::{Description, DiscoverError, Discovery, MAX_MEMBERS, Member, is_id};

/// Longest answer that is read.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Seconds that an endpoint has to answer.
pub const TIMEOUT_S: u64 = 2;
/// Where nodes are listed, when the URL does not say.
pub const DEFAULT_PREFIX: &str = "/storlab/dpuswap/";
const MAX_ENDPOINTS: usize = 16;

/// What `etcd://HOST:PORT[,HOST:PORT]/PREFIX` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUrl {
    endpoints: Vec<String>,
    prefix: String,
}

impl EtcdUrl {
    /// Reads a URL. Connects nothing.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, DiscoverError> {
        let bad = |what: String| {
            DiscoverError::Option(format!("{url}: {what}; it looks like etcd://HOST:PORT[,HOST:PORT]/PREFIX"))
        };
        let rest = url.strip_prefix("etcd://").ok_or_else(|| bad("no etcd URL".to_owned()))?;
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let endpoints: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        if endpoints.len() > MAX_ENDPOINTS {
            return Err(bad(format!("more than {MAX_ENDPOINTS} endpoints")));
        }
        for addr in &endpoints {
            let node = Description { addr: addr.clone(), memory_blocks: 0, free_blocks: 0, epoch: 0 };
            node.check().map_err(bad)?;
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if path.len() > 256 || !path.bytes().all(plain) {
            return Err(bad("a prefix has up to 256 letters, digits and . _ - /".to_owned()));
        }
        let prefix = match path.trim_matches('/') {
            "" => DEFAULT_PREFIX.to_owned(),
            path => format!("/{path}/"),
        };
        Ok(Self { endpoints, prefix })
    }

    /// The key under which a node is listed.
    pub fn key(&self, id: &str) -> String {
        format!("{}nodes/{id}", self.prefix)
    }
}

/// A client of etcd. Asks one endpoint after the other until one answers, and stays with that one.
#[derive(Debug)]
pub struct Etcd {
    url: EtcdUrl,
    current: usize,
}

/// A lease: what was put under it goes when it is not kept alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease(i64);

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

fn number(value: &Value) -> Option<i64> {
    value.as_str().map_or_else(|| value.as_i64(), |text| text.parse().ok())
}

impl Etcd {
    /// A client. Connects nothing.
    pub fn new(url: EtcdUrl) -> Self {
        Self { url, current: 0 }
    }

    fn endpoint(&self) -> &str {
        &self.url.endpoints[self.current % self.url.endpoints.len()]
    }

    fn wrong(&self, what: &'static str) -> DiscoverError {
        DiscoverError::Answer { endpoint: self.endpoint().to_owned(), what }
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<Value, DiscoverError> {
        let mut last = self.wrong("no endpoint");
        for _ in 0..self.url.endpoints.len() {
            match self.post_once(path, body) {
                // An endpoint without a leader answers 503; another may have one.
                Err(error @ (DiscoverError::Away { .. } | DiscoverError::Refused { status: 500.., .. })) => {
                    last = error;
                }
                done => return done,
            }
            self.current = (self.current + 1) % self.url.endpoints.len();
        }
        Err(last)
    }

    fn post_once(&self, path: &str, body: &Value) -> Result<Value, DiscoverError> {
        let away = |source| DiscoverError::Away { endpoint: self.endpoint().to_owned(), source };
        let request = minreq::post(format!("http://{}{path}", self.endpoint()))
            .with_header("Content-Type", "application/json")
            .with_body(body.to_string())
            .with_timeout(TIMEOUT_S)
            .with_follow_redirects(false)
            .with_max_headers_size(16 << 10)
            .with_max_status_line_length(1 << 10);
        let mut response = request.send_lazy().map_err(away)?;
        let status = response.status_code;
        let mut text = Vec::new();
        let limit = MAX_ANSWER_BYTES as u64 + 1;
        let read = Read::take(&mut response, limit).read_to_end(&mut text);
        read.map_err(|error| away(minreq::Error::IoError(error)))?;
        if text.len() > MAX_ANSWER_BYTES {
            return Err(self.wrong("an answer without end"));
        }
        if status != 200 {
            let text = String::from_utf8_lossy(&text);
            let text = text.chars().take(200).collect::<String>().escape_debug().to_string();
            return Err(DiscoverError::Refused { endpoint: self.endpoint().to_owned(), status, text });
        }
        // A stream's answer is a line of JSON each; the first is wanted.
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<Value>();
        values.next().and_then(Result::ok).ok_or_else(|| self.wrong("its answer is no JSON"))
    }

    /// A new lease of `ttl_s` seconds.
    ///
    /// # Errors
    /// etcd does not answer, or refuses.
    pub fn grant(&mut self, ttl_s: u64) -> Result<Lease, DiscoverError> {
        let answer = self.post("/v3/lease/grant", &json!({ "TTL": ttl_s.to_string() }))?;
        match number(&answer["ID"]) {
            Some(id) if id != 0 => Ok(Lease(id)),
            _ => Err(self.wrong("a lease without a number")),
        }
    }

    /// Renews a lease. False when it has ended.
    ///
    /// # Errors
    /// etcd does not answer, or refuses.
    pub fn keep_alive(&mut self, lease: Lease) -> Result<bool, DiscoverError> {
        let answer = self.post("/v3/lease/keepalive", &json!({ "ID": lease.0.to_string() }))?;
        Ok(number(&answer["result"]["TTL"]).is_some_and(|ttl| ttl > 0))
    }

    /// Ends a lease, and with it what was put under it.
    ///
    /// # Errors
    /// etcd does not answer, or refuses.
    pub fn revoke(&mut self, lease: Lease) -> Result<(), DiscoverError> {
        self.post("/v3/lease/revoke", &json!({ "ID": lease.0.to_string() })).map(drop)
    }

    /// Lists a node for as long as the lease lasts. False when the lease has ended.
    ///
    /// # Errors
    /// etcd does not answer, or refuses.
    pub fn put(&mut self, id: &str, node: &Description, lease: Lease) -> Result<bool, DiscoverError> {
        let value = json!(node).to_string();
        let body = json!({
            "key": BASE64.encode(self.url.key(id)),
            "value": BASE64.encode(value),
            "lease": lease.0.to_string(),
        });
        match self.post("/v3/kv/put", &body) {
            Ok(_) => Ok(true),
            Err(DiscoverError::Refused { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All keys that list nodes, with what they say.
    fn range(&mut self) -> Result<Vec<Pair>, DiscoverError> {
        let key = self.url.key("");
        // The first key behind all that begin with this one.
        let mut end = key.clone().into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let body = json!({
            "key": BASE64.encode(&key), "range_end": BASE64.encode(end), "limit": (MAX_MEMBERS + 1).to_string(),
        });
        let answer = self.post("/v3/kv/range", &body)?;
        let kvs = match &answer["kvs"] {
            Value::Array(kvs) => kvs.as_slice(),
            Value::Null if answer["header"].is_object() => &[],
            _ => return Err(self.wrong("a list that is none")),
        };
        let bytes = |value: &Value| value.as_str().and_then(|text| BASE64.decode(text).ok());
        kvs.iter()
            .map(|kv| Some((bytes(&kv["key"])?, bytes(&kv["value"]).unwrap_or_default())))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| self.wrong("a list with a malformed key"))
    }
}

/// The nodes listed in etcd.
#[derive(Debug)]
pub struct EtcdList {
    etcd: Etcd,
    /// Keys that were complained about.
    bad: HashSet<Vec<u8>>,
}

impl EtcdList {
    /// The list at `url`. Connects nothing.
    pub fn new(url: EtcdUrl) -> Self {
        Self { etcd: Etcd::new(url), bad: HashSet::new() }
    }

    fn complain(&mut self, key: &[u8], what: &str) {
        if self.bad.len() < MAX_MEMBERS && self.bad.insert(key.to_vec()) {
            log::warn!("leaves out {}: {what}", String::from_utf8_lossy(key).escape_debug());
        }
    }
}

impl Discovery for EtcdList {
    fn poll(&mut self) -> Result<Vec<Member>, DiscoverError> {
        let list = self.etcd.range()?;
        let prefix = self.etcd.url.key("");
        let mut members: Vec<Member> = Vec::new();
        for (key, value) in list {
            let id = key.strip_prefix(prefix.as_bytes()).and_then(|id| std::str::from_utf8(id).ok());
            let read = match id {
                Some(id) if is_id(id) => {
                    Description::parse(&value).map(|node| Member { id: id.to_owned(), node })
                }
                _ => Err("no name of a node".to_owned()),
            };
            match read {
                Ok(_) if members.len() == MAX_MEMBERS => self.complain(&key, "too many nodes"),
                Ok(new) => match members.iter().find(|old| old.node.addr == new.node.addr) {
                    Some(_) => self.complain(&key, "another node has the same address"),
                    None => {
                        self.bad.remove(&key);
                        members.push(new);
                    }
                },
                Err(what) => self.complain(&key, &what),
            }
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_url_are_found_and_what_is_wrong_is_said() {
        let url = EtcdUrl::parse("etcd://127.0.0.1:2379,[::1]:2380/lab/").unwrap();
        assert_eq!(url.endpoints, ["127.0.0.1:2379", "[::1]:2380"]);
        assert_eq!(url.key("a"), "/lab/nodes/a");
        assert_eq!(EtcdUrl::parse("etcd://h:1").unwrap().key("a"), "/storlab/dpuswap/nodes/a");
        for (url, what) in [
            ("http://h:1/", "no etcd URL"),
            ("etcd:///p", "no HOST:PORT"),
            ("etcd://h/p", "no HOST:PORT"),
            ("etcd://h:1,/p", "no HOST:PORT"),
            ("etcd://h:1/p?q", "a prefix has"),
        ] {
            let error = EtcdUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains(what), "{url}: {error}");
        }
    }
}

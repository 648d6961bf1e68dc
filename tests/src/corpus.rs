//! Questions for two proxies and what came of them, as data that `peer questions` and
//! `peer witness` share with the tests.
//!
//! A question is one request, or bytes as they are. What it led to is a [`Heard`] at the
//! client, and a [`Seen`] for each request that reached a `peer witness`.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Says to a witness which question a request belongs to.
pub const CASE: &str = "x-case";
/// Says to a witness how to answer, as JSON: see [`Ask::answered`].
pub const ANSWER: &str = "x-answer";

/// A header or trailer.
pub type Field = (String, String);

/// Questions that are asked one after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Script {
    pub name: String,
    pub address: SocketAddr,
    pub asks: Vec<Ask>,
}

/// How a question is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Http1,
    /// With prior knowledge.
    Http2,
    /// [`Ask::pieces`], whatever comes back.
    Bytes,
}

/// What is not as with Envoy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deviation {
    pub part: String,
    pub why: String,
    /// Whether it has to differ.
    pub always: bool,
}

/// One question, over a connection of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    pub protocol: Protocol,
    pub method: String,
    /// As in the request line.
    pub target: String,
    /// `Host` or `:authority`; without it, none is sent.
    pub authority: Option<String>,
    pub headers: Vec<Field>,
    pub body: Option<String>,
    pub trailers: Vec<Field>,
    /// Of [`Protocol::Bytes`]: what is sent, with a pause between. A character is a byte.
    pub pieces: Vec<String>,
    /// Sent once the answer is 101, or 200 to a CONNECT; what comes back is the body.
    pub tunnelled: Option<String>,
    /// Whether another connection is open meanwhile, over which GET was answered before.
    pub beside: bool,
    /// Where there is no answer: what the connection's end comes no earlier than.
    pub not_before_ms: Option<u64>,
    /// What the first response's status has to be; 0 if there must be none.
    pub expected: u16,
    /// See the corpus.
    pub deviations: Vec<Deviation>,
}

impl Ask {
    /// `method` and `target` for the host `test`, by HTTP/1.1.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            protocol: Protocol::Http1,
            method: method.to_owned(),
            target: target.to_owned(),
            authority: Some("test".to_owned()),
            headers: Vec::new(),
            body: None,
            trailers: Vec::new(),
            pieces: Vec::new(),
            tunnelled: None,
            beside: false,
            not_before_ms: None,
            expected: 200,
            deviations: Vec::new(),
        }
    }

    /// These bytes (characters up to U+00FF) on a connection.
    pub fn bytes(bytes: &str) -> Self {
        let mut ask = Self::new("GET", "/");
        ask.protocol = Protocol::Bytes;
        ask.pieces.push(bytes.to_owned());
        ask
    }

    /// The status that both must answer first; 0 for no answer at all.
    #[must_use]
    pub fn is(mut self, status: u16) -> Self {
        self.expected = status;
        self
    }

    /// By HTTP/2.
    #[must_use]
    pub fn http2(mut self) -> Self {
        self.protocol = Protocol::Http2;
        self
    }

    /// For this host in place of `test`.
    #[must_use]
    pub fn host(mut self, authority: &str) -> Self {
        self.authority = Some(authority.to_owned());
        self
    }

    /// Without a host.
    #[must_use]
    pub fn hostless(mut self) -> Self {
        self.authority = None;
        self
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a body; its length is told unless the headers speak of `transfer-encoding`, or
    /// there are trailers, and it goes in chunks.
    #[must_use]
    pub fn body(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self
    }

    /// With a trailer behind the body.
    #[must_use]
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Then, after a pause, these bytes.
    #[must_use]
    pub fn then(mut self, bytes: &str) -> Self {
        self.pieces.push(bytes.to_owned());
        self
    }

    /// Sent through the tunnel that an answer opens.
    #[must_use]
    pub fn tunnels(mut self, bytes: &str) -> Self {
        self.tunnelled = Some(bytes.to_owned());
        self
    }

    /// While another connection is open.
    #[must_use]
    pub fn beside(mut self) -> Self {
        self.beside = true;
        self
    }

    /// There is no answer, and the connection is not ended at once.
    #[must_use]
    pub fn ends_after_ms(mut self, milliseconds: u64) -> Self {
        self.not_before_ms = Some(milliseconds);
        self.is(0)
    }

    /// How a witness is to answer, any of: `status`, `headers` (`[[name, value]]`), `body`,
    /// `times` (so often over), `coding` (compressed; says nothing of it), `trailers`, `delay_ms`, `interim` (statuses sent before), `close` (says so and does),
    /// `cut` (ends the connection unanswered), `bytes` (as they are, and closes), `attempts`
    /// (one of these for each request of the question; the last one stays).
    #[must_use]
    pub fn answered(self, how: &Value) -> Self {
        self.with(ANSWER, &how.to_string())
    }

    /// What differs: `part` (or what starts with it and a space) and why. Where statuses
    /// differ, nothing else is compared.
    #[must_use]
    pub fn differs(mut self, part: &str, why: &str) -> Self {
        let (part, why) = (part.to_owned(), why.to_owned());
        self.deviations.push(Deviation { part, why, always: true });
        self
    }

    /// What differs now and then, where Envoy itself does not always do the same.
    #[must_use]
    pub fn may_differ(self, part: &str, why: &str) -> Self {
        let mut ask = self.differs(part, why);
        ask.deviations.iter_mut().for_each(|of| of.always &= of.part != part);
        ask
    }

    /// Names it in what a failed test says.
    pub fn label(&self) -> String {
        match self.protocol {
            Protocol::Bytes => format!("{:?}", self.pieces.concat()),
            protocol => {
                let Self { method, target, headers, .. } = self;
                let host = self.authority.as_deref().unwrap_or("(no host)");
                format!("{protocol:?} {method} {target} at {host:?} {headers:?}")
            }
        }
    }
}

/// A response as it came.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Response {
    /// Informational responses before it.
    pub interim: Vec<u16>,
    pub status: u16,
    /// By HTTP/1.
    pub reason: String,
    pub headers: Vec<Field>,
    pub body: String,
    pub trailers: Vec<Field>,
}

/// What came of a question.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Heard {
    pub responses: Vec<Response>,
    /// `kept`, `closed` (`in time` or `too early`, see [`Ask::ends_after_ms`]), `hangs`, `partial`
    /// or a stream's error.
    pub end: String,
}

/// A request as a witness saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// The value of [`CASE`].
    pub case: String,
    pub peer: IpAddr,
    /// Which witness.
    pub by: String,
    pub version: String,
    pub method: String,
    pub target: String,
    pub headers: Vec<Field>,
    pub body: String,
    pub trailers: Vec<Field>,
    /// Whether it came to its end.
    pub whole: bool,
}

impl Seen {
    /// Its line in a witness's output.
    pub fn to_line(&self) -> String {
        json!({ "seen": self }).to_string()
    }

    /// The other way round; nothing for other lines.
    pub fn of_line(line: &str) -> Option<Self> {
        let mut line: Value = serde_json::from_str(line).ok()?;
        serde_json::from_value(line["seen"].take()).ok()
    }
}

/// A character is a byte.
pub fn to_bytes(text: &str) -> Vec<u8> {
    let byte = |c: char| u8::try_from(u32::from(c)).expect("a character up to U+00FF");
    text.chars().map(byte).collect()
}

/// A byte is a character.
pub fn of_bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

//! What people see of the streams.

use std::{collections::BTreeMap, time::SystemTime};

use super::super::{
    ResourceType,
    session::{TypeStatus, Variant},
};

/// Where a stream is in its life; the better, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum StreamState {
    /// No server could be used; they are tried again soon.
    BackingOff,
    /// A server is being dialled.
    #[default]
    Connecting,
    /// A server can be talked to, and has said nothing on this connection: one that we
    /// have everything of may have nothing new to say.
    Connected,
    /// A server has answered on this connection.
    Synced,
}

/// What people see of the connection to the control planes.
#[derive(Debug, Clone, Default)]
pub struct AdsStatus {
    /// By their place; a free one may be taken by another.
    pub streams: BTreeMap<usize, StreamStatus>,
    pub types: Vec<TypeStatus>,
}

/// One stream, or one file.
#[derive(Debug, Clone)]
pub struct StreamStatus {
    /// `http://…`, `https://…`, `unix://…` or `file://…`; empty before the first try.
    pub server: String,
    pub variant: Variant,
    /// The type it carries; `None`: all that no other does.
    pub kind: Option<&'static str>,
    pub state: StreamState,
    /// Since when it is in this state.
    pub since: SystemTime,
    /// When a server said something last, on whichever connection.
    pub last_answer: Option<SystemTime>,
    /// Why the last connection ended.
    pub last_error: Option<String>,
    /// How many connections were tried.
    pub tries: u64,
}

impl Default for StreamStatus {
    fn default() -> Self {
        Self {
            server: String::new(),
            variant: Variant::Sotw,
            kind: None,
            state: StreamState::Connecting,
            since: SystemTime::now(),
            last_answer: None,
            last_error: None,
            tries: 0,
        }
    }
}

impl AdsStatus {
    /// Whether every stream has its server.
    pub fn is_connected(&self) -> bool {
        self.streams.values().all(|stream| stream.state >= StreamState::Connected)
    }

    /// Whether every stream's server has answered.
    pub fn is_synced(&self) -> bool {
        self.streams.values().all(|stream| stream.state == StreamState::Synced)
    }

    /// The stream that is worst off.
    pub fn worst(&self) -> Option<&StreamStatus> {
        self.streams.values().min_by_key(|stream| stream.state)
    }

    pub(super) fn stream(&mut self, at: usize) -> &mut StreamStatus {
        self.streams.entry(at).or_default()
    }

    pub(super) fn close(&mut self, at: usize) {
        if let Some(closed) = self.streams.remove(&at) {
            let StreamStatus { server, kind, .. } = closed;
            tracing::info!(server, kind, "the stream ends: nothing refers to it any more");
        }
    }
}

impl StreamStatus {
    pub(super) fn starts(&mut self, server: String, variant: Variant, kind: Option<ResourceType>) {
        *self = Self { server, variant, kind: kind.map(ResourceType::table), ..Self::default() };
    }

    fn enter(&mut self, state: StreamState) {
        if self.state != state {
            self.since = SystemTime::now();
        }
        self.state = state;
    }

    pub(super) fn connecting(&mut self, server: String) {
        self.server = server;
        self.tries += 1;
        self.enter(StreamState::Connecting);
    }

    pub(super) fn opened(&mut self) {
        self.enter(StreamState::Connected);
    }

    pub(super) fn answered(&mut self) {
        self.last_answer = Some(SystemTime::now());
        if self.state != StreamState::Synced {
            tracing::info!(server = self.server, kind = self.kind, "the control plane answers");
            self.enter(StreamState::Synced);
        }
    }

    /// What is there can't be used: that is told as a refusal.
    pub(super) fn refused(&mut self) {
        self.last_answer = Some(SystemTime::now());
        self.enter(StreamState::Synced);
    }

    pub(super) fn ended(&mut self, error: String) {
        tracing::warn!(
            server = self.server,
            kind = self.kind,
            error,
            "the control plane's stream ended"
        );
        self.last_error = Some(error);
        self.enter(StreamState::BackingOff);
    }
}

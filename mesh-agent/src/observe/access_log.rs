//! The access log: one line per TCP connection or HTTP request.
//!
//! The data path hands a record over and goes on; a thread of its own formats and
//! writes. A queue that is full drops the line and counts it. Under load the thread
//! rests between batches, so that handing over wakes nobody and many lines are one
//! write.

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};

use super::{ConnectionSecurity, Protocol, flags::ResponseFlags};
use crate::model::{identity::Identity, listener::Direction};

mod format;
mod lines;

pub use self::lines::{Lines, LinesWriter};

/// Lines that wait to be written.
const QUEUE: usize = 4096;

/// After a batch, before the next is looked for.
const REST: Duration = Duration::from_millis(5);

/// The most of one string a peer chose that is kept, in bytes: this bounds the queue.
const MAX_TEXT_BYTES: usize = 2048;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// `key=value` pairs, one record a line.
    Text,
    /// Nothing is written.
    Off,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLogSink {
    #[default]
    Stdout,
    /// Appended to; made if it is not there.
    File(PathBuf),
}

/// What an HTTP request adds to a record.
#[derive(Debug, Clone)]
pub struct HttpRecord {
    pub method: http::Method,
    pub authority: String,
    pub path: String,
    /// 0 where no response was sent.
    pub response_code: u16,
    pub request_id: Option<String>,
}

impl HttpRecord {
    /// Keeps at most a bounded part of what the peer chose.
    pub fn new(method: http::Method, authority: &str, path: &str) -> Self {
        Self {
            method,
            authority: bounded(authority),
            path: bounded(path),
            response_code: 0,
            request_id: None,
        }
    }

    /// With the request's `x-request-id`.
    #[must_use]
    pub fn with_request_id(mut self, id: Option<&str>) -> Self {
        self.request_id = id.map(bounded);
        self
    }
}

fn bounded(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let cut = (0..=MAX_TEXT_BYTES).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}…", &text[..cut])
}

/// One connection or request, after its end.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    pub start_time: SystemTime,
    pub duration: Duration,
    pub direction: Direction,
    pub protocol: Protocol,
    pub source: SocketAddr,
    /// The workload's name, where it is of this node.
    pub source_workload: Option<Arc<str>>,
    pub source_identity: Option<Identity>,
    pub original_destination: SocketAddr,
    pub destination_workload: Option<Arc<str>>,
    pub destination_identity: Option<Identity>,
    pub upstream_host: Option<SocketAddr>,
    pub upstream_cluster: Option<Arc<str>>,
    pub route_name: Option<Arc<str>>,
    pub listener: Option<Arc<str>>,
    pub filter_chain: Option<Arc<str>>,
    /// The policy that allowed or denied it.
    pub policy: Option<Arc<str>>,
    /// Why it was denied, or what failed.
    pub denied_reason: Option<String>,
    pub response_flags: ResponseFlags,
    pub connection_security_policy: ConnectionSecurity,
    /// From the downstream.
    pub bytes_received: u64,
    /// To the downstream.
    pub bytes_sent: u64,
    pub http: Option<HttpRecord>,
    /// Where the kernel took the connection from pod to pod.
    pub kernel_path: Option<KernelPathRecord>,
}

/// What the kernel adds to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelPathRecord {
    /// Smoothed.
    pub round_trip: Duration,
    pub retransmits: u32,
}

impl AccessRecord {
    /// A record with what every connection has; set the rest as it becomes known.
    pub fn new(direction: Direction, source: SocketAddr, original_destination: SocketAddr) -> Self {
        Self {
            start_time: SystemTime::now(),
            duration: Duration::ZERO,
            direction,
            protocol: Protocol::Tcp,
            source,
            source_workload: None,
            source_identity: None,
            original_destination,
            destination_workload: None,
            destination_identity: None,
            upstream_host: None,
            upstream_cluster: None,
            route_name: None,
            listener: None,
            filter_chain: None,
            policy: None,
            denied_reason: None,
            response_flags: ResponseFlags::NONE,
            connection_security_policy: ConnectionSecurity::None,
            bytes_received: 0,
            bytes_sent: 0,
            http: None,
            kernel_path: None,
        }
    }
}

enum Message {
    Record(Box<AccessRecord>),
    /// Write what came before this, then end.
    End,
}

/// Takes records. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// `None`: off.
    queue: Option<SyncSender<Message>>,
    dropped: Counter,
}

impl AccessLog {
    /// Writes nothing.
    pub fn off() -> Self {
        Self { queue: None, dropped: Counter::default() }
    }

    /// Starts the writer thread; `dropped` counts the lines that were lost.
    ///
    /// # Errors
    /// The file can't be opened, or the thread not started.
    pub fn start(
        format: AccessLogFormat,
        sink: &AccessLogSink,
        dropped: Counter,
    ) -> io::Result<(Self, AccessLogWriter)> {
        let out: Box<dyn Write + Send> = match (format, sink) {
            (AccessLogFormat::Off, _) => {
                return Ok((Self::off(), AccessLogWriter { queue: None, thread: None }));
            }
            (_, AccessLogSink::Stdout) => Box::new(io::stdout()),
            (_, AccessLogSink::File(path)) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Box::new(file.map_err(|error| {
                    io::Error::new(error.kind(), format!("access log {}: {error}", path.display()))
                })?)
            }
        };
        Self::start_on(format, out, dropped, QUEUE)
    }

    fn start_on(
        format: AccessLogFormat,
        out: Box<dyn Write + Send>,
        dropped: Counter,
        capacity: usize,
    ) -> io::Result<(Self, AccessLogWriter)> {
        let (queue, records) = sync_channel(capacity);
        let lost = dropped.clone();
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
            write_all(format, &records, BufWriter::with_capacity(64 << 10, out), &lost)
        })?;
        let writer = AccessLogWriter { queue: Some(queue.clone()), thread: Some(thread) };
        Ok((Self { queue: Some(queue), dropped }, writer))
    }

    /// Whether making a record is worth the work.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Hands a record over; never waits.
    pub fn log(&self, record: AccessRecord) {
        if let Some(queue) = &self.queue
            && queue.try_send(Message::Record(Box::new(record))).is_err()
        {
            self.dropped.inc();
        }
    }
}

/// The writer thread's end; close it at shutdown, after the last record.
#[derive(Debug)]
pub struct AccessLogWriter {
    queue: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
}

impl AccessLogWriter {
    /// Writes what is queued and ends the thread; `false` where that took longer
    /// than `deadline`. Blocks: not for an async worker thread.
    pub fn close(mut self, deadline: Duration) -> bool {
        let (Some(queue), Some(thread)) = (self.queue.take(), self.thread.take()) else {
            return true;
        };
        let until = Instant::now() + deadline;
        let mut ended = false;
        while !thread.is_finished() {
            // The queue may be full, or its reader stuck in a write.
            ended = ended || queue.try_send(Message::End).is_ok();
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        thread.join().is_ok()
    }
}

fn write_all(
    format: AccessLogFormat,
    records: &Receiver<Message>,
    mut out: BufWriter<Box<dyn Write + Send>>,
    lost: &Counter,
) {
    let mut line = Vec::with_capacity(1024);
    let mut failing = false;
    let mut unflushed = 0;
    loop {
        let message = match records.try_recv() {
            Err(TryRecvError::Empty) if unflushed > 0 => {
                report(out.flush(), unflushed, lost, &mut failing);
                unflushed = 0;
                std::thread::sleep(REST);
                continue;
            }
            Err(TryRecvError::Empty) => match records.recv_timeout(Duration::from_secs(3600)) {
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => message,
            },
            Err(TryRecvError::Disconnected) => break,
            Ok(message) => message,
        };
        let Message::Record(record) = message else { break };
        line.clear();
        match format {
            AccessLogFormat::Json => format::json(&record, &mut line),
            AccessLogFormat::Text | AccessLogFormat::Off => format::text(&record, &mut line),
        }
        unflushed += 1;
        let written = out.write_all(&line);
        if written.is_err() {
            report(written, unflushed, lost, &mut failing);
            unflushed = 0;
        }
    }
    report(out.flush(), unflushed, lost, &mut failing);
}

/// Says once that writing fails, and once that it works again.
fn report(result: io::Result<()>, lines: u64, lost: &Counter, failing: &mut bool) {
    match result {
        Ok(()) => *failing = *failing && lines == 0,
        Err(error) => {
            lost.inc_by(lines);
            if !*failing {
                tracing::error!(%error, "access log lines are lost: they can't be written");
            }
            *failing = true;
        }
    }
}

#[cfg(test)]
mod tests;

//! The loads.

/// Which of the origin's ports a load is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Port {
    Http1,
    Http2,
    Grpc,
    /// Reads to the end.
    Sink,
    /// Writes for ever.
    Source,
}

impl Port {
    pub(crate) const ALL: [Self; 5] =
        [Self::Http1, Self::Http2, Self::Grpc, Self::Sink, Self::Source];

    /// On the origin.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Http1 => 8080,
            Self::Http2 => 8081,
            Self::Grpc => 8082,
            Self::Sink => 9000,
            Self::Source => 9001,
        }
    }

    /// Whether it speaks HTTP.
    pub(crate) fn is_http(self) -> bool {
        !matches!(self, Self::Sink | Self::Source)
    }

    /// What plug-ins call it.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Sink => "sink",
            Self::Source => "source",
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Request,
    Mebibyte,
}

/// One load, as `peer drive` takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) port: Port,
    pub(crate) unit: Unit,
    pub(crate) arguments: &'static [&'static str],
    /// Part of the short run.
    pub(crate) quick: bool,
}

const fn load(
    name: &'static str,
    title: &'static str,
    port: Port,
    arguments: &'static [&'static str],
) -> Workload {
    Workload { name, title, port, unit: Unit::Request, arguments, quick: false }
}

const fn bulk(
    name: &'static str,
    title: &'static str,
    port: Port,
    arguments: &'static [&'static str],
) -> Workload {
    Workload { name, title, port, unit: Unit::Mebibyte, arguments, quick: false }
}

const fn quick(load: Workload) -> Workload {
    Workload { quick: true, ..load }
}

/// All of them, in the order of the report.
pub(crate) const ALL: &[Workload] = &[
    load("http1-1", "HTTP/1.1, 1 connection", Port::Http1, &["http1"]),
    quick(load(
        "http1-16",
        "HTTP/1.1, 16 connections",
        Port::Http1,
        &["http1", "--connections", "16"],
    )),
    load("http1-64", "HTTP/1.1, 64 connections", Port::Http1, &["http1", "--connections", "64"]),
    quick(load(
        "http1-rate-800",
        "HTTP/1.1, 800 requests/s on 16 connections, latency from the intended time",
        Port::Http1,
        &["http1", "--connections", "16", "--rate", "800"],
    )),
    load(
        "http1-1k",
        "HTTP/1.1, 1 KiB bodies, 16 connections",
        Port::Http1,
        &["http1", "--connections", "16", "--path", "/1k"],
    ),
    load(
        "http1-64k",
        "HTTP/1.1, 64 KiB bodies, 16 connections",
        Port::Http1,
        &["http1", "--connections", "16", "--path", "/64k"],
    ),
    load(
        "http1-1m",
        "HTTP/1.1, 1 MiB bodies, 4 connections",
        Port::Http1,
        &["http1", "--connections", "4", "--path", "/1m"],
    ),
    quick(load(
        "connections",
        "connect, GET, close; 16 at a time",
        Port::Http1,
        &["fresh", "--connections", "16"],
    )),
    quick(load(
        "http2",
        "HTTP/2, 4 connections of 16 streams",
        Port::Http2,
        &["http2", "--connections", "4", "--streams", "16"],
    )),
    load(
        "grpc-unary",
        "gRPC unary, 4 connections of 16 calls",
        Port::Grpc,
        &["grpc-unary", "--connections", "4", "--streams", "16"],
    ),
    load(
        "grpc-stream",
        "gRPC, messages back and forth on 4 connections of 16 calls",
        Port::Grpc,
        &["grpc-stream", "--connections", "4", "--streams", "16"],
    ),
    quick(bulk("stream-up-1", "1 TCP stream from the client", Port::Sink, &["up"])),
    bulk("stream-up-4", "4 TCP streams from the client", Port::Sink, &["up", "--connections", "4"]),
    bulk("stream-down-1", "1 TCP stream to the client", Port::Source, &["down"]),
    bulk(
        "stream-down-4",
        "4 TCP streams to the client",
        Port::Source,
        &["down", "--connections", "4"],
    ),
];

/// The one of that name.
pub(crate) fn named(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|load| load.name == name)
}

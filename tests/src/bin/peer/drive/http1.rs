//! HTTP/1.1 with as little of a client as can tell whether the answer is right.

use std::{io, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Pace, Plan, Tally, other, turn};

const HEAD_MAX_BYTES: usize = 16 << 10;

/// The plan's connections, each after an answer that is not counted; what fails is.
pub(super) async fn open(plan: &Plan, tally: &mut Tally) -> Vec<Connection> {
    let request = request(plan, "keep-alive");
    let mut opened = Vec::new();
    for _ in 0..plan.connections {
        let asked = async {
            let mut connection = Connection::open(plan).await?;
            let answer = connection.ask(&request).await?;
            Ok::<_, io::Error>((!answer.last).then_some(connection))
        };
        match asked.await {
            Ok(connection) => opened.extend(connection),
            Err(error) => tally.failed(&error),
        }
    }
    opened
}

pub(super) async fn kept(
    plan: &Plan,
    end: Instant,
    mut pace: Option<Pace>,
    mut connection: Option<Connection>,
) -> Tally {
    let mut tally = Tally::default();
    let request = request(plan, "keep-alive");
    loop {
        let since = turn(&mut pace).await;
        if Instant::now() >= end {
            return tally;
        }
        let asked = async {
            if connection.is_none() {
                connection = Some(Connection::open(plan).await?);
            }
            match &mut connection {
                Some(open) => open.ask(&request).await,
                None => Err(other("no connection")),
            }
        };
        match asked.await {
            Ok(Answer { bytes, last }) => {
                tally.answered(since, bytes);
                if last {
                    connection = None;
                }
            }
            Err(error) => {
                tally.failed(&error);
                connection = None;
                // A server that refuses at once must not make this spin.
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    }
}

pub(super) async fn fresh(plan: &Plan, end: Instant, mut pace: Option<Pace>) -> Tally {
    let mut tally = Tally::default();
    let request = request(plan, "close");
    loop {
        let since = turn(&mut pace).await;
        if Instant::now() >= end {
            return tally;
        }
        let asked = async {
            let mut connection = Connection::open(plan).await?;
            let Answer { bytes, .. } = connection.ask(&request).await?;
            // The server's FIN: TIME_WAIT is at its side, so that ports do not run out here.
            connection.ended().await?;
            Ok::<_, io::Error>(bytes)
        };
        match asked.await {
            Ok(bytes) => tally.answered(since, bytes),
            Err(error) => {
                tally.failed(&error);
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    }
}

fn request(plan: &Plan, connection: &str) -> Vec<u8> {
    let Plan { path, host, .. } = plan;
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: {connection}\r\n\r\n").into_bytes()
}

struct Answer {
    /// Of the body.
    bytes: usize,
    /// The server closes the connection.
    last: bool,
}

pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(plan: &Plan) -> io::Result<Self> {
        let stream = TcpStream::connect(plan.address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(128 << 10) })
    }

    /// The answer, which must be a 200 with a length.
    async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if self.buffer.len() > HEAD_MAX_BYTES {
                return Err(other("the answer's head is too long"));
            }
        };
        let answer = answer(&self.buffer[..head])?;
        let mut left = (head + answer.bytes).saturating_sub(self.buffer.len());
        while left > 0 {
            self.buffer.clear();
            let read = self.stream.read_buf(&mut self.buffer).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = left.saturating_sub(read);
        }
        Ok(answer)
    }

    async fn ended(mut self) -> io::Result<()> {
        self.buffer.clear();
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Ok(()),
            _ => Err(other("there is something after the answer")),
        }
    }
}

fn answer(head: &[u8]) -> io::Result<Answer> {
    let head = std::str::from_utf8(head).map_err(|_| other("the head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(other(format!("answered `{status}`")));
    }
    let (mut bytes, mut last) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            bytes = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            last = value.trim().eq_ignore_ascii_case("close");
        }
    }
    let bytes = bytes.ok_or_else(|| other("no content-length"))?;
    Ok(Answer { bytes, last })
}

//! Bulk transfer in both directions at once, checked by SHA-256.
//!
//! A client sends two big-endian `u64` (bytes up, bytes down), then its data, then
//! FIN; the server sends its data, the digest of what it received, then FIN.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    process::ExitCode,
    sync::{Arc, Barrier},
    thread,
    time::Instant,
};

use sha2::{Digest, Sha256};

use crate::again::Again;

const CHUNK: usize = 1 << 16;

/// A stream of bytes that no compression or repetition explains.
struct Noise(u64);

impl Noise {
    const UP: Self = Self(0x9e37_79b9_7f4a_7c15);
    const DOWN: Self = Self(0xd1b5_4a32_d192_ed03);

    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// Writes `total` bytes of `noise`; returns their digest.
fn send(stream: &mut impl Write, mut noise: Noise, total: u64) -> io::Result<Vec<u8>> {
    let (mut digest, mut buffer, mut left) = (Sha256::new(), vec![0; CHUNK], total);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        noise.fill(&mut buffer[..length]);
        digest.update(&buffer[..length]);
        stream.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    Ok(digest.finalize().to_vec())
}

/// Reads up to `limit` bytes, or to the end; returns how many and their digest.
fn receive(stream: impl Read, limit: u64) -> io::Result<(u64, Vec<u8>)> {
    let (mut stream, mut digest) = (stream.take(limit), Sha256::new());
    let (mut buffer, mut total) = (vec![0; CHUNK], 0);
    loop {
        let after = |error| io::Error::other(format!("{error} after {total} bytes"));
        match stream.read(&mut buffer).map_err(after)? {
            0 => return Ok((total, digest.finalize().to_vec())),
            length => {
                digest.update(&buffer[..length]);
                total += length as u64;
            }
        }
    }
}

/// Serves one connection.
pub(crate) fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut header = [0; 16];
    Again(&stream).read_exact(&mut header)?;
    let down = u64::from_be_bytes(header[8..].try_into().expect("eight bytes"));
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || send(&mut writer, Noise::DOWN, down));
    let (_, digest) = receive(Again(&stream), u64::MAX)?;
    sender.join().expect("the sender does not panic")?;
    stream.write_all(&digest)?;
    stream.shutdown(Shutdown::Write)
}

/// Runs `streams` transfers at once against a server.
pub(crate) fn transfer(address: &str, up: &str, down: &str, streams: &str) -> ExitCode {
    let (up, down) = (number(up), number(down));
    at_once(address, streams, move |address| one(address, up, down))
}

/// How an echo is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// The server speaks first.
    greeting: bool,
    /// A blocking read that says EAGAIN is made again.
    again: bool,
}

impl How {
    pub(crate) fn of(flags: &[&str]) -> Self {
        let has = |flag: &str| flags.contains(&flag);
        Self { greeting: has("--greeting"), again: has("--again") }
    }
}

/// Runs `streams` echoes of `bytes` at once; all connections are open before the first
/// sends.
pub(crate) fn echoed(address: &str, bytes: &str, streams: &str, how: How) -> ExitCode {
    let bytes = number(bytes);
    let streams_count = usize::try_from(number(streams)).expect("a number of streams");
    let all = Arc::new(Barrier::new(streams_count));
    at_once(address, streams, move |address| {
        let stream = TcpStream::connect(address);
        if all.wait().is_leader() {
            println!("open");
        }
        echo(stream?, bytes, how)
    })
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

fn at_once(
    address: &str,
    streams: &str,
    one: impl Fn(&str) -> io::Result<()> + Clone + Send + 'static,
) -> ExitCode {
    let start = Instant::now();
    let running: Vec<_> = (0..number(streams))
        .map(|_| {
            let (address, one) = (address.to_owned(), one.clone());
            thread::spawn(move || one(&address))
        })
        .collect();
    let mut failed = 0;
    for result in running {
        match result.join().expect("a stream does not panic") {
            Ok(()) => {}
            Err(error) => {
                eprintln!("{address}: {error}");
                failed += 1;
            }
        }
    }
    println!("{{\"failed\":{failed},\"seconds\":{:.3}}}", start.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn echo(stream: TcpStream, bytes: u64, how: How) -> io::Result<()> {
    let read = stream.try_clone()?;
    let read: Box<dyn Read + '_> = if how.again { Box::new(Again(&read)) } else { Box::new(&read) };
    let mut reader = BufReader::with_capacity(CHUNK, read);
    if how.greeting {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        check(line.starts_with("220 "), &format!("greeted with {line:?}"))?;
    }
    let mut writer = stream;
    let sender = thread::spawn(move || {
        let digest = send(&mut writer, Noise::UP, bytes)?;
        writer.shutdown(Shutdown::Write)?;
        Ok::<_, io::Error>(digest)
    });
    let (received, got) = receive(reader, u64::MAX)?;
    let sent = sender.join().expect("the sender does not panic");
    let sent = sent.map_err(|e| io::Error::other(format!("{e} after {received} bytes")))?;
    check(received == bytes, &format!("{received} of {bytes} bytes came back"))?;
    check(got == sent, "what came back was damaged")
}

fn check(holds: bool, what: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(what)) }
}

fn one(address: &str, up: u64, down: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&[up.to_be_bytes(), down.to_be_bytes()].concat())?;
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || {
        let digest = send(&mut writer, Noise::UP, up)?;
        writer.shutdown(Shutdown::Write)?;
        Ok::<_, io::Error>(digest)
    });
    let (received, got) = receive(Again(&stream), down)?;
    let sent = sender.join().expect("the sender does not panic")?;
    let expected = send(&mut io::sink(), Noise::DOWN, down)?;
    let mut theirs = Vec::new();
    Again(&stream).read_to_end(&mut theirs)?;
    check(received == down, &format!("{received} of {down} bytes came down"))?;
    check(got == expected, "what came down was damaged")?;
    check(theirs == sent, "what went up was damaged or cut short")
}

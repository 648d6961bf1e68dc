//! A closed-loop HTTP/1.1 load and a bulk transfer, for quick figures.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use crate::again::Again;

/// What a worker does with its connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Uses it again.
    KeepAlive,
    /// Has it closed by the server, and opens another.
    Fresh,
}

/// Runs the load and prints `{requests, errors, seconds, p50_us, p99_us}`.
pub(crate) fn run(
    address: &str,
    host: &str,
    connections: &str,
    seconds: &str,
    kind: Kind,
) -> ExitCode {
    let connections: usize = connections.parse().expect("a number of connections");
    let length = Duration::from_secs_f64(seconds.parse().expect("a number of seconds"));
    let start = Instant::now();
    let workers: Vec<_> = (0..connections)
        .map(|_| {
            let (address, host) = (address.to_owned(), host.to_owned());
            thread::spawn(move || worker(&address, &host, start + length, kind))
        })
        .collect();
    let (mut latencies, mut errors) = (Vec::new(), 0);
    for worker in workers {
        let (mine, error) = worker.join().expect("a worker does not panic");
        latencies.extend(mine);
        if let Some(error) = error {
            eprintln!("{address}: {error}");
            errors += 1;
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |per_cent: usize| {
        let index = (latencies.len() * per_cent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(0, Duration::as_micros)
    };
    println!(
        "{{\"requests\":{},\"errors\":{errors},\"seconds\":{elapsed:.3},\"p50_us\":{},\"p99_us\":{}}}",
        latencies.len(),
        at(50),
        at(99)
    );
    if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn worker(
    address: &str,
    host: &str,
    end: Instant,
    kind: Kind,
) -> (Vec<Duration>, Option<io::Error>) {
    let mut latencies = Vec::new();
    let result = match kind {
        Kind::KeepAlive => keep_alive(address, host, end, &mut latencies),
        Kind::Fresh => fresh(address, host, end, &mut latencies),
    };
    (latencies, result.err())
}

fn keep_alive(
    address: &str,
    host: &str,
    end: Instant,
    latencies: &mut Vec<Duration>,
) -> io::Result<()> {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let (mut reader, mut writer) = connect(address)?;
    while Instant::now() < end {
        let start = Instant::now();
        writer.write_all(request.as_bytes())?;
        read_answer(&mut reader)?;
        latencies.push(start.elapsed());
    }
    Ok(())
}

fn fresh(address: &str, host: &str, end: Instant, latencies: &mut Vec<Duration>) -> io::Result<()> {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    while Instant::now() < end {
        let start = Instant::now();
        let (mut reader, mut writer) = connect(address)?;
        writer.write_all(request.as_bytes())?;
        read_answer(&mut reader)?;
        // The server's FIN: TIME_WAIT is at its side, so that ports do not run out here.
        io::copy(&mut reader, &mut io::sink())?;
        latencies.push(start.elapsed());
    }
    Ok(())
}

fn connect(address: &str) -> io::Result<(BufReader<TcpStream>, TcpStream)> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok((BufReader::new(stream.try_clone()?), stream))
}

fn read_answer(reader: &mut impl BufRead) -> io::Result<()> {
    let (mut line, mut length, mut first) = (String::new(), 0u64, true);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first && line.split(' ').nth(1) != Some("200") {
            return Err(io::Error::other(format!("answered {}", line.trim_end())));
        }
        first = false;
        if line == "\r\n" {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = reader.take(length);
    io::copy(&mut body, &mut io::sink()).map(drop)
}

/// Counts what comes until the peer's FIN, and says it.
pub(crate) fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    let mut bytes = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return writeln!(stream, "{bytes}"),
            length => bytes += length as u64,
        }
    }
}

/// Sends as much as it can for `seconds` and prints `{bytes, seconds}`, counted when all
/// has arrived.
pub(crate) fn blast(address: &str, seconds: &str) -> ExitCode {
    let length = Duration::from_secs_f64(seconds.parse().expect("a number of seconds"));
    let transfer = || -> io::Result<(u64, Duration)> {
        let mut stream = TcpStream::connect(address)?;
        let piece = vec![0x5a; 128 << 10];
        let (start, mut sent) = (Instant::now(), 0u64);
        while start.elapsed() < length {
            stream.write_all(&piece)?;
            sent += piece.len() as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        Again(&stream).read_to_string(&mut answer)?;
        if answer.trim().parse() == Ok(sent) {
            Ok((sent, start.elapsed()))
        } else {
            Err(io::Error::other(format!("sent {sent} bytes, of which arrived {answer}")))
        }
    };
    match transfer() {
        Ok((bytes, took)) => {
            println!("{{\"bytes\":{bytes},\"seconds\":{:.4}}}", took.as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{address}: {error}");
            ExitCode::FAILURE
        }
    }
}

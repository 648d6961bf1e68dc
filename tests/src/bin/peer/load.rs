//! A closed-loop HTTP/1.1 load for quick figures, and where bulk ends.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// Runs the load and prints `{requests, errors, seconds, p50_us, p99_us}`.
pub(crate) fn run(address: &str, host: &str, connections: &str, seconds: &str) -> ExitCode {
    let connections: usize = connections.parse().expect("a number of connections");
    let length = Duration::from_secs_f64(seconds.parse().expect("a number of seconds"));
    let start = Instant::now();
    let workers: Vec<_> = (0..connections)
        .map(|_| {
            let (address, host) = (address.to_owned(), host.to_owned());
            thread::spawn(move || worker(&address, &host, start + length))
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

fn worker(address: &str, host: &str, end: Instant) -> (Vec<Duration>, Option<io::Error>) {
    let mut latencies = Vec::new();
    let result = keep_alive(address, host, end, &mut latencies);
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
        let last = read_answer(&mut reader)?;
        latencies.push(start.elapsed());
        if last {
            (reader, writer) = connect(address)?;
        }
    }
    Ok(())
}

fn connect(address: &str) -> io::Result<(BufReader<TcpStream>, TcpStream)> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok((BufReader::new(stream.try_clone()?), stream))
}

/// Whether it was the connection's last.
fn read_answer(reader: &mut impl BufRead) -> io::Result<bool> {
    let (mut line, mut length, mut first) = (String::new(), 0u64, true);
    let mut last = false;
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
        last |= lower.trim_end() == "connection: close";
    }
    let mut body = reader.take(length);
    io::copy(&mut body, &mut io::sink())?;
    Ok(last)
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

/// Opens so many connections, one after the other, and keeps them until it is ended.
pub(crate) fn hold(address: &str, count: &str, asks: bool) -> ExitCode {
    let count: usize = count.parse().expect("a number of connections");
    let one = |n: usize| -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address)?;
        if asks {
            // On a busy machine, too.
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.write_all(format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes())?;
            if read_answer(&mut BufReader::new(&stream))? {
                return Err(io::Error::other(format!("the {n}th is not kept")));
            }
        }
        Ok(stream)
    };
    let held: io::Result<Vec<_>> = (0..count).map(one).collect();
    match held {
        Ok(_held) => {
            println!("open");
            loop {
                thread::park();
            }
        }
        Err(error) => {
            eprintln!("{address}: {error}");
            ExitCode::FAILURE
        }
    }
}

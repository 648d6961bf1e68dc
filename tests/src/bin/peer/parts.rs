//! Sockets that are used in ways that few are.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::again::Again;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers one line, and leaves its client something to read.
pub(crate) fn once(mut stream: TcpStream) -> io::Result<()> {
    let mut line = String::new();
    if BufReader::new(Again(&stream)).read_line(&mut line)? == 0 {
        return Ok(());
    }
    stream.write_all(format!("{line}unread\n").as_bytes())?;
    loop {
        thread::park();
    }
}

/// Says a line to each of `addresses`, `times` times.
pub(crate) fn parts(times: &str, addresses: &[&str]) -> ExitCode {
    let addresses: Vec<SocketAddr> =
        addresses.iter().map(|address| address.parse().expect("an address with a port")).collect();
    let family = Domain::for_address(*addresses.first().expect("an address"));
    let socket = Socket::new(family, Type::STREAM, None).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    for round in 0..times.parse::<u32>().expect("a number") {
        for address in &addresses {
            if let Err(error) = says(&socket, *address, &format!("{round} for {address}\n")) {
                eprintln!("{round} for {address}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Sends bytes one by one, and expects them back.
pub(crate) fn crumbs(address: &str, count: &str) -> ExitCode {
    let byte = |n: usize| (n % 251) as u8;
    let count = count.parse::<usize>().expect("a number");
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let mut up = stream.try_clone().expect("clone the socket");
    let sender = thread::spawn(move || {
        (0..count).try_for_each(|n| up.write_all(&[byte(n)]))?;
        up.shutdown(Shutdown::Write)
    });
    let mut heard = Vec::new();
    let read = Again(&stream).read_to_end(&mut heard);
    let sent = sender.join().expect("the sender");
    let expected: Vec<u8> = (0..count).map(byte).collect();
    if read.is_ok() && sent.is_ok() && heard == expected {
        return ExitCode::SUCCESS;
    }
    eprintln!("sent: {sent:?}; read {} bytes: {read:?}", heard.len());
    ExitCode::FAILURE
}

fn says(mut socket: &Socket, to: SocketAddr, line: &str) -> io::Result<()> {
    socket.connect(&to.into())?;
    socket.write_all(line.as_bytes())?;
    let mut heard = vec![0; line.len()];
    let (mut length, until) = (0, Instant::now() + PATIENCE);
    while length < heard.len() {
        match socket.read(&mut heard[length..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(more) => length += more,
            // See `Again`.
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {}
            Err(error) => return Err(error),
        }
    }
    if heard != line.as_bytes() {
        return Err(io::Error::other(format!("heard {}", heard.escape_ascii())));
    }
    disconnect(socket)
}

fn disconnect(socket: &Socket) -> io::Result<()> {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `nobody`.
    match unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

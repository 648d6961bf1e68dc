//! One connection, spoken on through stdin and stdout.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream},
    os::fd::AsRawFd,
    process::ExitCode,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use socket2::{Domain, Socket, Type};

use crate::again::Again;

/// How to dial.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Usual,
    /// An IPv4 address by an IPv6 socket.
    Mapped,
    /// The SYN leaves with the first words.
    Late,
}

fn dial(address: &str, how: How) -> io::Result<TcpStream> {
    let mut address: SocketAddr = address.parse().expect("an address with a port");
    if let (How::Mapped, SocketAddr::V4(v4)) = (how, address) {
        let ip: Ipv6Addr = v4.ip().to_ipv6_mapped();
        address = SocketAddrV6::new(ip, v4.port(), 0, 0).into();
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if how == How::Late {
        for option in [libc::TCP_FASTOPEN_CONNECT, libc::TCP_FASTOPEN_NO_COOKIE] {
            let on: libc::c_int = 1;
            // SAFETY: the pointer and the length are those of `on`.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    option,
                    (&raw const on).cast(),
                    size_of_val(&on) as libc::socklen_t,
                )
            };
            if set != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// Connects and prints what the kernel says about both ends.
pub(crate) fn asks(address: &str) -> ExitCode {
    match dial(address, How::Usual).and_then(|s| Ok((s.peer_addr()?, s.local_addr()?))) {
        Ok((peer, local)) => {
            println!("peer {peer} local {local}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(4)
        }
    }
}

/// Listens until the other side ends the connection, or for five seconds, `times` times.
pub(crate) fn hears(address: &str, times: &str) -> ExitCode {
    for _ in 0..times.parse::<usize>().expect("a number") {
        let mut heard = Vec::new();
        let end = match dial(address, How::Usual) {
            Err(_) => "refused",
            Ok(mut stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set a timeout");
                match stream.read_to_end(&mut heard) {
                    Ok(_) => "closed",
                    Err(error) if error.kind() == ErrorKind::WouldBlock => "silent",
                    Err(_) => "reset",
                }
            }
        };
        let heard = String::from_utf8_lossy(&heard);
        println!("{}", serde_json::json!({ "heard": heard, "end": end }));
    }
    ExitCode::SUCCESS
}

/// Says whenever another answers, until it is ended.
pub(crate) fn watches(address: &str) -> ExitCode {
    let mut last = String::new();
    loop {
        let mut heard = String::new();
        let connection = dial(address, How::Usual);
        // A connection that fails hears nothing, which is an answer too.
        let _ = connection.and_then(|mut stream| stream.read_to_string(&mut heard));
        // What `peer who` says of itself, not of who asked.
        let who = heard.trim_end().rsplit(", ").next().unwrap_or_default();
        if who != last {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            println!("{:.6} {who}", now.as_secs_f64());
            who.clone_into(&mut last);
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Copies both ways until the other side ends the connection.
pub(crate) fn talk(address: &str, how: How) -> ExitCode {
    let stream = match dial(address, how) {
        Ok(stream) => stream,
        Err(error) => {
            eprintln!("{address}: {error}");
            return ExitCode::from(4);
        }
    };
    let mut up = stream.try_clone().expect("clone the socket");
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if up.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
        // Fails where the peer is gone already, which the reader sees.
        let _ = up.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; 1 << 16];
    loop {
        match Again(&stream).read(&mut buffer) {
            Ok(0) => return ExitCode::SUCCESS,
            Ok(length) => {
                let mut stdout = io::stdout();
                if stdout.write_all(&buffer[..length]).and_then(|()| stdout.flush()).is_err() {
                    return ExitCode::SUCCESS;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                eprintln!("{address}: {error}");
                return ExitCode::from(3);
            }
        }
    }
}

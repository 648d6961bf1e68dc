//! One connection, spoken on through stdin and stdout.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream},
    process::ExitCode,
    thread,
};

use socket2::{Domain, Socket, Type};

use crate::again::Again;

fn dial(address: &str, mapped: bool) -> io::Result<TcpStream> {
    let mut address: SocketAddr = address.parse().expect("an address with a port");
    if let (true, SocketAddr::V4(v4)) = (mapped, address) {
        let ip: Ipv6Addr = v4.ip().to_ipv6_mapped();
        address = SocketAddrV6::new(ip, v4.port(), 0, 0).into();
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// Connects and prints what the kernel says about both ends.
pub(crate) fn asks(address: &str) -> ExitCode {
    match dial(address, false).and_then(|s| Ok((s.peer_addr()?, s.local_addr()?))) {
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

/// Copies both ways until the other side ends the connection.
pub(crate) fn talk(address: &str, mapped: bool) -> ExitCode {
    let stream = match dial(address, mapped) {
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

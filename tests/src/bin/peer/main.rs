//! A program for pods: the servers and clients that Debian has no package for.
//!
//! Servers listen on all addresses of both families and serve each connection on a
//! thread of its own.

mod again;
mod corpus;
mod digest;
mod drive;
mod flood;
mod load;
mod parts;
mod talk;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::ExitCode,
    thread,
};

const HELP: &str = "usage:
  peer echo PORT               sends back what it gets; half-closes when its peer does
  peer greet PORT              speaks first (`220 ready`), then echoes
  peer who PORT                says `you are ADDRESS, I am ADDRESS` and closes
  peer mute PORT               accepts and never reads
  peer digest PORT             the other side of `transfer`
  peer once PORT               sends back the first line and `unread`; then neither reads nor closes
  peer talk ADDRESS [--mapped|--late]
                               stdin and stdout over one connection; exits with 0 after
                               FIN, 3 after RST, 4 when it cannot connect; `--mapped` dials
                               an IPv4 address by an IPv6 socket, `--late` sends its SYN
                               with the first words
  peer hears ADDRESS TIMES     connects that often, one after the other; prints what it heard
                               and how each ended, a line of JSON each
  peer watches ADDRESS         connects again and again; prints the time (in seconds) and
                               what it heard whenever that changes
  peer asks ADDRESS            connects and prints getpeername and getsockname
  peer parts TIMES ADDRESS...  one socket for one connection after the other, to each address
                               so often: says a line, expects it back, and disconnects
  peer transfer ADDRESS UP DOWN STREAMS
                               moves bytes both ways at once on each stream, checks SHA-256
  peer echoed ADDRESS BYTES STREAMS [--greeting] [--again]
                               sends bytes to an echo server on each stream while it reads
                               them back, half-closes, checks SHA-256 and the end; says
                               `open` when all are; with `--greeting` it waits for the
                               server's first line before; with `--again` it asks again
                               where a blocking read says EAGAIN
  peer crumbs ADDRESS COUNT    sends so many bytes one by one, and expects them back
  peer load ADDRESS HOST CONNECTIONS SECONDS
                               GET / over keep-alive connections; prints JSON
  peer hold ADDRESS COUNT [--asked]
                               opens so many connections, says `open` and keeps them; with
                               `--asked` GET / was answered on each
  peer sink PORT               reads to the end and answers how many bytes there were
  peer source PORT             sends until nobody reads any more
  peer grpc PORT               sends back each message of each gRPC call
  peer drive KIND ADDRESS ...  a load for comparisons: see `peer drive --help`
  peer witness PORT NAME       writes down each request as it came, a line of JSON, and answers
                               as its header `x-answer` says
  peer questions FILE          asks what the file's scripts say and prints what came
  peer flood KIND ADDRESS      a flood of HTTP/2 frames: rapid-reset, continuation,
                               empty-continuation, settings, ping, hpack-bomb, zero-window
  peer abandon                 makes a test bed with a pod and dies without removing it
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["echo", port] => serve(port, echo),
        ["greet", port] => serve(port, |mut stream| {
            stream.write_all(b"220 ready\r\n")?;
            echo(stream)
        }),
        ["who", port] => serve(port, |mut stream| {
            let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
            let plain = |a: std::net::SocketAddr| (a.ip().to_canonical(), a.port());
            let ((peer, peer_port), (local, local_port)) = (plain(peer), plain(local));
            writeln!(stream, "you are {peer} {peer_port}, I am {local} {local_port}")?;
            // What is left to read when a socket is closed resets it, and the answer is lost.
            stream.shutdown(Shutdown::Write)?;
            std::io::copy(&mut stream, &mut std::io::sink()).map(|_| ())
        }),
        ["mute", port] => serve(port, |stream| {
            thread::park();
            drop(stream);
            Ok(())
        }),
        ["digest", port] => serve(port, digest::serve),
        ["once", port] => serve(port, parts::once),
        ["crumbs", address, count] => parts::crumbs(address, count),
        ["parts", times, ref addresses @ ..] => parts::parts(times, addresses),
        ["hold", address, count] => load::hold(address, count, false),
        ["hold", address, count, "--asked"] => load::hold(address, count, true),
        ["sink", port] => serve(port, load::sink),
        ["source", port] => serve(port, drive::source),
        ["grpc", port] => drive::serve_grpc(port),
        ["drive", ref rest @ ..] => drive::run(rest),
        ["talk", address] => talk::talk(address, talk::How::Usual),
        ["talk", address, "--mapped"] => talk::talk(address, talk::How::Mapped),
        ["talk", address, "--late"] => talk::talk(address, talk::How::Late),
        ["asks", address] => talk::asks(address),
        ["watches", address] => talk::watches(address),
        ["hears", address, times] => talk::hears(address, times),
        ["transfer", address, up, down, streams] => digest::transfer(address, up, down, streams),
        ["echoed", address, bytes, streams, ref how @ ..] => {
            digest::echoed(address, bytes, streams, digest::How::of(how))
        }
        ["load", address, host, connections, seconds] => {
            load::run(address, host, connections, seconds)
        }
        ["witness", port, name] => {
            // It lives as long as the program.
            let name: &'static str = String::leak(name.to_owned());
            serve(port, move |stream| corpus::witness::serve(stream, name))
        }
        ["questions", file] => corpus::questions::run(file),
        ["flood", kind, address] => flood::run(kind, address),
        ["abandon"] => abandon(),
        _ => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
    }
}

fn serve(
    port: &str,
    handle: impl Fn(TcpStream) -> io::Result<()> + Copy + Send + 'static,
) -> ExitCode {
    let port: u16 = port.parse().expect("a port number");
    // `[::]` takes IPv4 as well: Linux's default for `bindv6only` is 0.
    let listener = TcpListener::bind(("::", port)).expect("bind the port");
    // Room for a thousand clients at once: what std asks for overflows, and then the
    // kernel itself resets some.
    let backlog = nix::sys::socket::Backlog::new(4096).expect("a backlog");
    nix::sys::socket::listen(&listener, backlog).expect("listen");
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => drop(thread::spawn(move || {
                let peer = stream.peer_addr();
                if let Err(error) = handle(stream) {
                    complain(&format!("{peer:?}: {error}\n"));
                }
            })),
            Err(error) => complain(&format!("accept: {error}\n")),
        }
    }
    ExitCode::SUCCESS
}

/// In one write: pieces would fall into the lines of other threads where both streams are one
/// file, and a line that somebody counts would be none.
fn complain(line: &str) {
    let _ = io::stderr().write_all(line.as_bytes());
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match again::Again(&stream).read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn abandon() -> ExitCode {
    let bed = tests::Testbed::two_nodes("abandoned");
    let pod = bed.node(1).pod("orphan").start();
    let _echo = pod.serves("echo", 7);
    println!("{}", bed.run());
    io::stdout().flush().expect("tell the name");
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).expect("die");
    ExitCode::FAILURE
}

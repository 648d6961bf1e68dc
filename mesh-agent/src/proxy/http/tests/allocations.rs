//! What a proxied request costs the allocator: the number is the same on every machine.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use super::harness::{Mesh, Setup, mirror_upstream};

const REQUEST: &[u8] = b"GET /hello?q=1 HTTP/1.1\r\nhost: app.test\r\nuser-agent: test/1.0\r\n\
    accept: */*\r\nx-request-id: 2f1c2c6e-55cd-4c0a-8b5c-2d1c6b6a3a10\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nserver: test\r\ncontent-type: text/plain\r\n\
    content-length: 5\r\n\r\nhello";

/// Answers requests on one connection, in a thread of its own.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut filled) = ([0; 4096], 0);
        while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]) {
            filled += read;
            if buffer[..filled].ends_with(b"\r\n\r\n") {
                filled = 0;
                stream.write_all(RESPONSE).unwrap();
            }
        }
    });
    address
}

/// Asks so many times, one after the other.
fn ask(stream: &mut TcpStream, times: usize) {
    let mut buffer = [0; 4096];
    for _ in 0..times {
        stream.write_all(REQUEST).unwrap();
        let mut filled = 0;
        while !buffer[..filled].ends_with(b"\r\n\r\nhello") {
            let read = stream.read(&mut buffer[filled..]).unwrap();
            assert_ne!(read, 0, "the connection ended");
            filled += read;
        }
    }
}

/// Of one request on a connection that lives, to an upstream connection that lives; what
/// the client and the upstream take in their threads is not counted.
fn allocations_per_request() -> f64 {
    const TIMES: usize = 500;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mesh, stream) = runtime.block_on(async {
        let mesh = Mesh::new(Setup::new(upstream()));
        let stream = mesh.connect().await.stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        (mesh, stream)
    });
    let asked = || {
        let mut stream = stream.try_clone().unwrap();
        let asking = move || ask(&mut stream, TIMES);
        runtime.block_on(async { tokio::task::spawn_blocking(asking).await.unwrap() });
    };
    asked();
    let taken = allocation_counter::measure(asked).count_total;
    assert_eq!(mesh.connections(), 1);
    taken as f64 / TIMES as f64
}

#[test]
fn a_proxied_request_takes_few_allocations() {
    let taken = allocations_per_request();
    println!("{taken:.1} allocations a request");
    assert!(taken <= 28.0, "{taken:.1} allocations a request");
}

/// What a connection holds between requests, and how many pieces of it; both of its ends are in
/// this thread.
fn held_by_a_kept_connection(asks: bool) -> (i64, i64) {
    const CONNECTIONS: i64 = 50;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mesh = runtime.block_on(async { Mesh::new(Setup::new(mirror_upstream().await)) });
    let open = || async {
        let mut client = mesh.connect().await;
        if asks {
            client.ask(std::str::from_utf8(REQUEST).unwrap()).await;
        }
        client
    };
    // What is made once.
    let _first = runtime.block_on(async {
        let client = open().await;
        tokio::task::yield_now().await;
        client
    });
    let mut kept = Vec::with_capacity(64);
    let held = allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..CONNECTIONS {
                kept.push(open().await);
            }
            // The agent has nothing to do any more.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
    });
    (held.bytes_current / CONNECTIONS, held.count_current / CONNECTIONS)
}

#[test]
fn a_connection_that_waits_holds_little() {
    for (asks, most) in [(false, 24 << 10), (true, 48 << 10)] {
        let (bytes, pieces) = held_by_a_kept_connection(asks);
        println!("asked: {asks}: {bytes} bytes in {pieces} pieces");
        assert!(bytes <= most, "asked: {asks}: {bytes} bytes in {pieces} pieces");
    }
}

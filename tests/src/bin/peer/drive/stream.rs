//! Bulk over TCP, both ways. Who receives counts, so that nothing in a buffer is told.

use std::{
    io::{self, Write},
    net::{Shutdown, TcpStream as StdStream},
    time::Instant,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Plan, Tally, other};

const PIECE_BYTES: usize = 128 << 10;

/// Sends until `end` to `peer sink`, which says what has arrived.
pub(super) async fn up(plan: &Plan, end: Instant) -> Tally {
    let sent = async {
        let mut stream = TcpStream::connect(plan.address).await?;
        let piece = vec![0x5a; PIECE_BYTES];
        let mut sent = 0u64;
        while Instant::now() < end {
            stream.write_all(&piece).await?;
            sent += piece.len() as u64;
        }
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        match answer.trim().parse::<u64>() {
            Ok(arrived) if arrived == sent => Ok(sent),
            _ => Err(other(format!("sent {sent} bytes, of which arrived `{}`", answer.trim()))),
        }
    };
    tally(sent.await)
}

/// Reads until `end` from `peer source`.
pub(super) async fn down(plan: &Plan, end: Instant) -> Tally {
    let got = async {
        let mut stream = TcpStream::connect(plan.address).await?;
        // Some proxies dial only when the client has said something.
        stream.write_all(b"go").await?;
        let mut buffer = vec![0; PIECE_BYTES];
        let mut got = 0u64;
        while Instant::now() < end {
            match stream.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => got += length as u64,
            }
        }
        Ok(got)
    };
    tally(got.await)
}

fn tally(moved: io::Result<u64>) -> Tally {
    let mut tally = Tally::default();
    match moved {
        Ok(bytes) => tally.bytes = bytes,
        Err(error) => tally.failed(&error),
    }
    tally
}

/// `peer source PORT`: sends until nobody reads any more.
pub(crate) fn source(mut stream: StdStream) -> io::Result<()> {
    let piece = vec![0x5a; PIECE_BYTES];
    while stream.write_all(&piece).is_ok() {}
    // It is gone already: that is how every transfer ends.
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}

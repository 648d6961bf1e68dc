//! A server of HTTP/2 by hand: it sends what no library sends.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use super::harness::raw_upstream;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const WHOLE: u8 = END_STREAM | END_HEADERS;
pub(super) const PADDED: u8 = 8;

const PREFACE_BYTES: usize = 24;
/// Of what is sent without end.
const FLOOD_BYTES: usize = 512 << 10;

/// What a server does with a request.
pub(super) enum Act {
    /// Sends this.
    Says(Vec<u8>),
    /// And then this again and again.
    Floods(Vec<u8>, Vec<u8>),
    /// And then ends the connection.
    Leaves(Vec<u8>),
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as HPACK has them: literal, neither indexed nor by Huffman's code (RFC 7541 §6.2.2).
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            if text.len() < 127 {
                out.push(u8::try_from(text.len()).unwrap());
            } else {
                out.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    out.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                out.push(u8::try_from(rest).unwrap());
            }
            out.extend(text.as_bytes());
        }
    }
    out
}

/// A header block in one frame.
pub(super) fn head(flags: u8, stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

/// Does to the first request what `attack` says, whose stream it is told, and answers all others
/// as `well` says.
pub(super) async fn server(
    attack: impl Fn(u32) -> Act + Clone + Send + Sync + 'static,
    well: impl Fn(u32) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> SocketAddr {
    raw_upstream(move |stream, n| {
        let (attack, well) = (attack.clone(), well.clone());
        async move {
            // How it ends is the client's to judge.
            let _ = serve(stream, n == 0, attack, well).await;
        }
    })
    .await
}

async fn serve(
    stream: TcpStream,
    first: bool,
    attack: impl Fn(u32) -> Act,
    well: impl Fn(u32) -> Vec<u8>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let (told, mut requests) = mpsc::unbounded_channel();
    let reading = tokio::spawn(requests_of(read, told));
    write.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let (mut attacks, mut acknowledged) = (first, false);
    while let Some(stream) = requests.recv().await {
        // Its windows count from then on.
        if !std::mem::replace(&mut acknowledged, true) {
            write.write_all(&frame(SETTINGS, ACK, 0, &[])).await?;
        }
        if !std::mem::replace(&mut attacks, false) {
            write.write_all(&well(stream)).await?;
            continue;
        }
        match attack(stream) {
            Act::Says(bytes) => write.write_all(&bytes).await?,
            Act::Floods(bytes, again) => {
                write.write_all(&bytes).await?;
                flood(&mut write, &again).await?;
            }
            Act::Leaves(bytes) => {
                write.write_all(&bytes).await?;
                break;
            }
        }
    }
    reading.abort();
    Ok(())
}

async fn flood(write: &mut OwnedWriteHalf, again: &[u8]) -> std::io::Result<()> {
    let many = again.repeat((16 << 10) / again.len() + 1);
    for _ in 0..FLOOD_BYTES / many.len() {
        write.write_all(&many).await?;
    }
    Ok(())
}

/// Tells of each request that has ended; reads everything, whatever it is.
async fn requests_of(
    mut read: OwnedReadHalf,
    told: mpsc::UnboundedSender<u32>,
) -> std::io::Result<()> {
    preface(&mut read).await?;
    loop {
        let _ = told.send(request(&mut read).await?);
    }
}

/// What a client says first.
pub(super) async fn preface(read: &mut OwnedReadHalf) -> std::io::Result<()> {
    read.read_exact(&mut [0; PREFACE_BYTES]).await.map(drop)
}

/// Reads up to the end of the next request; its stream.
pub(super) async fn request(read: &mut OwnedReadHalf) -> std::io::Result<u32> {
    loop {
        let mut prefix = [0; 9];
        read.read_exact(&mut prefix).await?;
        let [a, b, c, kind, flags, stream @ ..] = prefix;
        let length = u32::from_be_bytes([0, a, b, c]);
        read.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await?;
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Ok(u32::from_be_bytes(stream));
        }
    }
}

//! Compressed bodies on their way: at once, and within bounds. What heads say is for the
//! differential corpus to show.

use std::sync::Arc;

use http::HeaderName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
};

use super::harness::{Mesh, Setup, eventually, raw_upstream, read_head, within};
use crate::{
    codec::compression::{Decoder, Encoder},
    model::{
        compression::{
            Coding, Compressible, Compressor, CompressorLibrary, Decompressor, Expandable,
        },
        filter::{ChainFilter, HttpFilter},
        runtime::RuntimeFlag,
    },
    observe::flags::ResponseFlag,
};

fn on() -> RuntimeFlag {
    RuntimeFlag { key: String::new(), default: true }
}

fn chain(filter: HttpFilter) -> Vec<ChainFilter> {
    vec![ChainFilter { name: "c".into(), disabled: false, filter }]
}

fn compressor() -> Vec<ChainFilter> {
    let response = Compressible {
        enabled: on(),
        min_content_length: 1,
        content_types: vec!["text/plain".to_owned()],
    };
    chain(HttpFilter::Compressor(Arc::new(Compressor {
        library: CompressorLibrary::Gzip { level: 6 },
        choose_first: false,
        request: None,
        response,
        disable_on_etag: false,
        weaken_etag: true,
        remove_accept_encoding: false,
        uncompressible_codes: Vec::new(),
    })))
}

fn expander() -> Vec<ChainFilter> {
    let both = || Expandable { enabled: on(), ignore_no_transform: false };
    let trailers = ["x-before", "x-after"].map(HeaderName::from_static);
    chain(HttpFilter::Decompressor(Arc::new(Decompressor {
        coding: Coding::Gzip,
        ratio_max: 100,
        request: both(),
        response: both(),
        advertise: true,
        trailers,
    })))
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(&CompressorLibrary::Gzip { level: 6 }).unwrap();
    let mut out = encoder.push(plain).unwrap().to_vec();
    out.extend(encoder.finish().unwrap());
    out
}

#[tokio::test]
async fn each_piece_of_a_compressed_stream_arrives_when_it_was_sent() {
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let upstream = raw_upstream(move |mut stream, _| {
        let gate = Arc::clone(&gate);
        async move {
            read_head(&mut stream).await.unwrap();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\
                        transfer-encoding: chunked\r\netag: \"x\"\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for piece in ["5\r\nfirst\r\n", "6\r\nsecond\r\n", "0\r\n\r\n"] {
                stream.write_all(piece.as_bytes()).await.unwrap();
                gate.acquire().await.unwrap().forget();
            }
        }
    })
    .await;
    let mesh = Mesh::new(Setup { filters: compressor(), ..Setup::new(upstream) });
    let mut client = mesh.connect().await;
    let ask = "GET /x HTTP/1.1\r\nhost: app.test\r\naccept-encoding: gzip\r\n\r\n";
    client.write(ask).await;
    let head = within(read_head(&mut client.stream)).await.unwrap().to_ascii_lowercase();
    assert!(head.contains("content-encoding: gzip") && head.contains("etag: w/\"x\""), "{head}");
    let mut decoder = Decoder::new(Coding::Gzip, 100).unwrap();
    let mut plain: Vec<u8> = Vec::new();
    for expected in ["first", "firstsecond"] {
        while plain.len() < expected.len() {
            let chunk = within(chunk(&mut client.stream)).await;
            decoder.push(chunk.into());
            while let Some(data) = decoder.pull().unwrap() {
                plain.extend_from_slice(&data);
            }
        }
        // The next piece is sent only now.
        assert_eq!(plain, expected.as_bytes());
        go.add_permits(1);
    }
    while let more @ [_, ..] = within(chunk(&mut client.stream)).await.as_slice() {
        decoder.push(more.to_vec().into());
        while decoder.pull().unwrap().is_some() {}
    }
    decoder.finish().unwrap();
    let record = mesh.record(0).await;
    assert!(record.flags.is_empty(), "{record:?}");
}

async fn chunk(stream: &mut tokio::net::TcpStream) -> Vec<u8> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    let length = std::str::from_utf8(&line).unwrap().trim();
    let mut data = vec![0; usize::from_str_radix(length, 16).unwrap() + 2];
    stream.read_exact(&mut data).await.unwrap();
    data.truncate(data.len() - 2);
    data
}

#[tokio::test]
async fn a_bomb_from_an_upstream_is_cut() {
    let bomb = Arc::new(gzip(&vec![0; 16 << 20]));
    let upstream = raw_upstream(move |mut stream, _| {
        let bomb = Arc::clone(&bomb);
        async move {
            read_head(&mut stream).await.unwrap();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
                bomb.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            // The agent may be gone.
            let _ = stream.write_all(&bomb).await;
        }
    })
    .await;
    let mesh = Mesh::new(Setup { filters: expander(), ..Setup::new(upstream) });
    let mut client = mesh.connect().await;
    client.write("GET /x HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    let (read, _) = client.rest().await;
    assert!(!read.ends_with("0\r\n\r\n") && read.len() < 4 << 20, "{} bytes", read.len());
    let record = mesh.record(0).await;
    assert!(record.flags.contains(ResponseFlag::UpstreamProtocolError), "{record:?}");
}

#[tokio::test]
async fn a_bomb_from_a_client_is_refused() {
    let bomb = gzip(&vec![0; 16 << 20]);
    let upstream = raw_upstream(|mut stream, _| async move {
        // Whatever comes of the request, there is no end to it.
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        assert!(all.len() < 4 << 20 && !all.ends_with(b"0\r\n\r\n"), "{}", all.len());
    })
    .await;
    let mesh = Mesh::new(Setup { filters: expander(), ..Setup::new(upstream) });
    let mut client = mesh.connect().await;
    let head = format!(
        "POST /x HTTP/1.1\r\nhost: app.test\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
        bomb.len()
    );
    client.write(head).await;
    client.write(&bomb).await;
    let response = client.response().await;
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    let record = eventually(|| (mesh.recorded() > 0).then_some(())).await;
    let () = record;
}

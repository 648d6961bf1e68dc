//! gRPC on bare HTTP/2: calls of one small message each way, and calls that go on.
//!
//! Spec: gRPC over HTTP/2 (length-prefixed messages, `grpc-status` in trailers).

use std::{io, process::ExitCode, time::Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use tokio::net::{TcpListener, TcpStream};

use super::{Plan, Tally, http2, other};

/// A message's payload.
const MESSAGE_BYTES: usize = 64;
const PREFIX_BYTES: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

fn message() -> Bytes {
    let mut message = BytesMut::with_capacity(PREFIX_BYTES + MESSAGE_BYTES);
    message.put_u8(0);
    message.put_u32(u32::try_from(MESSAGE_BYTES).unwrap_or(u32::MAX));
    message.put_bytes(0x5a, MESSAGE_BYTES);
    message.freeze()
}

pub(super) async fn unary(plan: &Plan, end: Instant) -> Tally {
    calls(plan, end, true).await
}

pub(super) async fn stream(plan: &Plan, end: Instant) -> Tally {
    calls(plan, end, false).await
}

async fn calls(plan: &Plan, end: Instant, unary: bool) -> Tally {
    let send = match http2::connect(plan).await {
        Ok(send) => send,
        Err(error) => return http2::failed(&error),
    };
    let streams: Vec<_> = (0..plan.streams)
        .map(|_| {
            let (send, host) = (send.clone(), plan.host.clone());
            tokio::spawn(async move {
                let mut tally = Tally::default();
                let ran = match unary {
                    true => unary_calls(&send, &host, end, &mut tally).await,
                    false => one_call(&send, &host, end, &mut tally).await,
                };
                if let Err(error) = ran {
                    tally.failed(&error);
                }
                tally
            })
        })
        .collect();
    let mut whole = Tally::default();
    for stream in streams {
        match stream.await {
            Ok(tally) => whole.merge(tally),
            Err(error) => whole.failed(&error),
        }
    }
    whole
}

async fn unary_calls(
    send: &SendRequest<Bytes>,
    host: &str,
    end: Instant,
    tally: &mut Tally,
) -> io::Result<()> {
    let message = message();
    while Instant::now() < end {
        let since = Instant::now();
        let (response, mut body) = open(send, host, "Unary").await?;
        body.send_data(message.clone(), true).map_err(io::Error::other)?;
        let mut answer = answered(response.await)?;
        let bytes = read(&mut answer, usize::MAX).await?;
        status(&mut answer).await?;
        tally.answered(since, bytes);
    }
    Ok(())
}

async fn one_call(
    send: &SendRequest<Bytes>,
    host: &str,
    end: Instant,
    tally: &mut Tally,
) -> io::Result<()> {
    let message = message();
    let (response, mut body) = open(send, host, "Stream").await?;
    // Servers may wait for a message before they answer at all.
    let since = Instant::now();
    body.send_data(message.clone(), false).map_err(io::Error::other)?;
    let mut answer = answered(response.await)?;
    let bytes = read(&mut answer, message.len()).await?;
    tally.answered(since, bytes);
    while Instant::now() < end {
        let since = Instant::now();
        body.send_data(message.clone(), false).map_err(io::Error::other)?;
        let bytes = read(&mut answer, message.len()).await?;
        tally.answered(since, bytes);
    }
    body.send_data(Bytes::new(), true).map_err(io::Error::other)?;
    read(&mut answer, usize::MAX).await?;
    status(&mut answer).await
}

async fn open(
    send: &SendRequest<Bytes>,
    host: &str,
    method: &str,
) -> io::Result<(h2::client::ResponseFuture, SendStream<Bytes>)> {
    let mut send = send.clone().ready().await.map_err(io::Error::other)?;
    let request = Request::post(format!("http://{host}/bench.Echo/{method}"))
        .header(CONTENT_TYPE, GRPC)
        .header("te", "trailers")
        .body(())
        .map_err(io::Error::other)?;
    send.send_request(request, false).map_err(io::Error::other)
}

fn answered(response: Result<Response<RecvStream>, h2::Error>) -> io::Result<RecvStream> {
    let response = response.map_err(io::Error::other)?;
    let status = response.headers().get("grpc-status");
    if response.status() != StatusCode::OK || status.is_some() {
        return Err(other(format!("answered {} {status:?}", response.status())));
    }
    Ok(response.into_body())
}

/// Reads `length` bytes, or to the end of the data.
async fn read(body: &mut RecvStream, length: usize) -> io::Result<usize> {
    let mut got = 0;
    while got < length {
        let Some(chunk) = body.data().await else { break };
        let chunk = chunk.map_err(io::Error::other)?;
        got += chunk.len();
        body.flow_control().release_capacity(chunk.len()).map_err(io::Error::other)?;
    }
    if got < length && length != usize::MAX {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(got)
}

async fn status(body: &mut RecvStream) -> io::Result<()> {
    let trailers = body.trailers().await.map_err(io::Error::other)?;
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    match status.is_some_and(|status| status == "0") {
        true => Ok(()),
        false => Err(other(format!("ended with grpc-status {status:?}"))),
    }
}

/// `peer grpc PORT`: sends every message back, to the end of the call.
pub(crate) fn serve(port: &str) -> ExitCode {
    let port: u16 = port.parse().expect("a port number");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind(("::", port)).await.expect("bind the port");
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => drop(tokio::spawn(async move {
                    if let Err(error) = connection(stream).await {
                        eprintln!("{peer}: {error}");
                    }
                })),
                Err(error) => eprintln!("accept: {error}"),
            }
        }
    })
}

async fn connection(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = h2::server::handshake(stream).await.map_err(io::Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(io::Error::other)?;
        tokio::spawn(async move {
            // A client that goes away ends its call.
            let _ = echo(request.into_body(), respond).await;
        });
    }
    Ok(())
}

async fn echo(mut body: RecvStream, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    let mut answer = respond.send_response(response, false)?;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        // Of the client's end. Several empty frames in a row are a flood to Envoy.
        if !chunk.is_empty() {
            answer.send_data(chunk, false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    answer.send_trailers(trailers)
}

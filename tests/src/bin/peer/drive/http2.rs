//! HTTP/2 GETs, several at a time on each connection.

use std::{io, time::Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use tokio::net::TcpStream;

use super::{Plan, Tally, other};

/// Windows as browsers and gRPC clients have them, so that they do not bound a transfer.
const WINDOW_BYTES: u32 = 4 << 20;

/// A connection whose task runs until it is closed.
pub(super) async fn connect(plan: &Plan) -> io::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(plan.address).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(4 * WINDOW_BYTES);
    let (send, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        // Its streams tell.
        let _ = connection.await;
    });
    Ok(send)
}

pub(super) async fn get(plan: &Plan, end: Instant) -> Tally {
    let send = match connect(plan).await {
        Ok(send) => send,
        Err(error) => return failed(&error),
    };
    let uri = format!("http://{}{}", plan.host, plan.path);
    let streams: Vec<_> = (0..plan.streams)
        .map(|_| tokio::spawn(gets(plan.clone(), send.clone(), uri.clone(), end)))
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

async fn gets(plan: Plan, mut send: SendRequest<Bytes>, uri: String, end: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        let since = Instant::now();
        match one(&send, &uri).await {
            Ok(bytes) => tally.answered(since, bytes),
            // Not processed: any client asks again.
            Err(error) if is_leaving(&error) => match connect(&plan).await {
                Ok(new) => send = new,
                Err(error) => {
                    tally.failed(&error);
                    return tally;
                }
            },
            Err(error) => {
                tally.failed(&error);
                return tally;
            }
        }
    }
    tally
}

/// Whether the server has said that it takes no more requests, and not this one.
fn is_leaving(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<h2::Error>());
    error.is_some_and(|e| e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR))
}

async fn one(send: &SendRequest<Bytes>, uri: &str) -> io::Result<usize> {
    let mut send = send.clone().ready().await.map_err(io::Error::other)?;
    let request = Request::get(uri).body(()).map_err(io::Error::other)?;
    let (response, _) = send.send_request(request, true).map_err(io::Error::other)?;
    let response = response.await.map_err(io::Error::other)?;
    if response.status() != StatusCode::OK {
        return Err(other(format!("answered {}", response.status())));
    }
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(io::Error::other)?;
        length += chunk.len();
        // Room for more: what was taken is given back.
        body.flow_control().release_capacity(chunk.len()).map_err(io::Error::other)?;
    }
    Ok(length)
}

pub(super) fn failed(error: &io::Error) -> Tally {
    let mut tally = Tally::default();
    tally.failed(error);
    tally
}

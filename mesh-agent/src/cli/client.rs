//! Asks a running agent over its control socket.

use std::{io, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueHint};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

use super::{CliError, output::OutputFormat};
use crate::{admin::ErrorView, config::settings::DEFAULT_SOCKET};

/// A little longer than the agent allows itself.
const TIMEOUT: Duration = Duration::from_secs(65);

/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// How to reach the agent, and how to show what it says.
#[derive(Debug, Args)]
pub(super) struct Client {
    /// The agent's control socket
    #[arg(long, env = "MESH_SOCKET", hide_env_values = true, value_name = "PATH", default_value = DEFAULT_SOCKET,
          value_hint = ValueHint::FilePath)]
    socket: PathBuf,

    /// How to show the answer
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) output: OutputFormat,
}

impl Client {
    /// Reads `path`.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.ask(Method::GET, path, Vec::new())
    }

    /// Sends `body`, JSON, with `method` to `path`.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no tokio runtime")?;
        let (status, answer) = runtime.block_on(async {
            match timeout(TIMEOUT, self.exchange(method, path, body)).await {
                Ok(answered) => answered,
                Err(_) => Err(self.unreachable(&format!("no answer in {} s", TIMEOUT.as_secs()))),
            }
        })?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&answer)
                .with_context(|| format!("{path}: the answer is not what was asked for"))?);
        }
        let reason = match serde_json::from_slice::<ErrorView>(&answer) {
            Ok(view) => view.error,
            Err(_) => format!("{path}: {status}"),
        };
        match status {
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::GATEWAY_TIMEOUT => {
                Err(anyhow!("the agent failed: {reason}").into())
            }
            _ => Err(CliError::Refused(reason)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), CliError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            self.unreachable(match error.kind() {
                io::ErrorKind::NotFound => "it is not there: is the agent running?",
                io::ErrorKind::ConnectionRefused => "nobody listens: the agent is not running",
                io::ErrorKind::PermissionDenied => "permission denied: only its owner may use it",
                _ => return self.unreachable(&error.to_string()),
            })
        })?;
        let broken = |error: hyper::Error| self.unreachable(&format!("it broke off: {error}"));
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .context("the request can't be made")?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| self.unreachable(&format!("it broke off: {error}")))?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // Once the connection has ended, so has the answer, one way or the other.
            _ = connection => answer.await,
        }
    }

    fn unreachable(&self, why: &str) -> CliError {
        CliError::Unreachable(format!("agent at {}: {why}", self.socket.display()))
    }
}

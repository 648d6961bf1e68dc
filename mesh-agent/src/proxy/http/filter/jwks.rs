//! Keys that are fetched, and kept for as long as a provider says.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, uri::Authority};
use tokio::{sync::Semaphore, time::Instant};

use super::super::call::{CallError, Caller, Limits, Question};
use crate::model::{
    jwks::{Jwks, JwksError},
    jwt_authn::RemoteJwks,
};

/// The largest JWKS that is read.
const JWKS_MAX_BYTES: usize = 1 << 20;

/// What one pod has fetched from one place.
#[derive(Debug)]
pub(in crate::proxy::http) struct Fetched {
    state: Mutex<State>,
    /// One request at a time fetches; the others wait, and take what it brings.
    turn: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    jwks: Option<(Arc<Jwks>, Instant)>,
    failed: Option<Instant>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Jwks(#[from] JwksError),
    #[error("the address is none")]
    Address(#[from] http::uri::InvalidUri),
}

impl Default for Fetched {
    fn default() -> Self {
        Self { state: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Fetched {
    /// Whether nothing is kept that could still be used.
    pub(super) fn is_stale(&self) -> bool {
        self.kept().is_none()
    }

    fn kept(&self) -> Option<Arc<Jwks>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (jwks, until) = state.jwks.as_ref()?;
        (Instant::now() < *until).then(|| Arc::clone(jwks))
    }

    /// The keys: those that are kept, or else asked for now. `None`: they can't be had.
    pub(super) async fn get(&self, remote: &RemoteJwks, caller: Caller<'_>) -> Option<Arc<Jwks>> {
        if let Some(jwks) = self.kept() {
            return Some(jwks);
        }
        let since = Instant::now();
        let _turn = self.turn.acquire().await.ok()?;
        if let Some(jwks) = self.kept() {
            return Some(jwks);
        }
        // Who waited for an attempt that failed does not make another one.
        let state = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state().failed.is_some_and(|failed| failed > since) {
            return None;
        }
        for retry in 0..=remote.retries {
            if retry > 0 {
                tokio::time::sleep(pause(remote, retry)).await;
            }
            match fetch(remote, caller).await {
                Ok(jwks) => {
                    let jwks = Arc::new(jwks);
                    let until = Instant::now() + remote.cache_duration;
                    let kept = Some((Arc::clone(&jwks), until));
                    *state() = State { jwks: kept, failed: None };
                    return Some(jwks);
                }
                Err(error) => {
                    let cluster = &remote.uri.cluster;
                    tracing::warn!(%cluster, path = remote.uri.path, "no JWKS: {error}");
                }
            }
        }
        state().failed = Some(Instant::now());
        None
    }
}

/// A random part of an interval that doubles.
fn pause(remote: &RemoteJwks, retry: u32) -> Duration {
    let back_off = &remote.back_off;
    let most = back_off.base.saturating_mul(1 << (retry - 1).min(16)).min(back_off.max);
    most.mul_f64(rand::random::<f64>())
}

async fn fetch(remote: &RemoteJwks, caller: Caller<'_>) -> Result<Jwks, FetchError> {
    let uri = &remote.uri;
    let question = Question {
        method: Method::GET,
        authority: Authority::try_from(uri.authority.as_str())?,
        path: uri.path.as_str().try_into()?,
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    let limits = Limits { timeout: Some(uri.timeout), answer_max_bytes: JWKS_MAX_BYTES };
    let answered = caller.http(&uri.cluster, question, limits).await?;
    match answered.head.status {
        StatusCode::OK => Ok(Jwks::parse(&answered.body)?),
        status => Err(FetchError::Status(status)),
    }
}

//! Keys that are fetched, and kept for as long as a provider says.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header::CONTENT_ENCODING, uri::Authority};
use tokio::{sync::Semaphore, time::Instant};

use super::super::call::{Answered, CallError, Caller, Limits, Question};
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
    /// Nobody expands what may become anything.
    #[error("the answer has the content-encoding {0}, which was not asked for")]
    Encoded(String),
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
    read(&caller.http(&uri.cluster, question, limits).await?)
}

fn read(answered: &Answered) -> Result<Jwks, FetchError> {
    if answered.head.status != StatusCode::OK {
        return Err(FetchError::Status(answered.head.status));
    }
    let codings = answered.head.headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.map(|coding| String::from_utf8_lossy(coding.as_bytes()));
    if let Some(coding) = codings.find(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(FetchError::Encoded(coding.into_owned()));
    }
    Ok(Jwks::parse(&answered.body)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use http::Response;

    use super::*;

    const KEYS: &[u8] = br#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#;

    fn answer(coding: Option<&str>, body: &[u8]) -> Answered {
        let mut response = Response::builder();
        if let Some(coding) = coding {
            response = response.header(CONTENT_ENCODING, coding);
        }
        let (head, ()) = response.body(()).unwrap().into_parts();
        Answered { head, body: Bytes::copy_from_slice(body), trailers: HeaderMap::new() }
    }

    #[test]
    fn keys_are_taken_as_they_are_and_never_expanded() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(KEYS).unwrap();
        gzip.write_all(&vec![b' '; 64 << 20]).unwrap();
        let bomb = gzip.finish().unwrap();
        assert!(bomb.len() < JWKS_MAX_BYTES);
        for coding in ["gzip", "br", "zstd", "deflate", "x", "identity, gzip"] {
            let told = read(&answer(Some(coding), &bomb)).unwrap_err().to_string();
            let says = format!("the answer has the content-encoding {coding}, ");
            assert!(told.starts_with(&says), "{told}");
            read(&answer(Some(coding), KEYS)).unwrap_err();
        }
        // What does not say so is no JSON.
        let taken = allocation_counter::measure(|| {
            let told = read(&answer(None, &bomb)).unwrap_err();
            assert!(matches!(told, FetchError::Jwks(JwksError::Json)), "{told}");
        });
        assert!(taken.bytes_max < 1 << 20, "{} bytes", taken.bytes_max);
        for coding in [None, Some("identity"), Some("Identity")] {
            assert_eq!(read(&answer(coding, KEYS)).unwrap().keys.len(), 1);
        }
    }
}

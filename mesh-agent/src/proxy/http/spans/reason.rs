//! Whether a request is traced, by its id and what the configuration wants.
//!
//! Spec: Envoy's "x-request-id", "x-client-trace-id"; the id is a UUID whose version digit
//! tells.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::headers::REQUEST_ID;
use crate::model::{http_options::RequestIds, runtime::Runtime, tracing::Sampling};

const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");

const UUID_BYTES: usize = 36;
const REASON_AT: usize = 14;

/// Why a request is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    NotTraced,
    Sampled,
    Forced,
    Client,
}

impl Reason {
    const ALL: [Self; 4] = [Self::NotTraced, Self::Sampled, Self::Forced, Self::Client];

    fn digit(self) -> u8 {
        match self {
            Self::NotTraced => b'4',
            Self::Sampled => b'9',
            Self::Forced => b'a',
            Self::Client => b'b',
        }
    }

    fn of(id: &HeaderValue) -> Self {
        let digit = id.as_bytes().get(REASON_AT).filter(|_| id.len() == UUID_BYTES);
        let known = Self::ALL.into_iter().find(|reason| Some(&reason.digit()) == digit);
        known.unwrap_or(Self::NotTraced)
    }

    fn pack(self, headers: &mut HeaderMap) {
        let Some(id) = headers.get_mut(REQUEST_ID) else { return };
        let mut text = id.as_bytes().to_vec();
        if text.len() == UUID_BYTES {
            text[REASON_AT] = self.digit();
            if let Ok(packed) = HeaderValue::from_bytes(&text) {
                *id = packed;
            }
        }
    }
}

/// Takes away what an id says that is a client's.
pub(in crate::proxy::http) fn forget(headers: &mut HeaderMap, ids: RequestIds) {
    if ids.pack_trace_reason {
        Reason::NotTraced.pack(headers);
    }
}

/// Decides, and has the id say so.
pub(super) fn decide(
    headers: &mut HeaderMap,
    sampling: Sampling,
    ids: RequestIds,
    runtime: &Runtime,
) -> bool {
    if !ids.sampling {
        return true;
    }
    let Some(id) = headers.get(REQUEST_ID) else { return false };
    let Some(random) = number(id) else { return false };
    let random = random % 10_000;
    let before = Reason::of(id);
    let mut reason = before;
    if before == Reason::NotTraced {
        let client = || runtime.fraction("tracing.client_enabled", sampling.client);
        if headers.contains_key(CLIENT_TRACE_ID) && client().includes(rand::random()) {
            reason = Reason::Client;
        } else if runtime.fraction("tracing.random_sampling", sampling.random).includes(random) {
            reason = Reason::Sampled;
        }
    }
    if !runtime.fraction("tracing.global_enabled", sampling.overall).includes(random) {
        reason = Reason::NotTraced;
    }
    if reason != before && ids.pack_trace_reason {
        reason.pack(headers);
    }
    reason != Reason::NotTraced
}

/// The first eight digits.
fn number(id: &HeaderValue) -> Option<u64> {
    let digits = std::str::from_utf8(id.as_bytes().get(..8)?).ok()?;
    let all = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::runtime::Fraction;

    fn decided(id: &str, client: bool, percents: [u32; 3], ids: RequestIds) -> (bool, String) {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_str(id).unwrap());
        if client {
            headers.insert(CLIENT_TRACE_ID, HeaderValue::from_static("c"));
        }
        let [client, random, overall] = percents.map(Fraction::percent);
        let sampling = Sampling { client, random, overall };
        let traced = decide(&mut headers, sampling, ids, &Runtime::default());
        (traced, headers[REQUEST_ID].to_str().unwrap().to_owned())
    }

    #[test]
    fn an_id_decides_and_tells() {
        let id = |digit: char| format!("12345678-1234-{digit}234-8234-123456789012");
        let check = |given: &str, client, percents, traced, told: &str| {
            let decided = decided(given, client, percents, RequestIds::default());
            assert_eq!(decided, (traced, told.to_owned()), "{given} {client} {percents:?}");
        };
        check(&id('4'), false, [100; 3], true, &id('9'));
        check(&id('4'), false, [100, 0, 100], false, &id('4'));
        check(&id('4'), true, [100, 0, 100], true, &id('b'));
        check(&id('4'), true, [0, 0, 100], false, &id('4'));
        // Somebody has decided already.
        for digit in ['9', 'a', 'b'] {
            check(&id(digit), false, [0, 0, 100], true, &id(digit));
            check(&id(digit), false, [0, 0, 0], false, &id('4'));
        }
        // 0x12345678 % 10 000 is 9896: 96 of a hundred.
        check(&id('4'), false, [100, 96, 100], false, &id('4'));
        check(&id('4'), false, [100, 97, 100], true, &id('9'));
        check("short", false, [100; 3], false, "short");
        check("+1234567", false, [100; 3], false, "+1234567");
        check("12345678zzz", false, [100; 3], true, "12345678zzz");
        let ids = RequestIds { pack_trace_reason: false, sampling: true };
        assert_eq!(decided(&id('4'), false, [100; 3], ids), (true, id('4')));
        let ids = RequestIds { sampling: false, ..ids };
        assert_eq!(decided(&id('4'), false, [0; 3], ids), (true, id('4')));
    }
}

//! Sends who comes again to the endpoint it had before.
//!
//! Spec: `envoy.extensions.filters.http.stateful_session.v3`.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header::SET_COOKIE, request::Parts};

use super::{
    super::{
        cookies::set_cookie, mutations::OnTheWayOut, record::RequestLog, request::path_and_query,
    },
    run::Filtering,
};
use crate::{
    codec::session,
    model::filter::{SessionPerRoute, SessionState, StatefulSession},
    policy::Place,
    route::{WantedHost, cookie},
};

/// What a client is told of the endpoint it got.
#[derive(Debug)]
pub(in crate::proxy::http) struct Session {
    config: Arc<StatefulSession>,
    /// As the client has it.
    known: Option<String>,
}

impl Filtering<'_> {
    pub(super) fn session(
        &self,
        place: Place<'_>,
        own: &Arc<StatefulSession>,
        log: &mut RequestLog,
        head: &Parts,
    ) {
        let config = match self.levels.stateful_session(place.name) {
            Some(SessionPerRoute::Disabled) => return,
            Some(SessionPerRoute::Own(own)) => own,
            None => own,
        };
        let known = match &config.state {
            None => return,
            Some(SessionState::Cookie(own)) => {
                if !is_of(&own.path, path_and_query(head)) {
                    return;
                }
                let value = cookie(head, &own.name);
                value.and_then(|value| session::of_cookie(value, SystemTime::now()))
            }
            Some(SessionState::Header(name)) => {
                let value = head.headers.get(name);
                value.and_then(|value| session::of_header(value.as_bytes()))
            }
        };
        if let Some(known) = &known {
            // Endpoints are told apart by how they are written.
            let address = known.parse().ok().filter(|of: &SocketAddr| of.to_string() == *known);
            let status = StatusCode::from_u16(config.status_not_found);
            let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            log.wanted = Some((WantedHost { address, strict: config.strict }, status));
        }
        let session = Session { config: Arc::clone(config), known };
        log.on_the_way_out(place, OnTheWayOut::Session(Box::new(session)), self.judged);
    }
}

/// Whether a cookie with that path is for a request.
fn is_of(own: &str, path: &str) -> bool {
    match path.strip_prefix(own) {
        None => own.is_empty(),
        Some(rest) => {
            own.is_empty()
                || own.ends_with('/')
                || rest.is_empty()
                || rest.starts_with(['/', '?', '#'])
        }
    }
}

impl Session {
    /// Tells where the request went, unless the client knows.
    pub(in crate::proxy::http) fn respond(
        self,
        upstream: Option<SocketAddr>,
        headers: &mut HeaderMap,
    ) {
        let Some(address) = upstream.map(|upstream| upstream.to_string()) else { return };
        if self.known.as_deref() == Some(&address) {
            return;
        }
        match &self.config.state {
            None => {}
            Some(SessionState::Cookie(own)) => {
                let expires = own.ttl.and_then(|ttl| SystemTime::now().checked_add(ttl));
                let value = session::cookie(&address, expires);
                if let Some(value) = set_cookie(own, &value) {
                    headers.append(SET_COOKIE, value);
                }
            }
            Some(SessionState::Header(name)) => {
                if let Ok(value) = HeaderValue::try_from(session::header(&address)) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_for_its_path_and_what_is_below() {
        for (own, path, expected) in [
            ("", "/a", true),
            ("/", "/a", true),
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a", "/a?b", true),
            ("/a", "/ab", false),
            ("/a/", "/a/b", true),
            ("/a/", "/a", false),
            ("/b", "/a", false),
        ] {
            assert_eq!(is_of(own, path), expected, "{own} {path}");
        }
    }
}

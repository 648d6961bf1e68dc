//! Asks requests for tokens.
//!
//! Spec: `envoy.extensions.filters.http.jwt_authn.v3`; details as Envoy 1.40 has them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN, WWW_AUTHENTICATE},
    request::Parts,
};
use serde_json::{Map, Value};

use super::{
    super::{call::Caller, reply::Reply},
    Next, decoded, set_query,
};
use crate::{
    codec::jwt::{Jwt, JwtError},
    model::{
        filter::{Levels, RouteFilterConfig},
        jwt_authn::{JwksSource, JwtAuthn, JwtLocation, JwtPerRoute, JwtProvider, JwtRequirement},
        metadata::{self, DynamicMetadata},
    },
    policy::{Place, matcher},
    route::route_matches,
};

const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// How much of a path is told back.
const PATH_MAX_BYTES: usize = 256;

/// Judges a request's tokens, and does to the request what their providers want.
pub(in crate::proxy::http) async fn run(
    filter: &JwtAuthn,
    place: Place<'_>,
    levels: Levels<'_>,
    caller: Caller<'_>,
    head: &mut Parts,
    metadata: &mut DynamicMetadata,
) -> Result<Next, Reply> {
    strip(&filter.providers, &mut head.headers);
    let asks = |name: &HeaderName| head.headers.get(name).is_some_and(|value| !value.is_empty());
    let preflight =
        head.method == Method::OPTIONS && asks(&ORIGIN) && asks(&ACCESS_CONTROL_REQUEST_METHOD);
    if filter.bypass_cors_preflight && preflight {
        return Ok(Next::Continue);
    }
    let said = levels.configs(place.name).find_map(|config| match config {
        RouteFilterConfig::JwtAuthn(said) => Some(&**said),
        _ => None,
    });
    let requirement = match said {
        Some(JwtPerRoute::Disabled) => None,
        Some(JwtPerRoute::Requirement(name)) => match filter.requirements.get(name) {
            Some(requirement) => Some(requirement),
            None => return Err(no_requirement(filter, name)),
        },
        None => {
            let runtime = &caller.snapshot.runtime;
            let random = rand::random();
            let mut rules = filter.rules.iter();
            let rule = rules.find(|rule| route_matches(&rule.matches, head, runtime, random));
            rule.and_then(|rule| rule.requirement.as_ref())
        }
    };
    let Some(requirement) = requirement else { return Ok(Next::Continue) };
    let realm = realm(head);
    let mut judge = Judge { filter, caller, head, noted: Map::new(), reroute: false };
    let judged = judge.satisfied(requirement).await;
    let Judge { noted, reroute, .. } = judge;
    if let Err(error) = judged {
        return Err(denied(filter, error, &realm));
    }
    if !noted.is_empty() {
        metadata.merge(NAMESPACE, noted);
    }
    Ok(if reroute { Next::Reroute } else { Next::Continue })
}

/// Takes away what only providers may say, whatever is required: who reads it next takes
/// it for said by a token.
fn strip(providers: &[Arc<JwtProvider>], headers: &mut HeaderMap) {
    for provider in providers {
        let written = provider.claim_to_headers.iter().map(|claim| &claim.header);
        for name in provider.forward_payload_header.iter().chain(written) {
            headers.remove(name);
        }
    }
}

fn details(message: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", message.replace(char::is_whitespace, "_"))
}

fn no_requirement(filter: &JwtAuthn, name: &str) -> Reply {
    let message = format!("Wrong requirement_name: {name}. It should be one of [{}]", {
        let names: Vec<&str> = filter.requirements.keys().map(String::as_str).collect();
        names.join(",")
    });
    let reply = Reply::new(StatusCode::FORBIDDEN, "", None, details(&message));
    match filter.strip_failure_response {
        true => reply,
        false => Reply { body: format!("Failed JWT authentication: {message}").into(), ..reply },
    }
}

fn denied(filter: &JwtAuthn, error: JwtError, realm: &str) -> Reply {
    let status = match error {
        JwtError::AudienceNotAllowed => StatusCode::FORBIDDEN,
        _ => StatusCode::UNAUTHORIZED,
    };
    let message = error.to_string();
    let mut reply = Reply::new(status, "", None, details(&message));
    if filter.strip_failure_response {
        return reply;
    }
    let invalid = if error == JwtError::Missing { "" } else { ", error=\"invalid_token\"" };
    if let Ok(value) = HeaderValue::try_from(format!("Bearer realm=\"{realm}\"{invalid}")) {
        let headers = reply.headers.get_or_insert_default();
        headers.insert(WWW_AUTHENTICATE, value);
    }
    Reply { body: Bytes::from(message), ..reply }
}

fn realm(head: &Parts) -> String {
    let host = String::from_utf8_lossy(matcher::authority(head).unwrap_or_default()).into_owned();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let scheme = head.uri.scheme_str().unwrap_or("http");
    let end = path.floor_char_boundary(PATH_MAX_BYTES);
    format!("{scheme}://{host}{}", &path[..end])
}

/// One request before its requirement.
struct Judge<'a> {
    filter: &'a JwtAuthn,
    caller: Caller<'a>,
    head: &'a mut Parts,
    /// For metadata.
    noted: Map<String, Value>,
    reroute: bool,
}

/// What one requirement asks for.
#[derive(Clone, Copy)]
struct Asked<'p> {
    /// Any provider will do where it is `None`.
    provider: Option<&'p Arc<JwtProvider>>,
    /// In place of the provider's own.
    audiences: &'p [String],
    allow_failed: bool,
    allow_missing: bool,
}

/// A token of a request.
struct Token<'p> {
    text: String,
    location: &'p JwtLocation,
    /// Those who may be there; `None`: whoever.
    issuers: Vec<Option<&'p str>>,
}

impl<'a> Judge<'a> {
    fn satisfied<'s>(
        &'s mut self,
        requirement: &'s JwtRequirement,
    ) -> BoxFuture<'s, Result<(), JwtError>> {
        use JwtRequirement as R;
        let none =
            Asked { provider: None, audiences: &[], allow_failed: true, allow_missing: true };
        match requirement {
            R::Provider { provider, audiences } => Box::pin(self.verified(Asked {
                provider: Some(provider),
                audiences,
                allow_failed: false,
                allow_missing: false,
            })),
            R::AllowMissing => Box::pin(self.verified(Asked { allow_failed: false, ..none })),
            R::AllowMissingOrFailed => Box::pin(self.verified(none)),
            R::All(all) => Box::pin(async move {
                for requirement in all {
                    self.satisfied(requirement).await?;
                }
                Ok(())
            }),
            R::Any(any) => Box::pin(self.any(any)),
        }
    }

    /// As Envoy: what lets missing tokens pass is asked of what the others have said.
    async fn any(&mut self, any: &[JwtRequirement]) -> Result<(), JwtError> {
        let allows = |kind: fn(&JwtRequirement) -> bool| any.iter().find(|one| kind(one));
        let missing = allows(|one| matches!(one, JwtRequirement::AllowMissing));
        let failed = allows(|one| matches!(one, JwtRequirement::AllowMissingOrFailed));
        let is_lenient = |one: &JwtRequirement| {
            matches!(one, JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed)
        };
        if let Some(lenient) = failed.or(missing)
            && any.iter().all(is_lenient)
        {
            return self.satisfied(lenient).await;
        }
        let mut why = JwtError::Missing;
        for requirement in any.iter().filter(|one| !is_lenient(one)) {
            match self.satisfied(requirement).await {
                Ok(()) => return Ok(()),
                // What is wrong with a token says more than that there is none.
                Err(error) => {
                    let says_little = matches!(error, JwtError::Missing | JwtError::UnknownIssuer);
                    if !says_little || why == JwtError::Missing {
                        why = error;
                    }
                }
            }
        }
        match why {
            _ if failed.is_some() => Ok(()),
            JwtError::Missing if missing.is_some() => Ok(()),
            why => Err(why),
        }
    }

    /// All the tokens there are have to be good: who reads them next may take any.
    async fn verified(&mut self, asked: Asked<'_>) -> Result<(), JwtError> {
        let filter = self.filter;
        let providers = asked.provider.map_or(filter.providers.as_slice(), std::slice::from_ref);
        // Once more: only the last of those a requirement asks says it, as in Envoy.
        strip(providers, &mut self.head.headers);
        let mut tokens = tokens(providers, self.head);
        let mut ended = Err(JwtError::Missing);
        while let Some(token) = tokens.pop() {
            ended = self.token(&token, asked).await;
            if ended.is_err() && !asked.allow_failed && !asked.allow_missing {
                break;
            }
        }
        match ended {
            Err(_) if asked.allow_failed => Ok(()),
            Err(JwtError::Missing) if asked.allow_missing => Ok(()),
            ended => ended,
        }
    }

    async fn token(&mut self, token: &Token<'_>, asked: Asked<'_>) -> Result<(), JwtError> {
        let jwt = Jwt::parse(&token.text)?;
        let allowed = |issuer: &Option<&str>| issuer.is_none_or(|issuer| issuer == jwt.issuer);
        if !token.issuers.iter().any(allowed) {
            return Err(JwtError::UnknownIssuer);
        }
        let provider = asked.provider.or_else(|| by_issuer(self.filter, &jwt.issuer));
        let provider = provider.ok_or(JwtError::UnknownIssuer)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        in_time(&jwt, provider, Duration::from_secs(now.as_secs()))?;
        let audiences = match asked.audiences {
            [] => &provider.audiences,
            own => own,
        };
        if !audiences.is_empty() && !jwt.audiences.iter().any(|own| is_among(own, audiences)) {
            return Err(JwtError::AudienceNotAllowed);
        }
        if let Some(subjects) = &provider.subjects
            && !subjects.matches(jwt.subject.as_bytes())
        {
            return Err(JwtError::VerificationFails);
        }
        match &provider.jwks {
            JwksSource::Local(jwks) => jwt.verify(jwks)?,
            JwksSource::Remote(remote) => {
                let Caller { services, permit, .. } = self.caller;
                let pod = permit.flow().pod();
                let fetched = services.filters.jwks(pod, &remote.uri);
                let jwks = fetched.get(remote, self.caller).await;
                jwt.verify(&*jwks.ok_or(JwtError::FetchFailed)?)?;
            }
        }
        self.take(provider, token, jwt);
        Ok(())
    }

    /// What a good token does to the request.
    fn take(&mut self, provider: &JwtProvider, token: &Token<'_>, jwt: Jwt<'_>) {
        let headers = &mut self.head.headers;
        if let Some(name) = &provider.forward_payload_header {
            let mut payload = jwt.payload_base64url.to_owned();
            while provider.pad_forward_payload_header && !payload.len().is_multiple_of(4) {
                payload.push('=');
            }
            add(headers, name, &payload);
        }
        let mut changed = false;
        for claim in &provider.claim_to_headers {
            let mut path = claim.path.iter();
            let first = path.next().and_then(|name| jwt.payload.get(name));
            let value = path.fold(first, |value, name| value?.as_object()?.get(name));
            if let Some(text) = value.and_then(claim_text) {
                changed |= add(headers, &claim.header, &text);
            }
        }
        if !provider.forward {
            remove(self.head, token.location);
        }
        if let Some(name) = &provider.header_in_metadata {
            self.noted.insert(name.clone(), metadata::from_json(Value::Object(jwt.header)));
        }
        if let Some(name) = &provider.payload_in_metadata {
            let mut payload = jwt.payload;
            for claim in &provider.space_delimited_claims {
                if let Some(Value::String(words)) = payload.get(claim) {
                    let words = words.split_ascii_whitespace().map(Value::from).collect();
                    payload.insert(claim.clone(), Value::Array(words));
                }
            }
            self.noted.insert(name.clone(), metadata::from_json(Value::Object(payload)));
            changed = true;
        }
        self.reroute |= changed && provider.clear_route_cache;
    }
}

/// The first of that issuer, or else the first that takes whichever.
fn by_issuer<'a>(filter: &'a JwtAuthn, issuer: &str) -> Option<&'a Arc<JwtProvider>> {
    let is = |wanted: Option<&str>| {
        filter.providers.iter().find(|provider| provider.issuer.as_deref() == wanted)
    };
    is(Some(issuer)).or_else(|| is(None))
}

fn in_time(jwt: &Jwt<'_>, provider: &JwtProvider, now: Duration) -> Result<(), JwtError> {
    let (now, skew) = (now.as_secs_f64(), provider.clock_skew.as_secs_f64());
    if jwt.not_before.is_some_and(|from| now + skew < from) {
        return Err(JwtError::NotYetValid);
    }
    // As Envoy: nought is none.
    let expires = jwt.expires.filter(|until| *until > 0.0);
    if expires.is_some_and(|until| now > until + skew) {
        return Err(JwtError::Expired);
    }
    match (provider.max_lifetime, expires) {
        (Some(_), None) => Err(JwtError::VerificationFails),
        (None, None) if provider.require_expiration => Err(JwtError::VerificationFails),
        (Some(max), Some(until)) if until - now > max.as_secs_f64() => {
            Err(JwtError::VerificationFails)
        }
        _ => Ok(()),
    }
}

/// As Envoy: neither scheme nor a slash at the end makes another audience.
fn is_among(audience: &str, allowed: &[String]) -> bool {
    fn bare(audience: &str) -> &str {
        let audience = audience.strip_prefix("https://").unwrap_or(audience);
        let audience = audience.strip_prefix("http://").unwrap_or(audience);
        audience.strip_suffix('/').unwrap_or(audience)
    }
    allowed.iter().any(|allowed| bare(allowed) == bare(audience))
}

/// What there is, in Envoy's order: the last one is looked at first.
fn tokens<'p>(providers: &'p [Arc<JwtProvider>], head: &Parts) -> Vec<Token<'p>> {
    let mut places: BTreeMap<&JwtLocation, Vec<Option<&str>>> = BTreeMap::new();
    for provider in providers {
        for location in &provider.locations {
            places.entry(location).or_default().push(provider.issuer.as_deref());
        }
    }
    let mut tokens = Vec::new();
    for (location, issuers) in places {
        let mut found = |text: String| {
            tokens.push(Token { text, location, issuers: issuers.clone() });
        };
        match location {
            JwtLocation::Header { name, prefix } => {
                for value in head.headers.get_all(name) {
                    let value = String::from_utf8_lossy(value.as_bytes());
                    let after = match value.find(prefix.as_str()) {
                        Some(at) => &value[at + prefix.len()..],
                        None => continue,
                    };
                    // Not before what a token may begin with; and all of it without.
                    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                    let start = if prefix.is_empty() { Some(0) } else { after.find(legal) };
                    found(start.map_or(&*value, |start| &after[start..]).to_owned());
                }
            }
            JwtLocation::Parameter(name) => {
                let query = head.uri.query().unwrap_or_default();
                let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                let mut values = pairs.filter(|(key, _)| decoded(key) == *name);
                if let Some((_, value)) = values.next() {
                    found(decoded(value));
                }
            }
            JwtLocation::Cookie(name) => {
                if let Some(value) = crate::route::cookie(head, name) {
                    found(String::from_utf8_lossy(value).into_owned());
                }
            }
        }
    }
    tokens
}

fn remove(head: &mut Parts, location: &JwtLocation) {
    match location {
        JwtLocation::Header { name, .. } => drop(head.headers.remove(name)),
        JwtLocation::Parameter(name) => {
            let Some(query) = head.uri.query() else { return };
            let key = |pair: &str| decoded(pair.split_once('=').map_or(pair, |(key, _)| key));
            let kept: Vec<&str> = query.split('&').filter(|pair| key(pair) != *name).collect();
            let kept: Vec<String> = kept.into_iter().map(str::to_owned).collect();
            set_query(head, &kept);
        }
        // As Envoy.
        JwtLocation::Cookie(_) => {}
    }
}

/// Whether it could be.
fn add(headers: &mut HeaderMap, name: &HeaderName, value: &str) -> bool {
    let value = HeaderValue::from_str(value);
    value.map(|value| headers.append(name.clone(), value)).is_ok()
}

/// As Envoy writes it into a header; `None`: there is nothing to write.
fn claim_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        Value::Bool(known) => known.to_string(),
        Value::Number(number) => {
            let number = number.as_f64()?;
            match number >= 0.0 && number.fract() == 0.0 && number < 1e19 {
                true => format!("{number:.0}"),
                false => format!("{number:.6}"),
            }
        }
        Value::Array(_) | Value::Object(_) => {
            let json = metadata::from_json(value.clone()).to_string();
            BASE64_STANDARD.encode(json)
        }
    };
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests;

//! Whether bodies are compressed or expanded, and what heads say of it.
//!
//! Spec: `envoy.extensions.filters.http.{compressor,decompressor}.v3`; RFC 9110 §12.5.3
//! (`accept-encoding`), as Envoy 1.40 reads it.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, VARY,
    },
    request::Parts,
};
use http_body::Body as _;

use super::{
    super::{
        RequestBody,
        mutations::OnTheWayOut,
        record::RequestLog,
        reply::Reply,
        stages::{Stage, Stages},
    },
    joined,
    run::Filtering,
};
use crate::{
    codec::compression::{CodingError, Encoder},
    model::{
        compression::{
            Coding, Compressible, Compressor, CompressorLibrary, CompressorPerRoute, Decompressor,
            Expandable,
        },
        filter::HttpFilter,
    },
    observe::flags::ResponseFlag,
    policy::{Place, resolve},
};

/// A response that one filter may compress.
pub(in crate::proxy::http) struct Compress {
    config: Arc<Compressor>,
    library: CompressorLibrary,
    enabled: bool,
    /// `None`: the client has not said what it takes.
    accepts: Option<Box<[u8]>>,
    /// All of the chain, in order.
    offers: Arc<[Offer]>,
}

/// What one filter of the chain can do.
#[derive(Debug, Clone)]
struct Offer {
    coding: Coding,
    choose_first: bool,
    content_types: Vec<String>,
}

/// A response that one filter may expand.
pub(in crate::proxy::http) struct ExpandResponse(Arc<Decompressor>);

/// The coding that filters of a chain have agreed on, once one was asked.
#[derive(Debug, Default)]
pub(in crate::proxy::http) struct Agreed(Option<Option<Coding>>);

impl Filtering<'_> {
    pub(super) fn compress(
        &self,
        place: Place<'_>,
        filter: &Arc<Compressor>,
        log: &mut RequestLog,
        head: &mut Parts,
        body: &mut RequestBody,
    ) -> Result<(), Reply> {
        let runtime = &self.snapshot.runtime;
        let said = self.levels.compressor(place.name);
        let (mut enabled, mut remove) =
            (runtime.is_on(&filter.response.enabled), filter.remove_accept_encoding);
        match said {
            Some(CompressorPerRoute::Disabled) => enabled = false,
            Some(CompressorPerRoute::Overrides { response: Some(own), .. }) => {
                enabled = true;
                remove = own.unwrap_or(remove);
            }
            Some(CompressorPerRoute::Overrides { response: None, .. }) | None => {}
        }
        let accepts = head.headers.contains_key(ACCEPT_ENCODING);
        let accepts = accepts.then(|| joined(&head.headers, &ACCEPT_ENCODING).into());
        if enabled && remove {
            head.headers.remove(ACCEPT_ENCODING);
        }
        let library = library(filter, said).clone();
        if let Some(request) = &filter.request
            && !body.is_end_stream()
            && runtime.is_on(&request.enabled)
            && is_large_enough(request, &head.headers)
            && is_of_type(request, &head.headers)
            && !head.headers.contains_key(CONTENT_ENCODING)
        {
            let encoder = Encoder::new(&library).map_err(|error| failed(&error))?;
            head.headers.remove(CONTENT_LENGTH);
            let coding = HeaderValue::from_static(library.coding().name());
            head.headers.insert(CONTENT_ENCODING, coding);
            body.through(Stage::Compress(encoder));
        }
        let config = Arc::clone(filter);
        let step = Compress { config, library, enabled, accepts, offers: self.offers() };
        log.on_the_way_out(place, OnTheWayOut::Compress(Box::new(step)), self.judged);
        Ok(())
    }

    /// What the chain's compressors can do.
    fn offers(&self) -> Arc<[Offer]> {
        let running = self.http.http_filters.iter().filter(|place| self.levels.runs(place));
        let offers = running.filter_map(|place| match resolve(place, self.snapshot)? {
            HttpFilter::Compressor(filter) => Some(Offer {
                coding: library(filter, self.levels.compressor(&place.name)).coding(),
                choose_first: filter.choose_first,
                content_types: filter.response.content_types.clone(),
            }),
            _ => None,
        });
        offers.collect()
    }

    pub(super) fn expand(
        &self,
        place: Place<'_>,
        filter: &Arc<Decompressor>,
        log: &mut RequestLog,
        head: &mut Parts,
        body: &mut RequestBody,
    ) -> Result<(), Reply> {
        let runtime = &self.snapshot.runtime;
        let responses = runtime.is_on(&filter.response.enabled);
        if responses {
            if filter.advertise {
                advertise(&mut head.headers, filter.coding);
            }
            let step = OnTheWayOut::Expand(ExpandResponse(Arc::clone(filter)));
            log.on_the_way_out(place, step, self.judged);
        }
        if !body.is_end_stream()
            && runtime.is_on(&filter.request.enabled)
            && begins_with(filter.coding, &filter.request, &head.headers)
        {
            let stage = Stage::expand(filter).map_err(|error| failed(&error))?;
            without_first_coding(&mut head.headers);
            body.through(stage);
        }
        Ok(())
    }
}

fn failed(error: &CodingError) -> Reply {
    let (status, flag) = (StatusCode::INTERNAL_SERVER_ERROR, None::<ResponseFlag>);
    Reply::new(status, "", flag, format!("compression: {error}"))
}

fn library<'a>(
    filter: &'a Compressor,
    said: Option<&'a CompressorPerRoute>,
) -> &'a CompressorLibrary {
    match said {
        Some(CompressorPerRoute::Overrides { library: Some(library), .. }) => library,
        _ => &filter.library,
    }
}

impl Compress {
    /// Looks at a response's head, and adds to `stages` if it is to be compressed.
    pub(in crate::proxy::http) fn respond(
        self,
        (status, has_body): (StatusCode, bool),
        headers: &mut HeaderMap,
        agreed: &mut Agreed,
        stages: &mut Stages,
    ) {
        let response = &self.config.response;
        if !self.enabled
            || status == StatusCode::SWITCHING_PROTOCOLS
            || !is_large_enough(response, headers)
        {
            return;
        }
        let by_etag = self.config.disable_on_etag && headers.contains_key(ETAG);
        let compressible = !by_etag
            && is_of_type(response, headers)
            && !has_token(headers, &CACHE_CONTROL, "no-transform")
            && !self.config.uncompressible_codes.contains(&status.as_u16())
            && !headers.contains_key(CONTENT_ENCODING);
        let chosen = has_body && self.is_chosen(headers, agreed);
        if compressible && chosen {
            match Encoder::new(&self.library) {
                Ok(encoder) => {
                    etag(headers, self.config.weaken_etag);
                    headers.remove(CONTENT_LENGTH);
                    let coding = HeaderValue::from_static(self.library.coding().name());
                    headers.insert(CONTENT_ENCODING, coding);
                    stages.push(Stage::Compress(encoder));
                }
                // It goes as it is.
                Err(error) => tracing::warn!("a response is not compressed: {error}"),
            }
        }
        if compressible {
            vary(headers);
        }
    }

    fn is_chosen(&self, headers: &HeaderMap, agreed: &mut Agreed) -> bool {
        let Some(accepts) = &self.accepts else { return false };
        let chosen = *agreed.0.get_or_insert_with(|| {
            let content_type = media_type(headers);
            choose(accepts, &self.offers, content_type.as_deref())
        });
        chosen == Some(self.library.coding())
    }
}

/// The coding that the client likes best of those that the chain can do.
fn choose(accepts: &[u8], offers: &[Offer], content_type: Option<&str>) -> Option<Coding> {
    let mut allowed: Vec<&Offer> = Vec::new();
    for offer in offers {
        let of_type = |name: &str| offer.content_types.iter().any(|own| own == name);
        let other = content_type.is_some_and(|name| !name.is_empty() && !of_type(name));
        if !other && !allowed.iter().any(|known| known.coding == offer.coding) {
            allowed.push(offer);
        }
    }
    let accepts = String::from_utf8_lossy(accepts);
    let mut wishes: Vec<(&str, f32)> = Vec::new();
    for token in accepts.split(',').filter(|token| !token.is_empty()) {
        let (name, parameters) = token.split_once(';').unwrap_or((token, ""));
        let weight = match parameters.split_once('=') {
            Some((key, value)) if key.trim().eq_ignore_ascii_case("q") => {
                match value.trim().parse() {
                    Ok(weight) => weight,
                    Err(_) => continue,
                }
            }
            _ => 1.0,
        };
        let name = name.trim();
        wishes.push((name, weight));
        if weight == 0.0 {
            allowed.retain(|offer| offer.coding.name() != name);
        }
    }
    let first = *allowed.first()?;
    let known = |name: &str| allowed.iter().copied().find(|offer| offer.coding.name() == name);
    let mut best: Option<(&str, f32)> = None;
    for (name, weight) in wishes {
        let offer = known(name);
        if offer.is_none() && name != "identity" && name != "*" {
            continue;
        }
        let above = best.map_or(weight > 0.0, |(_, best)| {
            weight > best || (weight == best && offer.is_some_and(|offer| offer.choose_first))
        });
        if above {
            best = Some((name, weight));
        }
    }
    match best?.0 {
        "identity" => None,
        "*" => Some(first.coding),
        name => known(name).map(|offer| offer.coding),
    }
}

/// As Envoy: chunks are.
fn is_large_enough(direction: &Compressible, headers: &HeaderMap) -> bool {
    let Some(length) = headers.get(CONTENT_LENGTH) else { return true };
    let length = length.to_str().ok().and_then(|length| length.parse::<u64>().ok());
    length.is_some_and(|length| length >= direction.min_content_length)
}

/// Without parameters, in lower case.
fn media_type(headers: &HeaderMap) -> Option<String> {
    if !headers.contains_key(CONTENT_TYPE) {
        return None;
    }
    let value = joined(headers, &CONTENT_TYPE);
    let value = value.split(|byte| *byte == b';').next().unwrap_or_default();
    Some(String::from_utf8_lossy(value.trim_ascii()).to_ascii_lowercase())
}

/// What says nothing of its type is.
fn is_of_type(direction: &Compressible, headers: &HeaderMap) -> bool {
    media_type(headers).is_none_or(|name| direction.content_types.contains(&name))
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let is = |own: &[u8]| own.eq_ignore_ascii_case(token.as_bytes());
    tokens(&joined(headers, name)).any(is)
}

/// A strong tag is of other bytes than those that go out.
fn etag(headers: &mut HeaderMap, weaken: bool) {
    let Some(tag) = headers.get(ETAG).map(HeaderValue::as_bytes) else { return };
    if tag.starts_with(b"W/") || tag.starts_with(b"w/") {
        return;
    }
    let weak = HeaderValue::from_bytes(&[b"W/", tag].concat());
    match weak {
        Ok(weak) if weaken => drop(headers.insert(ETAG, weak)),
        _ => drop(headers.remove(ETAG)),
    }
}

fn vary(headers: &mut HeaderMap) {
    const OURS: &str = "Accept-Encoding";
    let known = joined(headers, &VARY);
    if known.is_empty() {
        headers.insert(VARY, HeaderValue::from_static(OURS));
    } else if !tokens(&known).any(|token| token == OURS.as_bytes())
        && let Ok(value) = HeaderValue::from_bytes(&[&*known, b", ", OURS.as_bytes()].concat())
    {
        headers.insert(VARY, value);
    }
}

impl ExpandResponse {
    /// Looks at a response's head, and adds to `stages` if it is to be expanded.
    pub(in crate::proxy::http) fn respond(
        self,
        has_body: bool,
        headers: &mut HeaderMap,
        stages: &mut Stages,
    ) {
        let Self(config) = self;
        if !has_body || !begins_with(config.coding, &config.response, headers) {
            return;
        }
        match Stage::expand(&config) {
            Ok(stage) => {
                without_first_coding(headers);
                stages.push(stage);
            }
            // It goes as it is.
            Err(error) => tracing::warn!("a response is not expanded: {error}"),
        }
    }
}

/// Whether the content is of that coding, and may be changed. As Envoy: the coding that was
/// applied first is the one that is looked at.
fn begins_with(coding: Coding, direction: &Expandable, headers: &HeaderMap) -> bool {
    if !direction.ignore_no_transform && has_token(headers, &CACHE_CONTROL, "no-transform") {
        return false;
    }
    let codings = joined(headers, &CONTENT_ENCODING);
    tokens(&codings)
        .next()
        .is_some_and(|first| first.eq_ignore_ascii_case(coding.name().as_bytes()))
}

fn without_first_coding(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    let codings = joined(headers, &CONTENT_ENCODING);
    let rest = codings.iter().position(|byte| *byte == b',').map(|at| &codings[at + 1..]);
    match rest.and_then(|rest| HeaderValue::from_bytes(rest.trim_ascii()).ok()) {
        Some(rest) => drop(headers.insert(CONTENT_ENCODING, rest)),
        None => drop(headers.remove(CONTENT_ENCODING)),
    }
}

/// Tells the upstream that the coding is liked best.
fn advertise(headers: &mut HeaderMap, coding: Coding) {
    let known = joined(headers, &ACCEPT_ENCODING);
    let name = coding.name().as_bytes();
    let is_it = |token: &&[u8]| {
        token.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii() == name
    };
    let others = tokens(&known).filter(|token| !token.is_empty() && !is_it(token));
    let all: Vec<&[u8]> = others.chain([name]).collect();
    if let Ok(value) = HeaderValue::from_bytes(&all.join(&b',')) {
        headers.insert(ACCEPT_ENCODING, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(coding: Coding, choose_first: bool) -> Offer {
        Offer { coding, choose_first, content_types: vec!["text/plain".to_owned()] }
    }

    #[test]
    fn the_coding_that_is_liked_best_is_chosen() {
        let both = [offer(Coding::Gzip, false), offer(Coding::Brotli, true)];
        for (accepts, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("br;q=0.5, gzip;q=0.4", Some(Coding::Brotli)),
            ("gzip, br", Some(Coding::Brotli)),
            ("br, gzip", Some(Coding::Brotli)),
            ("gzip;q=0", None),
            ("gzip;q=0, *", Some(Coding::Brotli)),
            ("*", Some(Coding::Gzip)),
            ("identity, gzip;q=0.1", None),
            ("identity;q=0.1, gzip;q=0.2", Some(Coding::Gzip)),
            ("gzip;q=x", None),
            ("gzip ; Q=1", Some(Coding::Gzip)),
            ("deflate", None),
            ("", None),
            (",,;;=,gzip;", Some(Coding::Gzip)),
        ] {
            assert_eq!(
                choose(accepts.as_bytes(), &both, Some("text/plain")),
                expected,
                "{accepts}"
            );
        }
        assert_eq!(choose(b"gzip", &both, Some("image/png")), None);
        assert_eq!(choose(b"gzip", &both, None), Some(Coding::Gzip));
        assert_eq!(choose(b"\xff,gzip", &[], None), None);
    }

    #[test]
    fn what_upstreams_are_told_is_said_once() {
        for (before, after) in
            [("", "gzip"), ("br", "br,gzip"), ("gzip;q=0.3, br", "br,gzip"), ("gzip,gzip", "gzip")]
        {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(before));
            advertise(&mut headers, Coding::Gzip);
            assert_eq!(headers[ACCEPT_ENCODING], after, "{before}");
        }
    }

    #[test]
    fn only_the_first_coding_is_taken_away() {
        let gzip = Expandable {
            enabled: crate::model::runtime::RuntimeFlag { key: String::new(), default: true },
            ignore_no_transform: false,
        };
        for (before, is, after) in [
            ("gzip", true, None),
            ("GZIP , br", true, Some("br")),
            ("br, gzip", false, Some("br, gzip")),
            ("x-gzip", false, Some("x-gzip")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(before));
            assert_eq!(begins_with(Coding::Gzip, &gzip, &headers), is, "{before}");
            if is {
                without_first_coding(&mut headers);
            }
            let left = headers.get(CONTENT_ENCODING).map(|value| value.to_str().unwrap());
            assert_eq!(left, after, "{before}");
        }
    }
}

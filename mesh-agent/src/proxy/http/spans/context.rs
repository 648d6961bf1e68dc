//! Which trace a request is of: read from its headers, and told to the upstream.
//!
//! Spec: W3C Trace Context; B3 Propagation, in several headers and in one. What they leave
//! open, or what somebody got wrong, is taken as Envoy takes it.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    codec::spans::zipkin_trace_id,
    model::tracing::{OpenTelemetry, Sampler, TracingProvider, Zipkin},
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// A span's place in its trace.
#[derive(Debug, Clone)]
pub(in crate::proxy::http) struct Context {
    pub(super) trace_id: u128,
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) sampled: bool,
    /// W3C's, of all headers.
    pub(super) state: Option<HeaderValue>,
    /// Zipkin: whether the id may be the client's as well.
    pub(super) shared: bool,
    carrier: Carrier,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    TraceContext,
    B3 { single: bool, w3c: bool },
}

/// Headers are there that say nothing: whose they are, they stay as they are.
#[derive(Debug, PartialEq, Eq)]
struct Invalid;

/// What headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Told {
    ids: Option<Ids>,
    sampled: Option<bool>,
    /// B3 in one header.
    single: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ids {
    trace_id: u128,
    id: u64,
    parent: Option<u64>,
}

impl Context {
    /// A request's own. `traced`: whether the connection manager wants it to be; `server`:
    /// whether its span is that of a server. `None`: what its headers say is invalid.
    pub(super) fn start(
        provider: &TracingProvider,
        headers: &HeaderMap,
        traced: bool,
        server: bool,
    ) -> Option<Self> {
        match provider {
            TracingProvider::OpenTelemetry(otel) => Self::otel(otel, headers, traced).ok(),
            TracingProvider::Zipkin(zipkin) => Self::zipkin(zipkin, headers, traced, server).ok(),
        }
    }

    fn otel(otel: &OpenTelemetry, headers: &HeaderMap, traced: bool) -> Result<Self, Invalid> {
        let parent = traceparent(headers)?;
        let (trace_id, state) = match parent.ids {
            Some(ids) => (ids.trace_id, joined(headers, &TRACESTATE)),
            None => (new_trace_id(), None),
        };
        let sampled = match otel.sampler {
            Some(Sampler::AlwaysOn) => true,
            Some(Sampler::ParentOrAlwaysOn) | None => parent.sampled.unwrap_or(true),
        };
        Ok(Self {
            trace_id,
            id: new_id(),
            parent: parent.ids.map(|ids| ids.id),
            sampled: traced && sampled,
            state,
            shared: false,
            carrier: Carrier::TraceContext,
        })
    }

    fn zipkin(
        zipkin: &Zipkin,
        headers: &HeaderMap,
        traced: bool,
        server: bool,
    ) -> Result<Self, Invalid> {
        let mut told = b3(headers)?;
        if zipkin.w3c && told.ids.is_none() {
            let parent = traceparent(headers).unwrap_or_default();
            told.ids = parent.ids;
            told.sampled = told.sampled.or(parent.sampled);
        }
        let shared = server && zipkin.shared_span_context;
        let Ids { trace_id, id, parent } = match told.ids {
            Some(ids) if shared => ids,
            Some(ids) => Ids { id: new_id(), parent: Some(ids.id), ..ids },
            None => {
                let id = new_id();
                let high = if zipkin.trace_id_128bit { u128::from(new_id()) << 64 } else { 0 };
                Ids { trace_id: high | u128::from(id), id, parent: None }
            }
        };
        Ok(Self {
            trace_id,
            id,
            parent,
            sampled: told.sampled.unwrap_or(traced),
            state: None,
            shared,
            carrier: Carrier::B3 { single: told.single, w3c: zipkin.w3c },
        })
    }

    /// One that this one began.
    pub(super) fn child(&self) -> Self {
        Self { id: new_id(), parent: Some(self.id), shared: false, ..self.clone() }
    }

    /// Tells the upstream.
    pub(super) fn inject(&self, headers: &mut HeaderMap) {
        let mut set = |name: HeaderName, text: String| {
            // Hexadecimal digits and dashes always are a valid value.
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        };
        let sampled = u8::from(self.sampled);
        let traceparent = || format!("00-{:032x}-{:016x}-{sampled:02x}", self.trace_id, self.id);
        let Carrier::B3 { single, w3c } = self.carrier else {
            set(TRACEPARENT, traceparent());
            let state = self.state.clone().unwrap_or(HeaderValue::from_static(""));
            headers.insert(TRACESTATE, state);
            return;
        };
        let trace_id = zipkin_trace_id(self.trace_id);
        let parent = self.parent.map(|parent| format!("{parent:016x}"));
        if single {
            let parent = parent.map(|parent| format!("-{parent}")).unwrap_or_default();
            set(B3, format!("{trace_id}-{:016x}-{sampled}{parent}", self.id));
        } else {
            set(B3_TRACE_ID, trace_id);
            set(B3_SPAN_ID, format!("{:016x}", self.id));
            if let Some(parent) = parent {
                set(B3_PARENT_ID, parent);
            }
            set(B3_SAMPLED, sampled.to_string());
        }
        if w3c {
            set(TRACEPARENT, traceparent());
        }
    }
}

/// Not zero, which means none.
fn new_id() -> u64 {
    rand::random::<u64>().max(1)
}

fn new_trace_id() -> u128 {
    rand::random::<u128>().max(1)
}

/// All values as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let rest: Vec<&[u8]> = values.map(HeaderValue::as_bytes).collect();
    if rest.is_empty() {
        return Some(first.clone());
    }
    let all = [&[first.as_bytes()], &*rest].concat().join(&b","[..]);
    HeaderValue::from_bytes(&all).ok()
}

/// Of a trace context nothing but this form is read, whatever its version says.
fn traceparent(headers: &HeaderMap) -> Result<Told, Invalid> {
    let Some(value) = headers.get(TRACEPARENT) else { return Ok(Told::default()) };
    let text = value.to_str().map_err(|_| Invalid)?;
    let mut parts = text.split('-');
    let mut part = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits).ok_or(Invalid)?;
        hex(part)
    };
    let (_, trace_id, id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    if parts.next().is_some() || trace_id == 0 || id == 0 {
        return Err(Invalid);
    }
    let id = u64::try_from(id).map_err(|_| Invalid)?;
    let ids = Ids { trace_id, id, parent: None };
    Ok(Told { ids: Some(ids), sampled: Some(flags & 1 == 1), single: false })
}

fn b3(headers: &HeaderMap) -> Result<Told, Invalid> {
    match headers.get(B3) {
        Some(value) if !value.is_empty() => b3_single(value),
        _ => b3_multi(headers),
    }
}

/// `trace-span-sampled-parent`, of which the last may be missing, or the last two; or whether it
/// is sampled, alone.
fn b3_single(value: &HeaderValue) -> Result<Told, Invalid> {
    let text = value.to_str().map_err(|_| Invalid)?;
    let sampled = |text: &str| match text {
        "0" => Ok(false),
        "1" | "d" => Ok(true),
        _ => Err(Invalid),
    };
    let mut parts = text.split('-');
    let trace_id = parts.next().unwrap_or_default();
    let Some(id) = parts.next() else {
        return Ok(Told { sampled: Some(sampled(trace_id)?), single: true, ids: None });
    };
    if ![16, 32].contains(&trace_id.len()) || id.len() != 16 {
        return Err(Invalid);
    }
    let told = parts.next().map(sampled).transpose()?;
    let parent = match parts.next() {
        None => None,
        Some(parent) if parent.len() == 16 => Some(short(parent)?),
        Some(_) => return Err(Invalid),
    };
    if parts.next().is_some() {
        return Err(Invalid);
    }
    let ids = Ids { trace_id: hex(trace_id)?, id: short(id)?, parent };
    Ok(Told { ids: Some(ids), sampled: told, single: true })
}

fn b3_multi(headers: &HeaderMap) -> Result<Told, Invalid> {
    let value = |name: &HeaderName| joined(headers, name).filter(|value| !value.is_empty());
    let sampled = match (value(&B3_SAMPLED), value(&B3_FLAGS)) {
        (_, Some(flags)) if flags == "1" => Some(true),
        (Some(sampled), _) => Some(sampled == "1" || sampled == "true"),
        (None, _) => None,
    };
    let (Some(trace_id), Some(id)) = (value(&B3_TRACE_ID), value(&B3_SPAN_ID)) else {
        return Ok(Told { sampled, ..Told::default() });
    };
    let number = |value: &HeaderValue| value.to_str().map_err(|_| Invalid).and_then(short);
    let trace_id = match trace_id.len() {
        32 => trace_id.to_str().map_err(|_| Invalid).and_then(hex)?,
        _ => u128::from(number(&trace_id)?),
    };
    let parent = value(&B3_PARENT_ID).as_ref().map(number).transpose()?;
    Ok(Told { ids: Some(Ids { trace_id, id: number(&id)?, parent }), sampled, single: false })
}

fn short(text: &str) -> Result<u64, Invalid> {
    if text.len() > 16 { Err(Invalid) } else { hex(text).map(|id| id as u64) }
}

/// Digits only, at least one.
fn hex(text: &str) -> Result<u128, Invalid> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Invalid);
    }
    u128::from_str_radix(text, 16).map_err(|_| Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        cluster::ClusterName,
        tracing::{ExportProtocol, SpanExport},
    };

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn export() -> SpanExport {
        SpanExport {
            cluster: ClusterName("z".into()),
            authority: "z".parse().unwrap(),
            protocol: ExportProtocol::Http("/".to_owned()),
            timeout: std::time::Duration::from_secs(1),
            headers: vec![],
        }
    }

    fn otel(sampler: Option<Sampler>) -> TracingProvider {
        TracingProvider::OpenTelemetry(OpenTelemetry {
            export: export(),
            resource: vec![],
            scope: true,
            sampler,
            cache_max: 1,
        })
    }

    fn zipkin(shared_span_context: bool, w3c: bool) -> TracingProvider {
        let export = export();
        let trace_id_128bit = true;
        TracingProvider::Zipkin(Zipkin { export, trace_id_128bit, shared_span_context, w3c })
    }

    fn told(context: &Context) -> String {
        let mut headers = HeaderMap::new();
        context.inject(&mut headers);
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines.join(" ")
    }

    #[test]
    fn a_trace_goes_on() {
        let given = headers(&[("traceparent", PARENT), ("tracestate", "a=b"), ("tracestate", "c")]);
        let context = Context::start(&otel(None), &given, true, true).unwrap();
        assert_eq!((context.trace_id, context.parent), (TRACE, Some(0xb7ad_6b71_6920_3331)));
        let id = context.id;
        let expected = format!(
            "traceparent=00-0af7651916cd43dd8448eb211c80319c-{id:016x}-01 tracestate=a=b,c"
        );
        assert_eq!(told(&context), expected);
        let child = context.child();
        assert_eq!((child.trace_id, child.parent), (TRACE, Some(id)));
        assert_ne!(child.id, id);
        // Where there is none, one begins, and nobody's state is told.
        let given = headers(&[("tracestate", "a=b")]);
        let context = Context::start(&otel(None), &given, false, true).unwrap();
        assert_eq!((context.parent, context.sampled), (None, false));
        assert!(told(&context).ends_with("-00 tracestate="), "{}", told(&context));
    }

    #[test]
    fn who_began_a_trace_decides_within_what_is_wanted_here() {
        let check = |sampler, flags: &str, traced, expected: bool| {
            let parent = format!("{}{flags}", &PARENT[..PARENT.len() - 2]);
            let given = headers(&[("traceparent", &parent)]);
            let context = Context::start(&otel(sampler), &given, traced, true).unwrap();
            assert_eq!(context.sampled, expected, "{sampler:?} {flags} {traced}");
        };
        check(None, "01", true, true);
        check(None, "00", true, false);
        check(None, "03", true, true);
        check(None, "01", false, false);
        check(Some(Sampler::AlwaysOn), "00", true, true);
        check(Some(Sampler::AlwaysOn), "01", false, false);
        check(Some(Sampler::ParentOrAlwaysOn), "00", true, false);
    }

    #[test]
    fn what_is_no_trace_context_is_left_alone() {
        for value in [
            "",
            "junk",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
            "00-0af7651916cd43dd8448eb211c80319c-+7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319cb7ad6b7169203331--01",
            "0-00af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let given = headers(&[("traceparent", value)]);
            assert!(Context::start(&otel(None), &given, true, true).is_none(), "{value}");
        }
        for value in [
            "true",
            "80f198ee56343ba8-e457b5a2e4d86bd1-x",
            "80f198ee56343ba8-e457b5a2e4d86bd1-1-",
            "80f198ee56343ba8-e457b5a2e4d86bd1-05e3ac9a4f6e3b90",
            "80f198ee56343ba8-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90-more",
            "-e457b5a2e4d86bd1-1",
        ] {
            let given = headers(&[("b3", value)]);
            assert!(Context::start(&zipkin(true, false), &given, true, true).is_none(), "{value}");
        }
        for (trace, parent) in [("zz", "1"), ("80f198ee56343ba8,1", "1"), ("1", "zz")] {
            let given = headers(&[
                ("x-b3-traceid", trace),
                ("x-b3-spanid", "1"),
                ("x-b3-parentspanid", parent),
            ]);
            assert!(Context::start(&zipkin(true, false), &given, true, true).is_none(), "{trace}");
        }
    }

    #[test]
    fn b3_is_answered_as_it_is_asked() {
        let check =
            |provider: TracingProvider, server, fields: &[(&'static str, &str)], expected: &str| {
                let context = Context::start(&provider, &headers(fields), true, server).unwrap();
                let id = format!("{:016x}", context.id);
                let trace = zipkin_trace_id(context.trace_id);
                assert_eq!(told(&context).replace(&trace, "TRACE").replace(&id, "ID"), expected);
            };
        let shared = || zipkin(true, false);
        let multi = [
            ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
            ("x-b3-spanid", "e457b5a2e4d86bd1"),
            ("x-b3-sampled", "0"),
        ];
        check(shared(), true, &multi, "x-b3-sampled=0 x-b3-spanid=ID x-b3-traceid=TRACE");
        let child =
            "x-b3-parentspanid=e457b5a2e4d86bd1 x-b3-sampled=0 x-b3-spanid=ID x-b3-traceid=TRACE";
        check(shared(), false, &multi, child);
        check(zipkin(false, false), true, &multi, child);
        check(shared(), true, &[], "x-b3-sampled=1 x-b3-spanid=ID x-b3-traceid=TRACE");
        check(shared(), true, &[("b3", "0")], "b3=TRACE-ID-0");
        check(
            shared(),
            false,
            &[("b3", "80f198ee56343ba8-e457b5a2e4d86bd1-d")],
            "b3=TRACE-ID-1-e457b5a2e4d86bd1",
        );
        check(
            zipkin(true, true),
            true,
            &[("traceparent", PARENT)],
            "traceparent=00-TRACE-ID-01 x-b3-sampled=1 x-b3-spanid=ID x-b3-traceid=TRACE",
        );
        let context = Context::start(&shared(), &headers(&multi), true, true).unwrap();
        assert_eq!((context.id, context.parent), (0xe457_b5a2_e4d8_6bd1, None));
        assert!(context.shared && !context.child().shared);
    }
}

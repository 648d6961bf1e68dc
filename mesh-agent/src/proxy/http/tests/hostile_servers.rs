//! Servers that filters ask, and that mean harm: requests fare as the configuration has it for
//! servers that do not answer, and nobody's words become somebody's headers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValue as PbHeaderValue, HeaderValueOption},
        service::{
            auth::v3::{
                CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse,
            },
            ratelimit::v3::{RateLimitResponse, rate_limit_response::Code},
        },
    },
    google::rpc::Status,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};

use super::{
    frames::{
        Act, CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, block, frame, head,
        server,
    },
    harness::{BoxBody, Mesh, Setup, http_upstream},
};
use crate::{
    codec::grpc::encode,
    model::{
        cluster::ClusterName,
        ext_authz::{AuthzService, ExtAuthz, GrpcService},
        filter::{ChainFilter, GlobalRateLimit, HttpFilter, RequestType},
        header_mutation::HeaderMutation,
        rate_limit::{RateLimit, RateLimitAction},
        runtime::{Fraction, RuntimeFraction},
    },
};

const ANSWER_MAX_BYTES: usize = 200_000;
const OK: (&str, &str) = (":status", "200");
const FINE: (&str, &str) = ("grpc-status", "0");

/// What a server's answer is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// It lets the request pass.
    Passes,
    /// There is none.
    Nothing,
    /// It can't be done.
    Invalid,
    /// As `Passes` or `Nothing`, by whether what came before the attack was seen.
    Either,
}

use Worth::{Either, Invalid, Nothing, Passes};

/// Answers with bytes in place of a message, and these trailers.
fn answer(stream: u32, body: &[u8], trailers: &[(&str, &str)]) -> Vec<u8> {
    let mut frames = head(0, stream, &[OK, ("content-type", "application/grpc")]);
    for part in body.chunks(16_000) {
        frames.extend(frame(DATA, 0, stream, part));
    }
    frames.extend(head(END_STREAM, stream, trailers));
    frames
}

fn fine(stream: u32, body: &[u8]) -> Act {
    Act::Says(answer(stream, body, &[FINE]))
}

/// Only a head.
fn only(stream: u32, fields: &[(&str, &str)]) -> Act {
    Act::Says(head(END_STREAM, stream, fields))
}

/// Told the stream, and the message that lets pass.
type Row = (&'static str, fn(u32, &[u8]) -> Act, Worth);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("the control", fine, Passes),
    ("nothing", |_, _| Act::Says(Vec::new()), Nothing),
    ("the end of the connection", |_, _| Act::Leaves(Vec::new()), Nothing),
    ("no HTTP/2", |_, _| Act::Leaves(b"HTTP/1.1 200 OK\r\ngrpc-status: 0\r\n\r\n".to_vec()), Nothing),
    ("garbage", |_, _| Act::Says(vec![0xff; 70_000]), Nothing),
    ("a reset", |s, _| Act::Says(frame(RST_STREAM, 0, s, &[0, 0, 0, 0])), Nothing),
    ("farewell", |_, _| Act::Leaves(frame(GOAWAY, 0, 0, &[0; 8])), Nothing),
    ("data before headers", |s, good| Act::Says(frame(DATA, END_STREAM, s, good)), Nothing),
    // Answers that are none.
    ("a status and no message", |s, _| fine(s, &[]), Nothing),
    ("a message that is none", |s, _| fine(s, b"\0\0\0\0\x04\xff\xff\xff\xff"), Nothing),
    ("a message that breaks off", |s, _| fine(s, b"\0\0\0\x10\0abc"), Nothing),
    ("a length of all there is", |s, _| fine(s, b"\0\xff\xff\xff\xff"), Nothing),
    ("half a prefix", |s, _| fine(s, b"\0\0\0"), Nothing),
    ("a compressed message", |s, good| fine(s, &[&[1], &good[1..]].concat()), Nothing),
    ("two messages", |s, good| fine(s, &good.repeat(2)), Nothing),
    ("a message and a rest", |s, good| fine(s, &[good, b"\0"].concat()), Nothing),
    ("too much", |s, _| fine(s, &[b'x'; ANSWER_MAX_BYTES + 20_000]), Nothing),
    ("data without end", |s, good| Act::Floods([head(0, s, &[OK]), frame(DATA, 0, s, good)].concat(), frame(DATA, 0, s, &[b'x'; 1000])), Nothing),
    ("data of nothing without end", |s, good| Act::Floods([head(0, s, &[OK]), frame(DATA, 0, s, good)].concat(), frame(DATA, 0, s, &[])), Nothing),
    ("a block without end", |s, _| Act::Floods(frame(HEADERS, 0, s, &block(&[OK])), frame(CONTINUATION, 0, s, &block(&[("x", "y")]))), Nothing),
    ("trailers without end", |s, good| Act::Floods([head(0, s, &[OK]), frame(DATA, 0, s, good), frame(HEADERS, 1, s, &block(&[FINE]))].concat(), frame(CONTINUATION, 0, s, &block(&[("x", &"v".repeat(4000))]))), Nothing),
    ("early hints without end", |s, _| Act::Floods(Vec::new(), head(0, s, &[(":status", "103")])), Nothing),
    // Statuses.
    ("a body that just ends", |s, good| Act::Says([head(0, s, &[OK]), frame(DATA, END_STREAM, s, good)].concat()), Nothing),
    ("a message, and no", |s, good| Act::Says(answer(s, good, &[("grpc-status", "7")])), Nothing),
    ("a message, and a status that is none", |s, good| Act::Says(answer(s, good, &[("grpc-status", "ok")])), Nothing),
    ("a message, and a status that is nothing", |s, good| Act::Says(answer(s, good, &[("grpc-status", "")])), Nothing),
    ("a message, and a large status", |s, good| Act::Says(answer(s, good, &[("grpc-status", "4294967296")])), Nothing),
    ("a message, and a status below nothing", |s, good| Act::Says(answer(s, good, &[("grpc-status", "-0")])), Nothing),
    ("a head that says no", |s, _| only(s, &[OK, ("grpc-status", "16"), ("grpc-message", "no")]), Nothing),
    ("a head that says yes, and no message", |s, _| only(s, &[OK, FINE]), Nothing),
    ("yes before, no behind", |s, good| Act::Says([head(0, s, &[OK, FINE]), frame(DATA, 0, s, good), head(END_STREAM, s, &[("grpc-status", "7")])].concat()), Nothing),
    ("a page", |s, good| Act::Says([head(0, s, &[(":status", "503"), FINE]), frame(DATA, 0, s, good), head(END_STREAM, s, &[FINE])].concat()), Nothing),
    ("another page", |s, good| Act::Says([head(0, s, &[(":status", "201")]), frame(DATA, 0, s, good), head(END_STREAM, s, &[FINE])].concat()), Nothing),
    ("two answers", |s, good| Act::Says([answer(s, good, &[FINE]), answer(s, good, &[FINE])].concat()), Either),
    ("an answer, and garbage", |s, good| Act::Says([answer(s, good, &[FINE]), vec![0xff; 100]].concat()), Either),
];

async fn app() -> SocketAddr {
    http_upstream(true, |request: Request<hyper::body::Incoming>| async move {
        let seen = format!("the app saw {:?}", request.headers());
        let body: BoxBody =
            Full::new(Bytes::from(seen)).map_err(|never| match never {}).boxed_unsync();
        Response::new(body)
    })
    .await
}

fn service(silent: bool) -> GrpcService {
    // Long enough for the slowest machine, unless it is waited for.
    let timeout = if silent { Duration::from_millis(300) } else { Duration::from_secs(30) };
    GrpcService {
        cluster: ClusterName("shadow".into()),
        authority: "asked".to_owned(),
        timeout: Some(timeout),
        initial_metadata: Vec::new(),
        answer_max_bytes: ANSWER_MAX_BYTES,
    }
}

fn authz(service: GrpcService, lenient: bool) -> HttpFilter {
    HttpFilter::ExtAuthz(Arc::new(ExtAuthz {
        service: AuthzService::Grpc(service),
        failure_mode_allow: lenient,
        failure_mode_allow_header_add: false,
        body: None,
        clear_route_cache: false,
        status_on_error: 403,
        metadata_namespaces: Vec::new(),
        enabled: None,
        enabled_metadata: None,
        allowed_headers: None,
        disallowed_headers: Vec::new(),
        takes_metadata: true,
        denied_body_max_bytes: None,
    }))
}

fn limit(service: GrpcService, lenient: bool) -> HttpFilter {
    let always = || RuntimeFraction { key: String::new(), default: Fraction::percent(100) };
    let action = RateLimitAction::GenericKey { key: "k".to_owned(), value: "v".to_owned() };
    HttpFilter::GlobalRateLimit(Arc::new(GlobalRateLimit {
        service,
        domain: "d".to_owned(),
        stage: 0,
        requests: RequestType::Both,
        enabled: always(),
        enforced: always(),
        deny_on_failure: !lenient,
        deny_on_failure_fraction: None,
        status: 429,
        status_on_error: 503,
        resource_exhausted: false,
        response: Arc::new(HeaderMutation { remove: Vec::new(), add: Vec::new() }),
        x_ratelimit: true,
        x_envoy_ratelimited: true,
        retry_after: true,
        rate_limits: vec![RateLimit {
            stage: 0,
            disable_key: String::new(),
            actions: vec![action],
            hits: None,
            x_ratelimit: None,
        }],
        metadata_namespace: "limited".to_owned(),
    }))
}

type Filter = fn(GrpcService, bool) -> HttpFilter;

/// Asks while the server does its worst, by a filter that lets pass where there is no answer and
/// by one that does not, and once more when the server is well again.
async fn stands(
    filter: Filter,
    good: &Bytes,
    name: &str,
    attack: impl Fn(u32, &[u8]) -> Act + Clone + Send + Sync + 'static,
    (strict, lenient): (&[u16], &[u16]),
) {
    // What is silent, or without end where that is no fault, ends by its timeout.
    let silent = name == "nothing" || name.starts_with("early hints");
    for (lets, expected) in [(false, strict), (true, lenient)] {
        let (attack, of_attack, of_well) = (attack.clone(), good.clone(), good.clone());
        let peer = server(
            move |stream| attack(stream, &of_attack),
            move |stream| answer(stream, &of_well, &[FINE]),
        );
        let filter = filter(service(silent), lets);
        let filters = vec![ChainFilter { name: "asks".into(), disabled: false, filter }];
        let mesh =
            Mesh::new(Setup { shadow: Some(peer.await), filters, ..Setup::http2(app().await) });
        let (status, text) = ask(&mesh).await;
        assert!(expected.contains(&status), "{name}, lets pass: {lets}: {text:?}");
        assert!(!text.contains("injected"), "{name}: {text:?}");
        assert_eq!(text.contains("the app saw"), status == 200, "{name}: {text:?}");
        for tries in 1.. {
            let (status, text) = ask(&mesh).await;
            if status == 200 {
                break;
            }
            assert!(tries < 50, "{name}: {text:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn ask(mesh: &Mesh) -> (u16, String) {
    let mut client = mesh.connect().await;
    client.write("GET /x HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n").await;
    let (text, _) = client.rest().await;
    client.served.await.expect("the agent does not panic");
    let status = text.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{text:?}")), text)
}

async fn all_stand(filter: Filter, good: Bytes, of_nothing: u16) {
    for (name, attack, worth) in ROWS {
        let strict: &[u16] = match worth {
            Passes => &[200],
            Either => &[200, of_nothing],
            Nothing | Invalid => &[of_nothing],
        };
        stands(filter, &good, name, attack, (strict, &[200])).await;
    }
}

fn let_pass() -> Bytes {
    // The shortest of a message that passes has nothing in it.
    encode(&CheckResponse { status: Some(Status::default()), ..CheckResponse::default() })
}

fn within_limits() -> Bytes {
    let overall_code = Code::Ok.into();
    encode(&RateLimitResponse { overall_code, ..RateLimitResponse::default() })
}

#[tokio::test]
async fn who_authorises_badly_does_not_authorise() {
    all_stand(authz, let_pass(), 403).await;
}

#[tokio::test]
async fn who_counts_badly_does_not_count() {
    all_stand(limit, within_limits(), 503).await;
}

/// Names and values of headers, so many of each, and what they are worth.
fn headers() -> Vec<(String, String, usize, Worth)> {
    let one = |name: &str, value: &str, worth| (name.to_owned(), value.to_owned(), 1, worth);
    vec![
        one("x-fine", "1", Passes),
        one("x-more", "y\r\ninjected: 1", Invalid),
        one("x-more", "y\ninjected: 1", Invalid),
        one("x-more", "y\rinjected: 1", Invalid),
        one("x-more", "injected\0", Invalid),
        one("x\r\ninjected", "1", Invalid),
        one("injected: 1\r\nx", "1", Invalid),
        one("in jected", "1", Invalid),
        one("", "injected", Invalid),
        one(":path", "/injected", Invalid),
        one("x-much", &"v".repeat(70_000), Invalid),
        ("x-many".to_owned(), "v".to_owned(), 2000, Invalid),
        // As many as an answer has room for.
        ("a".to_owned(), "b".to_owned(), 17_000, Invalid),
    ]
}

fn pb(name: &str, value: &str) -> PbHeaderValue {
    PbHeaderValue { key: name.to_owned(), value: value.to_owned(), ..PbHeaderValue::default() }
}

#[tokio::test]
async fn no_header_of_an_authorisation_server_is_two() {
    let option = |name: &str, value: &str| HeaderValueOption {
        header: Some(pb(name, value)),
        ..HeaderValueOption::default()
    };
    let good = let_pass();
    let framing = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te"]
        .map(|name| (name.to_owned(), "injected".to_owned(), 1, Invalid));
    for (name, value, times, worth) in headers().into_iter().chain(framing) {
        let all = vec![option(&name, &value); times];
        let framing = framing_names(&name);
        let ok = |response| CheckResponse {
            status: Some(Status::default()),
            http_response: Some(HttpResponse::OkResponse(response)),
            ..CheckResponse::default()
        };
        let to_upstream = OkHttpResponse { headers: all.clone(), ..OkHttpResponse::default() };
        let to_client =
            OkHttpResponse { response_headers_to_add: all.clone(), ..OkHttpResponse::default() };
        let denied = CheckResponse {
            status: Some(Status { code: 7, ..Status::default() }),
            http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
                headers: all,
                ..DeniedHttpResponse::default()
            })),
            ..CheckResponse::default()
        };
        // Of a denial, headers that frame are left out, and it is none the less one.
        let of_denial = if worth == Passes || framing { 403 } else { 500 };
        let of_ok = if worth == Passes { 200 } else { 500 };
        for (message, status) in
            [(ok(to_upstream), of_ok), (ok(to_client), of_ok), (denied, of_denial)]
        {
            let message = encode(&message);
            let attack = move |stream: u32, _: &[u8]| fine(stream, &message);
            let told = format!("{} {}", &name[..name.len().min(20)], &value[..value.len().min(20)]);
            stands(authz, &good, &told, attack, (&[status], &[status])).await;
        }
    }
}

fn framing_names(name: &str) -> bool {
    ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te"].contains(&name)
}

#[tokio::test]
async fn no_header_of_a_rate_limit_server_is_two() {
    let good = within_limits();
    for (name, value, times, worth) in headers() {
        let all = || vec![pb(&name, &value); times];
        let overall_code = Code::Ok.into();
        let to_upstream = RateLimitResponse {
            overall_code,
            request_headers_to_add: all(),
            ..RateLimitResponse::default()
        };
        let to_client = RateLimitResponse {
            overall_code,
            response_headers_to_add: all(),
            ..RateLimitResponse::default()
        };
        let strict = if worth == Passes { 200 } else { 503 };
        for message in [to_upstream, to_client] {
            let message = encode(&message);
            let attack = move |stream: u32, _: &[u8]| fine(stream, &message);
            let told = format!("{} {}", &name[..name.len().min(20)], &value[..value.len().min(20)]);
            stands(limit, &good, &told, attack, (&[strict], &[200])).await;
        }
    }
}

#[tokio::test]
async fn a_server_makes_no_request_larger_than_its_listener_takes() {
    // By name each is another one; with what clients and the agent say it is too many.
    let names: Vec<_> = (0..100).map(|n| format!("x-{n}")).collect();
    let options = names.iter().map(|name| HeaderValueOption {
        header: Some(pb(name, "v")),
        ..HeaderValueOption::default()
    });
    let many = OkHttpResponse { headers: options.collect(), ..OkHttpResponse::default() };
    let message = encode(&CheckResponse {
        status: Some(Status::default()),
        http_response: Some(HttpResponse::OkResponse(many)),
        ..CheckResponse::default()
    });
    let attack = move |stream: u32, _: &[u8]| fine(stream, &message);
    stands(authz, &let_pass(), "many", attack, (&[500], &[500])).await;

    let message = encode(&RateLimitResponse {
        overall_code: Code::Ok.into(),
        request_headers_to_add: names.iter().map(|name| pb(name, "v")).collect(),
        ..RateLimitResponse::default()
    });
    let attack = move |stream: u32, _: &[u8]| fine(stream, &message);
    stands(limit, &within_limits(), "many", attack, (&[503], &[200])).await;
}

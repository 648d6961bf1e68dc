//! Bodies that are compressed and expanded on their way.

use serde_json::{Value, json};
use tests::{
    coding::encoded,
    corpus::{Ask, of_bytes},
};

use super::{Case, case, get, routes, to, typed};

const COMPRESSOR: &str = "extensions.filters.http.compressor.v3.Compressor";
const PER_ROUTE: &str = "extensions.filters.http.compressor.v3.CompressorPerRoute";
const DECOMPRESSOR: &str = "extensions.filters.http.decompressor.v3.Decompressor";
const MUTATION: &str = "extensions.filters.http.header_mutation.v3.HeaderMutation";

/// A library of that kind: `gzip.compressor.v3.Gzip`.
fn library(kind: &str, config: Value) -> Value {
    json!({ "name": "lib", "typed_config": typed(&format!("extensions.compression.{kind}"), config) })
}

const GZIP: &str = "gzip.compressor.v3.Gzip";
const BROTLI: &str = "brotli.compressor.v3.Brotli";
const ZSTD: &str = "zstd.compressor.v3.Zstd";

fn compressor(kind: &str, fields: Value) -> Value {
    let mut config = json!({ "compressor_library": library(kind, json!({})) });
    super::merge(&mut config, fields);
    config
}

fn compressed(name: &'static str, kind: &str, fields: Value) -> Case {
    case(name, to("one")).filter("c", COMPRESSOR, compressor(kind, fields))
}

fn response(fields: Value) -> Value {
    json!({ "response_direction_config": fields })
}

/// For an answer of text that is worth it, with these fields.
fn text(accepts: &str, fields: Value) -> Ask {
    let mut answer =
        json!({ "headers": [["content-type", "text/plain"]], "body": "some text ", "times": 10 });
    super::merge(&mut answer, fields);
    let ask = get("/").answered(&answer);
    if accepts.is_empty() { ask } else { ask.with("accept-encoding", accepts) }
}

fn headers(more: &[(&str, &str)]) -> Value {
    let all = [("content-type", "text/plain")].iter().chain(more);
    json!({ "headers": all.collect::<Vec<_>>() })
}

fn expanded(name: &'static str, kind: &str, fields: Value) -> Case {
    let mut config = json!({ "decompressor_library": library(kind, json!({})) });
    super::merge(&mut config, fields);
    case(name, to("one")).filter("d", DECOMPRESSOR, config)
}

fn coded(coding: &str) -> Ask {
    let mut answer = headers(&[("content-encoding", coding)]);
    super::merge(&mut answer, json!({ "coding": coding }));
    text("", answer)
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let post = |body: &str| Ask::new("POST", "/").body(body);
    let posted = |coding: &str| post(&of_bytes(&encoded(coding, "some text ".repeat(20).as_bytes()))).with("content-encoding", coding);
    let long = "some text ".repeat(10);
    let two = |name: &'static str, first: Value, second: Value| case(name, to("one")).filter("a", COMPRESSOR, first).filter("b", COMPRESSOR, second);
    let fail = "content that is not what its coding says ends the exchange";
    vec![
        compressed("compress: gzip", GZIP, json!({}))
            .asks(text("gzip", json!({}))).asks(text("gzip", json!({})).http2()).asks(text("", json!({}))).asks(text("br", json!({})))
            .asks(text("gzip;q=0", json!({}))).asks(text("gzip;q=0, *", json!({}))).asks(text("*", json!({}))).asks(text("*;q=0", json!({}))).asks(text("identity, gzip;q=0.5", json!({})))
            .asks(text("gzip;q=0.1, identity;q=0", json!({}))).asks(text("GZIP", json!({}))).asks(text("x-gzip", json!({})))
            .asks(text("gzip;q=x", json!({}))).asks(text(" gzip ; q=1", json!({})))
            .asks(text("gzip", json!({ "headers": [["content-type", "image/png"]] })))
            .asks(text("gzip", json!({ "headers": [["content-type", "TEXT/html; charset=x"]] }))).asks(text("gzip", json!({ "headers": [] })))
            .asks(text("gzip", json!({ "times": 2 }))).asks(text("gzip", json!({ "times": 3 }))).asks(text("gzip", json!({ "times": 1000 })))
            .asks(text("gzip", json!({ "trailers": [["x-t", "1"]] }))).asks(text("gzip", json!({ "trailers": [["x-t", "1"]], "times": 1 })))
            .asks(text("gzip", headers(&[("content-encoding", "br")]))).asks(text("gzip", headers(&[("cache-control", "max-age=1, No-Transform")]))).asks(text("gzip", headers(&[("cache-control", "no-cache")])))
            .asks(text("gzip", headers(&[("etag", "\"abc\"")]))).asks(text("gzip", headers(&[("etag", "W/\"abc\"")]))).asks(text("gzip", headers(&[("etag", "x")])))
            .asks(text("gzip", headers(&[("vary", "Cookie")]))).asks(text("gzip", headers(&[("vary", "accept-encoding")]))).asks(text("gzip", headers(&[("vary", "*")])))
            .asks(text("gzip", json!({ "status": 404 })).is(404)).asks(text("gzip", json!({ "status": 204 })).is(204)).asks(text("gzip", json!({ "status": 304 })).is(304))
            .asks(Ask { method: "HEAD".to_owned(), ..text("gzip", headers(&[("content-length", "100")])) }).asks(post("x")),
        case("compress: from HTTP/2", to("h2")).filter("c", COMPRESSOR, compressor(GZIP, json!({})))
            .asks(text("gzip", json!({}))).asks(text("gzip", json!({})).http2()).asks(text("gzip", headers(&[("content-length", "100")]))).asks(text("gzip", json!({ "trailers": [["x-t", "1"]] })).http2()),
        compressed("compress: brotli", BROTLI, json!({})).asks(text("br", json!({}))).asks(text("gzip, br", json!({}))).asks(text("gzip", json!({}))),
        compressed("compress: zstd", ZSTD, json!({})).asks(text("zstd", json!({}))).asks(text("gzip, zstd;q=0.1", json!({}))).asks(text("zstd", json!({ "times": 5000 }))),
        compressed("compress: library settings", GZIP, json!({ "compressor_library": { "typed_config": { "memory_level": 3, "window_bits": 10, "compression_level": "BEST_SPEED", "chunk_size": 4096 } } })).asks(text("gzip", json!({}))),
        two("compress: the last filter is asked first", compressor(GZIP, json!({})), compressor(BROTLI, json!({})))
            .asks(text("gzip, br", json!({}))).asks(text("br, gzip", json!({}))).asks(text("br;q=0.5, gzip", json!({}))).asks(text("*", json!({}))).asks(text("br", json!({}))).asks(text("gzip", json!({}))),
        two("compress: one is chosen first", compressor(GZIP, json!({})), compressor(BROTLI, json!({ "choose_first": true })))
            .asks(text("gzip, br", json!({}))).asks(text("br, gzip", json!({}))).asks(text("gzip, br;q=0.9", json!({}))).asks(text("*", json!({}))).asks(text("gzip, *", json!({}))),
        two("compress: types of content", compressor(GZIP, response(json!({ "common_config": { "content_type": ["text/html"] } }))), compressor(BROTLI, response(json!({ "common_config": { "content_type": ["text/plain"] } }))))
            .asks(text("gzip, br;q=0.5", json!({}))).asks(text("gzip, br;q=0.5", json!({ "headers": [["content-type", "text/html"]] }))).asks(text("gzip, br;q=0.5", json!({ "headers": [["content-type", "text/css"]] }))),
        compressed("compress: fields of before", GZIP, json!({ "content_length": 200, "content_type": ["text/plain"], "disable_on_etag_header": true, "remove_accept_encoding_header": true }))
            .asks(text("gzip", json!({}))).asks(text("gzip", json!({ "times": 20 }))).asks(text("gzip", json!({ "times": 20, "headers": [["etag", "\"a\""], ["content-type", "text/plain"]] }))),
        compressed("compress: responses", GZIP, response(json!({ "disable_on_etag_header": true, "remove_accept_encoding_header": true, "uncompressible_response_codes": [201], "common_config": { "min_content_length": 50 } })))
            .asks(text("gzip", json!({}))).asks(text("gzip", json!({ "times": 4 }))).asks(text("gzip", json!({ "status": 201 })).is(201)).asks(text("gzip", headers(&[("etag", "\"abc\"")]))),
        compressed("compress: nothing", GZIP, response(json!({ "remove_accept_encoding_header": true, "common_config": { "enabled": { "default_value": false, "runtime_key": "no.such.key" } } }))).asks(text("gzip", json!({}))),
        compressed("compress: requests", GZIP, json!({ "request_direction_config": { "common_config": { "min_content_length": 20, "content_type": ["text/plain"] } } }))
            .asks(post(&long).with("content-type", "text/plain")).asks(post(&long)).asks(post("short").with("content-type", "text/plain")).asks(post(&long).with("content-type", "image/png"))
            .asks(post(&long).with("content-encoding", "br")).asks(post(&long).with("transfer-encoding", "chunked")).asks(post(&long).http2()).asks(get("/")),
        case("compress: requests to HTTP/2", to("h2")).filter("c", COMPRESSOR, compressor(BROTLI, json!({ "request_direction_config": {} })))
            .asks(post(&long)).asks(post(&long).http2()).asks(post(&long).trailer("x-t", "1").http2()),
        case("compress: own answers", routes(json!([
            { "match": { "prefix": "/long" }, "direct_response": { "status": 200, "body": { "inline_string": long } } },
            { "match": { "prefix": "/short" }, "direct_response": { "status": 200, "body": { "inline_string": "short" } } },
            { "match": { "prefix": "/none" }, "direct_response": { "status": 200 } },
        ]))).filter("c", COMPRESSOR, compressor(GZIP, json!({})))
            .asks(get("/long").with("accept-encoding", "gzip")).asks(get("/long").with("accept-encoding", "gzip").http2()).asks(get("/long")).asks(get("/short").with("accept-encoding", "gzip"))
            .asks(get("/none").with("accept-encoding", "gzip")).asks(get("/nowhere").with("accept-encoding", "gzip").is(404)).asks(Ask::new("HEAD", "/long").with("accept-encoding", "gzip")),
        case("compress: routes", routes(json!([
            { "match": { "prefix": "/off" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "c": typed(PER_ROUTE, json!({ "disabled": true })) } },
            { "match": { "prefix": "/on" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "c": typed(PER_ROUTE, json!({ "overrides": { "response_direction_config": {} } })) } },
            { "match": { "prefix": "/remove" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "c": typed(PER_ROUTE, json!({ "overrides": { "response_direction_config": { "remove_accept_encoding_header": true } } })) } },
            { "match": { "prefix": "/library" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "c": typed(PER_ROUTE, json!({ "overrides": { "response_direction_config": {}, "compressor_library": library(BROTLI, json!({})) } })) } },
            { "match": { "prefix": "/empty" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "c": typed(PER_ROUTE, json!({ "overrides": {} })) } },
            { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
        ]))).filter("c", COMPRESSOR, compressor(GZIP, response(json!({ "common_config": { "enabled": { "default_value": false, "runtime_key": "no.such.key" } } }))))
            .asks(text("gzip, br", json!({}))).asks(Ask { target: "/off".into(), ..text("gzip, br", json!({})) }).asks(Ask { target: "/on".into(), ..text("gzip, br", json!({})) })
            .asks(Ask { target: "/remove".into(), ..text("gzip, br", json!({})) }).asks(Ask { target: "/library".into(), ..text("gzip, br;q=0.5", json!({})) }).asks(Ask { target: "/empty".into(), ..text("gzip, br", json!({})) }),
        case("compress: between other filters", to("one"))
            .filter("first", MUTATION, json!({ "mutations": { "response_mutations": [{ "append": { "header": { "key": "x-saw", "value": "%RESP(content-encoding)% %RESP(content-length)%" } } }] } }))
            .filter("c", COMPRESSOR, compressor(GZIP, json!({})))
            .filter("last", MUTATION, json!({ "mutations": { "response_mutations": [{ "append": { "header": { "key": "x-before", "value": "[%RESP(content-encoding)%] %RESP(content-length)%" } } }] } }))
            .asks(text("gzip", json!({}))),
        expanded("expand: gzip", "gzip.decompressor.v3.Gzip", json!({}))
            .asks(coded("gzip")).asks(coded("gzip").http2()).asks(coded("br")).asks(text("", json!({}))).asks(text("br, gzip;q=0.5", json!({})))
            .asks(text("", { let mut all = headers(&[("content-encoding", "GZIP, x")]); all["coding"] = "gzip".into(); all }))
            .asks(text("", { let mut all = headers(&[("content-encoding", "gzip"), ("cache-control", "no-transform")]); all["coding"] = "gzip".into(); all }))
            .asks(posted("gzip")).asks(posted("gzip").http2()).asks(posted("br")).asks(posted("gzip").with("cache-control", "no-transform")).asks(post("plain"))
            .asks(text("", headers(&[("content-encoding", "gzip")])).differs("status", fail)),
        case("expand: to and from HTTP/2", to("h2")).filter("d", DECOMPRESSOR, json!({ "decompressor_library": library("gzip.decompressor.v3.Gzip", json!({})) }))
            .asks(coded("gzip").http2()).asks(posted("gzip").http2()).asks(posted("gzip")).asks(posted("gzip").trailer("x-t", "1").http2()),
        expanded("expand: brotli", "brotli.decompressor.v3.Brotli", json!({})).asks(coded("br")).asks(posted("br")).asks(coded("gzip")),
        expanded("expand: zstd", "zstd.decompressor.v3.Zstd", json!({})).asks(coded("zstd")).asks(posted("zstd")).asks(coded("gzip")),
        expanded("expand: directions", "gzip.decompressor.v3.Gzip", json!({
            "request_direction_config": { "advertise_accept_encoding": false, "common_config": { "enabled": { "default_value": false, "runtime_key": "no.such.key" } } },
            "response_direction_config": { "common_config": { "ignore_no_transform_header": true } },
        }))
            .asks(text("", { let mut all = headers(&[("content-encoding", "gzip"), ("cache-control", "no-transform")]); all["coding"] = "gzip".into(); all })).asks(posted("gzip")),
        expanded("expand: not responses", "gzip.decompressor.v3.Gzip", json!({ "response_direction_config": { "common_config": { "enabled": { "default_value": false, "runtime_key": "no.such.key" } } } })).asks(coded("gzip")).asks(posted("gzip")),
        expanded("expand: and compress again", "gzip.decompressor.v3.Gzip", json!({})).filter("c", COMPRESSOR, compressor(BROTLI, json!({}))).asks(coded("gzip").with("accept-encoding", "br")),
        case("expand: before it is compressed", to("one")).filter("c", COMPRESSOR, compressor(BROTLI, json!({}))).filter("d", DECOMPRESSOR, json!({ "decompressor_library": library("gzip.decompressor.v3.Gzip", json!({})) }))
            .asks(coded("gzip").with("accept-encoding", "br")).asks(coded("gzip").with("accept-encoding", "gzip")),
        expanded("expand: before a limit", "gzip.decompressor.v3.Gzip", json!({})).filter("b", "extensions.filters.http.buffer.v3.Buffer", json!({ "max_request_bytes": 150 }))
            .asks(posted("gzip").is(413)).asks(post(&of_bytes(&encoded("gzip", b"short"))).with("content-encoding", "gzip")),
        compressed("compress: by whom", GZIP, json!({ "compressor_library": { "typed_config": { "@type": "type.googleapis.com/envoy.config.core.v3.Address" } } })).refused("compressor_library: lib (envoy.config.core.v3.Address) is not supported"),
        compressed("compress: a level there is not", GZIP, json!({ "compressor_library": { "typed_config": { "window_bits": 8 } } })).refused_by_both("compressor_library.window_bits: 8 is not within 9 to 15", "must be inside range [9, 15]"),
        compressed("compress: another strategy", GZIP, json!({ "compressor_library": { "typed_config": { "compression_strategy": "RLE" } } })).refused("compression_strategy: is not supported"),
    ]
}

//! Bytes on which two readers could disagree where a request ends, or what it says.

use serde_json::json;
use tests::corpus::Ask;

use super::{Case, case, to};

const WORDS: &str = "the agent says what it is that is wrong";
const LENIENT: &str = "the agent refuses what readers do not agree on (RFC 9112 §2.2, §5.2)";
const VERSION: &str = "what is no HTTP/1.1 is 400, not 426";

/// A head without its last empty line, marked for the witness.
fn raw(line: &str, headers: &str, rest: &str) -> Ask {
    // Each question of the case has its number.
    Ask::bytes(&format!("{line}\r\nhost: test\r\nx-case: CASE\r\n{headers}\r\n{rest}"))
}

/// A request that must not get to an upstream unless it is really one.
const NEXT: &str = "GET /next HTTP/1.1\r\nhost: test\r\nx-case: CASE\r\n\r\n";

fn post(headers: &str, rest: &str) -> Ask {
    raw("POST /first HTTP/1.1", headers, &format!("{rest}{NEXT}"))
}

fn get(line: &str) -> Ask {
    raw(line, "", "")
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    vec![
        case("smuggling-lengths", to("one"))
            .asks(post("content-length: 5\r\n", "hello"))
            .asks(post("content-length: 0\r\n", ""))
            .asks(post("content-length: 5\r\ncontent-length: 5\r\n", "hello").is(400))
            .asks(post("content-length: 5\r\ncontent-length: 6\r\n", "hello").is(400))
            .asks(post("content-length: 5, 5\r\n", "hello").is(400))
            .asks(post("content-length: +5\r\n", "hello").is(400))
            .asks(post("content-length: -1\r\n", "").is(400))
            .asks(post("content-length: 0x5\r\n", "hello").is(400))
            .asks(post("content-length: 5 \r\n", "hello"))
            .asks(post("content-length:5\r\n", "hello"))
            .asks(post("content-length: \r\n", "").is(400))
            .asks(post("content-length : 5\r\n", "hello").is(400))
            .asks(post("content-length: 18446744073709551616\r\n", "").is(400))
            .asks(post("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n").is(400))
            .asks(post("transfer-encoding: chunked\r\ncontent-length: 5\r\n", "0\r\n\r\n").is(400)),
        case("smuggling-encodings", to("one"))
            .asks(post("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"))
            .asks(post("transfer-encoding: Chunked\r\n", "0\r\n\r\n"))
            .asks(post("transfer-encoding: xchunked\r\n", "0\r\n\r\n").is(501))
            .asks(post("transfer-encoding: identity\r\n", "").is(501))
            .asks(post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n").is(501))
            .asks(post("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n").is(501))
            .asks(post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n").is(501))
            .asks(post("transfer-encoding:\tchunked\r\n", "0\r\n\r\n"))
            .asks(post("transfer-encoding : chunked\r\n", "0\r\n\r\n").is(400))
            .asks(post("transfer-encoding\r\n", "").is(400))
            .asks(post("transfer-encoding: chunked\r\n", "5;ext=1\r\nhello\r\n0\r\n\r\n"))
            .asks(post("transfer-encoding: chunked\r\n", "05\r\nhello\r\n000\r\n\r\n"))
            .asks(post("transfer-encoding: chunked\r\n", "zz\r\nhello\r\n0\r\n\r\n").is(400))
            .asks(post("transfer-encoding: chunked\r\n", "5\r\nhelloXX0\r\n\r\n").is(400))
            .asks(post("transfer-encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n").is(400))
            .asks(post("transfer-encoding: chunked\r\n", "ffffffffffffffffff\r\n").is(400))
            .asks(post("transfer-encoding: chunked\r\n", "5\nhello\n0\n\n").is(400))
            .asks(raw("POST /1.0 HTTP/1.0", "transfer-encoding: chunked\r\n", "0\r\n\r\n").is(426).differs("status", VERSION)),
        case("smuggling-lines", to("one"))
            .asks(get("GET / HTTP/1.1")).asks(get("GET  / HTTP/1.1").differs("status", LENIENT)).asks(get("GET /\tx HTTP/1.1").is(400))
            .asks(get("GET / HTTP/1.2").is(426).differs("status", VERSION)).asks(get("GET / HTTP/2.0").is(426).differs("status", VERSION)).asks(get("GET / http/1.1").is(400))
            .asks(get("GET /").is(426).differs("status", VERSION)).asks(get(" GET / HTTP/1.1").is(400)).asks(get("get / HTTP/1.1").is(400))
            .asks(get("GET / HTTP/1.0").is(426)).asks(get("GET nothing HTTP/1.1").is(400)).asks(get("GET /\u{e9} HTTP/1.1").is(400))
            .asks(get("GET /\u{1} HTTP/1.1").is(400)).asks(get("\r\nGET / HTTP/1.1")).asks(get("G\u{0}T / HTTP/1.1").is(400)),
        case("smuggling-fields", to("one"))
            .asks(raw("GET / HTTP/1.1", "x: a\u{0}b\r\n", "").is(400)).asks(raw("GET / HTTP/1.1", "x: a\rb\r\n", "").differs("status", LENIENT))
            .asks(raw("GET / HTTP/1.1", "x: a\nb: c\r\n", "").differs("status", LENIENT)).asks(raw("GET / HTTP/1.1", "x: a\r\n folded\r\n", "").differs("status", LENIENT))
            .asks(raw("GET / HTTP/1.1", ": empty\r\n", "").is(400)).asks(raw("GET / HTTP/1.1", "x y: 1\r\n", "").is(400))
            .asks(raw("GET / HTTP/1.1", "x(y): 1\r\n", "").is(400)).asks(raw("GET / HTTP/1.1", "host: other\r\n", "").differs("status", LENIENT))
            .asks(raw("GET / HTTP/1.1", "no colon\r\n", "").is(400)).asks(raw("GET / HTTP/1.1", "x: \u{7f}\r\n", "").is(400))
            .asks(raw("GET / HTTP/1.1", ":path: /other\r\n", "").is(400)).asks(raw("GET / HTTP/1.1", "x: \t a \t\r\n", ""))
            .asks(raw("GET / HTTP/1.1", "connection: transfer-encoding\r\n", "")).asks(raw("GET / HTTP/1.1", "connection: host\r\n", "").is(400))
            .asks(raw("GET / HTTP/1.1", "connection: X-Forwarded-For\r\n", "").is(400)).asks(raw("GET / HTTP/1.1", "connection: x-forwarded-host\r\n", "").is(400))
            .asks(raw("GET / HTTP/1.1", "connection: x-forwarded-proto\r\n", "").is(400)).asks(raw("GET / HTTP/1.1", "connection: :path\r\n", "").is(400))
            .asks(raw("GET / HTTP/1.1", "connection: a,b,c,d,e,f,g,h,i\r\n", "")).asks(raw("GET / HTTP/1.1", "connection: a,b,c,d,e,f,g,h,i,j\r\n", "").is(400)),
        case("smuggling-methods", to("one"))
            .asks(get("PURGE / HTTP/1.1")).asks(get("MSEARCH / HTTP/1.1")).asks(get("SUBSCRIBE / HTTP/1.1")).asks(get("M-SEARCH / HTTP/1.1").is(400))
            .asks(get("QUERY / HTTP/1.1").is(400).differs("body", WORDS).differs("header content-length", WORDS).differs("header content-type", WORDS)).asks(get("Get / HTTP/1.1").is(400)).asks(Ask::new("BREW", "/").http2()),
        case("pipelining", to("one"))
            .asks(raw("GET /1 HTTP/1.1", "", &format!("{NEXT}{NEXT}")))
            .asks(raw("GET /1 HTTP/1.1", "connection: close\r\n", NEXT))
            .asks(raw("GET /1 HTTP/1.1", &format!("x-answer: {}\r\n", json!({ "delay_ms": 300 })), NEXT))
            .asks(raw("POST /1 HTTP/1.1", "content-length: 4\r\n", "ab").then("cd").then(NEXT))
            .asks(Ask::bytes("GET /1 HTTP/1.1\r\nhost: te").then("st\r\nx-case: CASE\r\n").then("\r\n"))
            .asks(raw("POST /1 HTTP/1.1", "transfer-encoding: chunked\r\n", "2\r\na").then("b\r\n0\r").then("\n\r\n")),
    ]
}

use http::HeaderValue;

use super::*;
use crate::model::authz::{StringMatcher, StringPattern};
use crate::policy::fixtures::{exact, header, header_is, prefix, regex, request, string};

#[test]
fn strings_match_as_envoy_matches_them() {
    let suffix = |s: &str| string(StringPattern::Suffix(s.to_owned()));
    let contains = |s: &str| string(StringPattern::Contains(s.to_owned()));
    // Matcher, value, with regard to case, without.
    for (matcher, value, strict, loose) in [
        (exact("Abc"), "Abc", true, true),
        (exact("Abc"), "aBC", false, true),
        (exact("abc"), "abcd", false, false),
        (exact(""), "", true, true),
        (prefix("/Api"), "/api/v1", false, true),
        (prefix("/api"), "/api", true, true),
        (prefix("/api"), "/ap", false, false),
        (prefix(""), "", true, true),
        (suffix(".COM"), "a.com", false, true),
        (suffix(".com"), "a.com", true, true),
        (suffix("a.com"), ".com", false, false),
        (contains("dMi"), "/admin", false, true),
        (contains("dmi"), "/admin", true, true),
        (contains(""), "x", true, true),
        (contains("abc"), "ab", false, false),
        // Regexes take no part in `ignore_case`.
        (regex("a|ab"), "ab", true, true),
        (regex("a|ab"), "AB", false, false),
        (regex("b"), "abc", false, false),
    ] {
        let loosely = StringMatcher { ignore_case: true, ..matcher.clone() };
        assert_eq!(matcher.matches(value.as_bytes()), strict, "{matcher:?} {value}");
        assert_eq!(loosely.matches(value.as_bytes()), loose, "{loosely:?} {value}");
    }
}

#[test]
fn bytes_that_are_not_utf8_hide_nothing_from_a_regex() {
    assert!(regex(".*admin.*").matches(b"\xffadmin\xfe"));
    assert!(prefix("adm").matches(b"admin\xff"));
    assert!(!regex("admin").matches(b"admin\xff"));
}

#[test]
fn a_missing_header_matches_only_where_envoy_says_so() {
    let head = request("GET", "/", &[]);
    let range = HeaderMatchKind::Range { start: 0, end: 10 };
    // Kind, invert, treat missing as empty, expected.
    for (kind, invert, as_empty, expected) in [
        (HeaderMatchKind::Present(true), false, false, false),
        (HeaderMatchKind::Present(true), true, false, true),
        (HeaderMatchKind::Present(false), false, false, true),
        (HeaderMatchKind::Present(false), true, false, false),
        (HeaderMatchKind::Present(true), false, true, true),
        // The four examples of route_components.proto.
        (range.clone(), true, true, true),
        (range.clone(), true, false, false),
        (HeaderMatchKind::String(regex("^$")), false, true, true),
        (HeaderMatchKind::String(regex("^$")), false, false, false),
        (range, false, true, false),
        (HeaderMatchKind::String(exact("x")), true, false, false),
        (HeaderMatchKind::String(exact("x")), true, true, true),
        (HeaderMatchKind::String(exact("")), false, true, true),
        (HeaderMatchKind::String(prefix("")), false, false, false),
    ] {
        let matcher =
            HeaderMatcher { invert, treat_missing_as_empty: as_empty, ..header("x-missing", kind) };
        assert_eq!(header_matches(&matcher, &head), expected, "{matcher:?}");
    }
}

#[test]
fn a_header_that_is_there_matches_or_is_inverted() {
    let head = request(
        "POST",
        "/a/b?q=1",
        &[
            ("host", "Shop.Example:8080"),
            ("x-n", " 7 "),
            ("x-many", "a"),
            ("x-many", "b"),
            ("x-many", "c"),
        ],
    );
    let range = |start, end| HeaderMatchKind::Range { start, end };
    for (matcher, expected) in [
        (header_is(":method", "POST"), true),
        (header_is(":method", "post"), false),
        (header_is(":path", "/a/b?q=1"), true),
        (header_is(":path", "/a/b"), false),
        (header_is(":authority", "Shop.Example:8080"), true),
        (header_is("host", "Shop.Example:8080"), true),
        (header_is("host", "shop.example:8080"), false),
        (header_is("x-many", "a,b,c"), false),
        (header_is("x-many", "a"), true),
        (header_is("x-many", "c"), true),
        (header_is("x-many", "d"), false),
        (header("x-many", HeaderMatchKind::Present(true)), true),
        (header("x-many", HeaderMatchKind::Present(false)), false),
        (header("x-n", range(7, 8)), true),
        (header("x-n", range(0, 7)), false),
        (header("x-n", range(8, 9)), false),
        (header("x-many", range(i64::MIN, i64::MAX)), false),
    ] {
        assert_eq!(header_matches(&matcher, &head), expected, "{matcher:?}");
        let inverted = HeaderMatcher { invert: true, ..matcher };
        assert_eq!(header_matches(&inverted, &head), !expected, "{inverted:?}");
    }
}

#[test]
fn integers_are_whole_and_decimal() {
    for (value, expected) in [
        ("0", Some(0)),
        ("-3", Some(-3)),
        ("+3", Some(3)),
        (" 12\t", Some(12)),
        ("9223372036854775807", Some(i64::MAX)),
        ("9223372036854775808", None),
        ("", None),
        ("1.0", None),
        ("0x1", None),
        ("1 2", None),
    ] {
        assert_eq!(integer(value.as_bytes()), expected, "{value}");
    }
}

#[test]
fn the_authority_is_found_where_each_protocol_has_it() {
    let host = |uri: &str, headers: &[(&str, &str)]| {
        let head = request("GET", uri, headers);
        authority(&head).map(|host| String::from_utf8_lossy(host).into_owned())
    };
    assert_eq!(host("/", &[("host", "a:1")]).as_deref(), Some("a:1"));
    assert_eq!(host("http://b/", &[]).as_deref(), Some("b"));
    assert_eq!(host("http://b/", &[("host", "b")]).as_deref(), Some("b"));
    assert_eq!(host("/", &[]), None);
}

#[test]
fn several_hosts_are_ambiguous() {
    for (uri, headers, expected) in [
        ("/", &[][..], false),
        ("/", &[("host", "a")], false),
        ("/", &[("host", "a"), ("host", "a")], true),
        ("http://a/", &[("host", "A")], false),
        ("http://a/", &[("host", "b")], true),
        ("http://a/", &[("host", "a:80")], true),
        ("http://user@a/", &[], true),
        ("/", &[("host", "user@a")], true),
    ] {
        let head = request("GET", uri, headers);
        assert_eq!(authority_is_ambiguous(&head), expected, "{uri} {headers:?}");
    }
}

#[test]
fn the_url_path_has_neither_query_nor_fragment() {
    for (uri, expected) in [
        ("/a/b?c=/d", "/a/b"),
        ("/a#b?c", "/a"),
        ("/", "/"),
        ("http://h", "/"),
        ("HTTP://h/x?y", "/x"),
        ("*", "*"),
    ] {
        assert_eq!(url_path(&request("GET", uri, &[])), expected, "{uri}");
    }
    assert_eq!(url_path(&request("CONNECT", "h:443", &[])), "");
}

#[test]
fn a_header_of_any_bytes_is_matched() {
    let mut head = request("GET", "/", &[]);
    head.headers.insert("x-raw", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    assert!(header_matches(&header("x-raw", HeaderMatchKind::Present(true)), &head));
    assert!(!header_matches(&header_is("x-raw", "x"), &head));
}

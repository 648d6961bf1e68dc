//! Each answer is what Envoy 1.40 said.

use http::Request;

use super::*;

fn ask(options: &HttpOptions, host: &str, target: &str) -> Result<(String, String), Reply> {
    let (mut head, ()) = Request::get(target).header(HOST, host).body(()).unwrap().into_parts();
    let mut authority = Authority::try_from(host).unwrap();
    normalize(&mut head, &mut authority, options, 80)?;
    assert_eq!(head.headers[HOST], authority.as_str());
    Ok((authority.to_string(), path_and_query(&head).to_owned()))
}

#[track_caller]
fn path(options: &HttpOptions, target: &str, expected: &str) {
    assert_eq!(ask(options, "h", target).unwrap().1, expected, "{target}");
}

#[test]
fn nothing_changes_unless_asked_for() {
    for target in ["/a/./b/../c", "/a//b", "/a%2fb", "/%41", "/a%zz%"] {
        path(&HttpOptions::default(), target, target);
    }
    assert_eq!(ask(&HttpOptions::default(), "h.:80", "/").unwrap().0, "h.:80");
}

#[test]
fn paths_get_their_normal_form() {
    let options = HttpOptions { normalize_path: true, ..HttpOptions::default() };
    for (target, expected) in [
        ("/a/./b/../c", "/a/c"),
        ("/a//b", "/a//b"),
        ("/a%2fb", "/a%2fb"),
        ("/a%2Fb?x=%2f", "/a%2Fb?x=%2f"),
        ("/a%5cb", "/a%5cb"),
        ("/a\\b", "/a/b"),
        ("/%41", "/A"),
        ("/../x", "/x"),
        ("/a;b/../c", "/c"),
        ("/a%7eb%20c%zz%", "/a~b%20c%zz%"),
        ("/a\"b{c}|^[d]'", "/a%22b%7Bc%7D%7C%5E[d]'"),
        ("/a/..%2f..", "/a/..%2f.."),
        ("/%2e%2E/%2e/x/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/a/.?x=/../b", "/a/?x=/../b"),
        ("/a/..b/.c/...", "/a/..b/.c/..."),
        ("/", "/"),
    ] {
        path(&options, target, expected);
    }
}

#[test]
fn slashes_are_merged_and_unescaped() {
    let merge = HttpOptions { merge_slashes: true, ..HttpOptions::default() };
    for (target, expected) in
        [("//a///b//?x=//", "/a/b/?x=//"), ("//", "//"), ("/a//b", "/a/b"), ("/a/", "/a/")]
    {
        path(&merge, target, expected);
    }
    let of = |escaped_slashes| HttpOptions { escaped_slashes, ..merge.clone() };
    path(&of(EscapedSlashes::Unescape), "/a%5Cb%2Fc%zz%2", "/a\\b/c%zz%2");
    path(&of(EscapedSlashes::Unescape), "/a?b=%2f", "/a?b=%2f");
    path(&of(EscapedSlashes::Reject), "/a?b=%2f", "/a?b=%2f");
    let refused = ask(&of(EscapedSlashes::Reject), "h", "/a%2fb").unwrap_err();
    assert_eq!((refused.status, refused.body.len()), (StatusCode::BAD_REQUEST, 0));
    let told = ask(&of(EscapedSlashes::Redirect), "h", "/a%2fb//c?q=%2f").unwrap_err();
    assert_eq!(told.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(*told.location.unwrap(), "/a/b/c?q=%2f");
    // Nothing was unescaped: no reason to send it elsewhere.
    path(&of(EscapedSlashes::Redirect), "/a//b", "/a/b");
}

#[test]
fn hosts_lose_port_and_dot() {
    let of = |strip_port, strip_trailing_host_dot| HttpOptions {
        strip_port,
        strip_trailing_host_dot,
        ..HttpOptions::default()
    };
    for (options, host, expected) in [
        (of(StripPort::Matching, false), "h:90", "h:90"),
        (of(StripPort::Matching, false), "h:80", "h"),
        (of(StripPort::Any, false), "h:90", "h"),
        (of(StripPort::Any, false), "[::1]:90", "[::1]"),
        (of(StripPort::Any, false), "h", "h"),
        (of(StripPort::No, true), "h.", "h"),
        (of(StripPort::No, true), "h.:80", "h:80"),
        (of(StripPort::Matching, true), "h.:80", "h"),
        (of(StripPort::No, true), ".", "."),
    ] {
        assert_eq!(ask(&options, host, "/").unwrap().0, expected, "{host}");
    }
}

//! Each answer is what Envoy 1.40 said.

use http::Request;

use super::*;
use crate::model::rewrite::RegexRewrite;

fn plain(path: RedirectPath) -> Redirect {
    Redirect { status: 301, scheme: None, host: None, port: None, path, strip_query: false }
}

#[track_caller]
fn check(redirect: &Redirect, host: &str, target: &str, proto: Option<&str>, expected: &str) {
    let mut request = Request::get(target).header("host", host);
    if let Some(proto) = proto {
        request = request.header("x-forwarded-proto", proto);
    }
    let (head, ()) = request.body(()).unwrap().into_parts();
    let matched = PathMatch::Prefix("/r".to_owned());
    let location = location(redirect, &matched, &head).unwrap();
    assert_eq!(String::from_utf8(location).unwrap(), expected);
}

#[test]
fn a_location_is_what_the_request_was_but_for_what_is_replaced() {
    let https = || Redirect::to_tls();
    let host = Redirect { host: Some("b.test".into()), ..plain(RedirectPath::Same) };
    check(&host, "a.test:80", "/r/a?q=1", None, "http://b.test/r/a?q=1");
    check(&host, "a.test", "/r/a", Some("https"), "https://b.test/r/a");
    let port = Redirect { port: Some(8443), ..https() };
    check(&port, "a.test:80", "/r", None, "https://a.test:8443/r");
    check(&port, "a.test:8080", "/r", None, "https://a.test:8443/r");
    check(&https(), "a.test:80", "/r?q", None, "https://a.test/r?q");
    check(&https(), "a.test:8080", "/r", None, "https://a.test:8080/r");
    check(&https(), "[::1]:80", "/r", None, "https://[::1]/r");
    check(&https(), "[::1]", "/r", None, "https://[::1]/r");
}

#[test]
fn a_path_is_replaced_and_a_query_goes_or_stays() {
    let strip = |path| Redirect { strip_query: true, ..plain(path) };
    let whole = |path: &str| RedirectPath::Whole(path.to_owned());
    let prefix = || RedirectPath::Prefix("/n".to_owned());
    let regex = || RedirectPath::Regex(RegexRewrite::new("a", "b").unwrap());
    for (redirect, expected) in [
        (plain(whole("/x")), "http://a.test:80/x?q=1"),
        (strip(whole("/x")), "http://a.test:80/x"),
        (plain(whole("/x?y=1")), "http://a.test:80/x?y=1"),
        // Its own is no part of what is stripped.
        (strip(whole("/x?y=1")), "http://a.test:80/x?y=1"),
        (plain(prefix()), "http://a.test:80/n/a/a?q=1"),
        (plain(regex()), "http://a.test:80/r/b/b?q=1"),
        (strip(regex()), "http://a.test:80/r/b/b"),
        (strip(RedirectPath::Same), "http://a.test:80/r/a/a"),
    ] {
        check(&redirect, "a.test:80", "/r/a/a?q=1", None, expected);
    }
}

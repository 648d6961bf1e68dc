use super::*;
use crate::policy::fixtures::{exact, header_is, policy, rbac, request};

#[test]
fn only_paths_with_one_spelling_are_plain() {
    for (path, expected) in [
        ("/", true),
        ("/a/b", true),
        ("/a/b/", true),
        ("/a?x=//../%2e", true),
        ("/a.b/..c/c../...", true),
        ("/caf%C3%A9", true),
        ("/a%20b", true),
        ("/users/foo%40bar", true),
        ("/a;v=1/b", true),
        ("/a%252e", true),
        ("//admin", false),
        ("/a//b", false),
        ("/a//", false),
        ("/./admin", false),
        ("/a/.", false),
        ("/a/..", false),
        ("/a/../admin", false),
        ("/a/..;/admin", false),
        ("/a/.;x=1/admin", false),
        ("/%2e%2e/admin", false),
        ("/%2E/admin", false),
        ("/a%2fb", false),
        ("/a%2Fb", false),
        ("/a%5cb", false),
        ("/a\\b", false),
        ("/..\\admin", false),
        ("/%61dmin", false),
        ("/%7Eroot", false),
        ("/a%00", false),
        ("/a%0d%0a", false),
        ("/a%7f", false),
        ("/a%", false),
        ("/a%4", false),
        ("/a%zz", false),
        ("/a%+1", false),
        ("/%c0%ae%c0%ae/admin", false),
        ("/%e0%80%ae/admin", false),
        ("/%f0%80%80%ae/admin", false),
        ("/é", false),
        ("*", false),
    ] {
        assert_eq!(is_plain(&request("GET", path, &[])), expected, "{path}");
    }
    assert!(is_plain(&request("OPTIONS", "*", &[])));
    assert!(is_plain(&request("CONNECT", "h:443", &[])));
    assert!(is_plain(&request("GET", "HTTP://h", &[])));
}

#[test]
fn no_path_makes_the_check_panic() {
    // Every string of up to four of the characters the check looks at.
    let alphabet = ["/", ".", "%", ";", "2", "e", "\\", "c", "0", "?"];
    let mut paths = vec![String::from("/")];
    for _ in 0..4 {
        let longer = paths.iter().flat_map(|p| alphabet.iter().map(move |c| format!("{p}{c}")));
        paths = longer.collect();
        for path in &paths {
            let head = request("GET", path, &[]);
            if is_plain(&head) {
                LenientPath::of(&head);
            }
        }
    }
}

#[test]
fn a_lenient_server_decodes_and_drops_parameters() {
    for (path, expected) in [
        ("/a%3Ab", Some(("/a:b", "/a:b"))),
        ("/a%3Ab?x=%41;", Some(("/a:b", "/a:b?x=%41;"))),
        ("/admin;x=1", Some(("/admin", "/admin"))),
        ("/a;x/b;y/?q", Some(("/a/b/", "/a/b/?q"))),
        ("/%25", Some(("/%", "/%"))),
        ("/plain?x=%20", None),
    ] {
        let lenient = LenientPath::of(&request("GET", path, &[]));
        let read = lenient.as_ref().map(|lenient| (lenient.path(), &lenient.whole[..]));
        assert_eq!(read, expected.map(|(p, w)| (p.as_bytes(), w.as_bytes())), "{path}");
    }
}

#[test]
fn a_rule_about_the_path_is_found_wherever_it_is() {
    let path = || exact("/x");
    for (permission, expected) in [
        (Permission::Any, false),
        (Permission::Header(header_is(":method", "GET")), false),
        (Permission::Header(header_is(":path", "/x")), true),
        (Permission::UrlPath(path()), true),
        (Permission::Not(Box::new(Permission::UrlPath(path()))), true),
        (Permission::And(vec![Permission::Any, Permission::UrlPath(path())]), true),
        (Permission::Or(vec![Permission::Or(vec![Permission::UrlPath(path())])]), true),
    ] {
        let policies = vec![policy("p", vec![permission.clone()], vec![Principal::Any])];
        assert_eq!(is_judged_by(&rbac(RbacAction::Deny, policies)), expected, "{permission:?}");
    }
    let by_principal = |principal| vec![policy("p", vec![Permission::Any], vec![principal])];
    let not = Principal::Not(Box::new(Principal::UrlPath(path())));
    assert!(is_judged_by(&rbac(RbacAction::Allow, by_principal(not.clone()))));
    assert!(!is_judged_by(&rbac(RbacAction::Log, by_principal(not))));
}

use super::*;
use crate::{
    model::{authz::RbacAction::*, route::HeaderMatchKind, workload::MtlsMode},
    policy::fixtures::{
        exact, header, header_is, identity, inbound, is_identity, policy, prefix, rbac, regex,
        request,
    },
    snapshot::Snapshot,
};

/// From 10.2.0.7:50000 to 10.1.0.2:8080.
fn flow(caller: Option<&str>) -> Flow {
    let captured = inbound(caller, MtlsMode::Permissive, "10.1.0.2:8080");
    Flow::inbound(captured, &Snapshot::default()).unwrap()
}

fn tcp(flow: &Flow) -> Subject<'_> {
    Subject::connection(flow)
}

fn not(rule: Permission) -> Permission {
    Permission::Not(Box::new(rule))
}

#[test]
fn a_repeated_header_decides_only_where_every_reading_of_it_agrees() {
    let flow = flow(None);
    let head = request("GET", "/", &[("x-team", "blue"), ("x-team", "red")]);
    let judged = |kind| {
        let rule = Permission::Header(header("x-team", HeaderMatchKind::String(kind)));
        let subject = Subject { head: Some(&head), ..Subject::connection(&flow) };
        permission(&rule, subject)
    };
    assert_eq!(judged(prefix("blue")), Truth::True);
    assert_eq!(judged(exact("green")), Truth::False);
    // One of them, or both as one: an application may see either.
    assert_eq!(judged(exact("blue")), Truth::Unknown);
    assert_eq!(judged(exact("blue,red")), Truth::Unknown);
}

#[test]
fn permissions() {
    use Permission::*;
    let flow = flow(None);
    let head = request("GET", "/api/items?x=1", &[("x-team", "blue")]);
    let get = || Header(header_is(":method", "GET"));
    let put = || Header(header_is(":method", "PUT"));
    let net = |s: &str| DestinationIp(s.parse().unwrap());
    let range = |start, end| DestinationPortRange { start, end };
    // Rule, for a TCP connection, for a request on it.
    for (rule, opaque, http) in [
        (Any, Truth::True, Truth::True),
        (net("10.1.0.0/24"), Truth::True, Truth::True),
        (net("10.1.0.3/32"), Truth::False, Truth::False),
        (net("::/0"), Truth::False, Truth::False),
        (DestinationPort(8080), Truth::True, Truth::True),
        (DestinationPort(80), Truth::False, Truth::False),
        (range(8080, 8081), Truth::True, Truth::True),
        (range(8000, 8080), Truth::False, Truth::False),
        (range(0, 65536), Truth::True, Truth::True),
        (get(), Truth::Unknown, Truth::True),
        (put(), Truth::Unknown, Truth::False),
        (UrlPath(exact("/api/items")), Truth::Unknown, Truth::True),
        (UrlPath(prefix("/admin")), Truth::Unknown, Truth::False),
        (UrlPath(regex("/api|/api/items")), Truth::Unknown, Truth::True),
        (not(Any), Truth::False, Truth::False),
        (not(get()), Truth::Unknown, Truth::False),
        (not(put()), Truth::Unknown, Truth::True),
        (And(vec![]), Truth::True, Truth::True),
        (Or(vec![]), Truth::False, Truth::False),
        (And(vec![get(), DestinationPort(8080)]), Truth::Unknown, Truth::True),
        (And(vec![get(), DestinationPort(80)]), Truth::False, Truth::False),
        (Or(vec![get(), DestinationPort(8080)]), Truth::True, Truth::True),
        (Or(vec![put(), DestinationPort(80)]), Truth::Unknown, Truth::False),
        (not(And(vec![put(), Any])), Truth::Unknown, Truth::True),
    ] {
        assert_eq!(permission(&rule, tcp(&flow)), opaque, "TCP {rule:?}");
        let subject = Subject { head: Some(&head), ..tcp(&flow) };
        assert_eq!(permission(&rule, subject), http, "HTTP {rule:?}");
    }
}

#[test]
fn principals() {
    use Principal::*;
    let san = identity("client").to_string();
    let not = |rule| Not(Box::new(rule));
    let from = |s: &str| DirectRemoteIp(s.parse().unwrap());
    // Rule, for the client, for a peer without identity.
    for (rule, client, nobody) in [
        (Any, true, true),
        (Authenticated(None), true, false),
        (is_identity("client"), true, false),
        (is_identity("other"), false, false),
        (Authenticated(Some(prefix("spiffe://cluster.local/ns/shop/"))), true, false),
        (Authenticated(Some(prefix("cluster.local/ns/shop/"))), false, false),
        (Authenticated(Some(regex("spiffe://[^/]+/ns/shop/sa/client"))), true, false),
        (Authenticated(Some(regex("client"))), false, false),
        // Not even by a pattern that everything fits.
        (Authenticated(Some(prefix(""))), true, false),
        (Authenticated(Some(regex(".*"))), true, false),
        (Authenticated(Some(exact(&san.to_uppercase()))), false, false),
        (not(Authenticated(None)), false, true),
        (from("10.2.0.0/16"), true, true),
        (from("10.3.0.0/16"), false, false),
        (RemoteIp("10.2.0.7/32".parse().unwrap()), true, true),
        (And(vec![is_identity("client"), from("10.2.0.7/32")]), true, false),
        (Or(vec![is_identity("client"), from("10.3.0.0/16")]), true, false),
    ] {
        assert_eq!(principal(&rule, tcp(&flow(Some("client")))), client.into(), "{rule:?}");
        assert_eq!(principal(&rule, tcp(&flow(None))), nobody.into(), "nobody {rule:?}");
    }
    assert_eq!(principal(&UrlPath(exact("/")), tcp(&flow(None))), Truth::Unknown);
    assert_eq!(principal(&Header(header_is("a", "b")), tcp(&flow(None))), Truth::Unknown);
}

#[test]
fn actions() {
    let flow = flow(Some("client"));
    let any = |name| policy(name, vec![Permission::Any], vec![Principal::Any]);
    let http = |name| policy(name, vec![Permission::UrlPath(exact("/"))], vec![Principal::Any]);
    let none = |name| policy(name, vec![Permission::Any], vec![is_identity("other")]);
    let name = |name: &str| Some(Arc::from(name));
    for (action, policies, expected) in [
        (Allow, vec![], Outcome::NoPolicy),
        (Allow, vec![none("a")], Outcome::NoPolicy),
        (Allow, vec![http("a")], Outcome::NoPolicy),
        (Allow, vec![none("a"), any("b"), any("c")], Outcome::Allowed(name("b"))),
        (Allow, vec![http("a"), any("b")], Outcome::Allowed(name("b"))),
        (Deny, vec![], Outcome::Allowed(None)),
        (Deny, vec![none("a")], Outcome::Allowed(None)),
        (Deny, vec![none("a"), any("b")], Outcome::Denied("b".into())),
        (Deny, vec![http("a")], Outcome::Unknown("a".into())),
        (Deny, vec![http("a"), any("b")], Outcome::Unknown("a".into())),
        (Log, vec![], Outcome::Logged(None)),
        (Log, vec![http("a")], Outcome::Logged(None)),
        (Log, vec![any("a")], Outcome::Logged(name("a"))),
        // A policy needs a permission and a principal.
        (Allow, vec![policy("a", vec![], vec![Principal::Any])], Outcome::NoPolicy),
        (Allow, vec![policy("a", vec![Permission::Any], vec![])], Outcome::NoPolicy),
    ] {
        let rbac = rbac(action, policies);
        assert_eq!(evaluate(&rbac, tcp(&flow)), expected, "{rbac:?}");
    }
}

#[test]
fn an_http_rule_does_not_matter_where_the_caller_does_not_fit() {
    // `DENY` for others by path must not cut this caller's TCP connections.
    let policies =
        vec![policy("a", vec![Permission::UrlPath(exact("/"))], vec![is_identity("other")])];
    let flow = flow(Some("client"));
    assert_eq!(evaluate(&rbac(Deny, policies), tcp(&flow)), Outcome::Allowed(None));
}

/// Every rule of two levels over these, in a fixed order.
fn rules() -> Vec<Permission> {
    let leaves = || {
        vec![
            Permission::Any,
            Permission::DestinationPort(80),
            Permission::Header(header_is(":method", "GET")),
            Permission::UrlPath(exact("/a:b")),
            Permission::UrlPath(prefix("/admin")),
            Permission::Header(header(":path", HeaderMatchKind::String(regex("/admin|/a:b")))),
        ]
    };
    let pairs = |of: fn(Vec<Permission>) -> Permission, all: &[Permission]| {
        let pairs = all.iter().flat_map(|a| all.iter().map(move |b| vec![a.clone(), b.clone()]));
        pairs.map(of).collect::<Vec<_>>()
    };
    let mut rules = leaves();
    rules.extend(leaves().into_iter().map(not));
    let one = rules.clone();
    rules.extend(pairs(Permission::And, &one));
    rules.extend(pairs(Permission::Or, &one));
    let two = rules.clone();
    rules.extend(two.into_iter().map(not));
    rules
}

#[test]
fn what_is_known_of_a_connection_holds_for_each_of_its_requests() {
    let flow = flow(None);
    let heads = ["/", "/admin", "/a:b"].map(|path| request("GET", path, &[]));
    let heads = heads.into_iter().chain([request("PUT", "/admin/x", &[])]).collect::<Vec<_>>();
    for rule in rules() {
        let known = permission(&rule, tcp(&flow));
        for head in &heads {
            let of_request = permission(&rule, Subject { head: Some(head), ..tcp(&flow) });
            assert_ne!(of_request, Truth::Unknown, "{rule:?}");
            assert!(known == Truth::Unknown || known == of_request, "{rule:?} {head:?}");
        }
    }
}

#[test]
fn what_is_known_of_an_escaped_path_holds_for_both_readings() {
    let flow = flow(None);
    for (sent, read) in [("/a%3Ab", "/a:b"), ("/admin;x", "/admin"), ("/a%3Ab;x=1", "/a:b")] {
        let (head, lenient) = (request("GET", sent, &[]), request("GET", read, &[]));
        let lenient_path = LenientPath::of(&head);
        assert!(lenient_path.is_some());
        for rule in rules() {
            let of = |head, lenient_path| {
                permission(&rule, Subject { head: Some(head), lenient_path, ..tcp(&flow) })
            };
            let known = of(&head, lenient_path.as_ref());
            for reading in [of(&head, None), of(&lenient, None)] {
                assert!(known == Truth::Unknown || known == reading, "{rule:?} {sent}");
            }
        }
    }
}

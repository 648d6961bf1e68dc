//! The whole way from a file's text to the model, and to rejections by path.

mod balancing;
mod documented;
mod gateway;
mod refused;
mod retries;
mod scopes;
mod seeds;
mod text;
mod tls;
mod upstream;

use std::{fs, time::Duration};

use super::*;
use crate::{
    model::{
        authz::{Permission, Principal, RbacAction, StringPattern},
        cluster::{Discovery, Health, LbPolicy, Tunnel, UpstreamProtocol},
        filter::{HttpFilter, HttpRbac},
        listener::{Direction, NetworkFilter, RouteSource, TerminalFilter},
        route::{Domain, HeaderMatchKind, PathMatch, PathRewrite, RouteAction},
    },
    snapshot::{Resources, SnapshotCell},
};

fn decode(files: &[(&str, &[u8])]) -> Result<Delivery, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let contents = file::Contents::read(directory.path()).unwrap();
    contents.decode().map_err(|rejected| rejected.iter().map(ToString::to_string).collect())
}

fn accepted(yaml: &str) -> Resources {
    decode(&[("a.yaml", yaml.as_bytes())]).unwrap().resources
}

/// Checks that `yaml` is refused with exactly these lines.
#[track_caller]
fn check(yaml: &str, expected: &[&str]) {
    let rejected = decode(&[("a.yaml", yaml.as_bytes())]).map(|_| ()).unwrap_err();
    assert_eq!(rejected, expected, "of:\n{yaml}");
}

const SHOP: &str = include_str!("testdata/shop.yaml");

#[test]
fn a_shop_is_decoded_and_applies() {
    let delivery = decode(&[("shop.yaml", SHOP.as_bytes())]).unwrap();
    assert_eq!(delivery.label, "42");
    let r = &delivery.resources;
    SnapshotCell::default().replace(r.clone(), delivery.label.clone()).unwrap();

    let [vip, mysql, inbound] = r.listeners.as_slice() else { panic!("{:?}", r.listeners) };
    assert_eq!(vip.direction, Direction::Outbound);
    assert_eq!(vip.address, "10.96.0.10:80".parse().unwrap());
    let TerminalFilter::Http(http) = &vip.default_filter_chain.as_ref().unwrap().terminal else {
        panic!("not http")
    };
    assert!(matches!(&http.routes, RouteSource::Rds(name) if &**name == "reviews"));
    assert_eq!(http.stream_idle_timeout, None);
    assert_eq!(http.idle_timeout, Some(Duration::from_millis(90_500)));
    assert_eq!(http.request_headers_timeout, Some(Duration::from_secs(10)));
    assert_eq!(http.max_request_headers_kib, 96);
    assert!(http.http_filters.is_empty());

    assert_eq!(mysql.address, "[fd00::10]:3306".parse().unwrap());
    let matches = &mysql.filter_chains[0].matches;
    assert_eq!(matches.source_prefix_ranges, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(matches.source_ports, [4000]);
    let TerminalFilter::TcpProxy(tcp) = &mysql.filter_chains[0].terminal else { panic!("tcp") };
    assert_eq!(tcp.clusters.iter().map(|c| c.weight).collect::<Vec<_>>(), [90, 10]);
    assert_eq!(tcp.idle_timeout, None);

    let chain = &inbound.filter_chains[0];
    let [NetworkFilter::Rbac(l4)] = chain.filters.as_slice() else { panic!("l4") };
    let l4 = l4.rules.as_ref().unwrap();
    assert_eq!(l4.action, RbacAction::Deny);
    assert_eq!(l4.stat_prefix, "l4");
    assert!(matches!(
        &l4.policies[0].principals[0],
        Principal::Not(p) if matches!(&**p, Principal::Or(ids) if ids.len() == 2)
    ));
    let TerminalFilter::Http(http) = &chain.terminal else { panic!("not http") };
    // The second RBAC filter has no rules: nothing to enforce, unless a route brings some.
    let filters: Vec<_> = http.http_filters.iter().map(|place| &place.filter).collect();
    let [
        HttpFilter::Rbac(HttpRbac { rules: Some(l7), .. }),
        HttpFilter::Rbac(HttpRbac { rules: None, .. }),
    ] = filters[..]
    else {
        panic!("l7")
    };
    assert_eq!(l7.action, RbacAction::Allow);
    let names: Vec<_> = l7.policies.iter().map(|p| &*p.name).collect();
    assert_eq!(names, ["anybody-with-a-certificate-on-status", "readers"]);
    let Permission::And(rules) = &l7.policies[1].permissions[0] else { panic!("and") };
    assert_eq!(rules.len(), 6);
    let Principal::And(ids) = &l7.policies[1].principals[0] else { panic!("and") };
    let Principal::Authenticated(Some(name)) = &ids[0] else { panic!("authenticated") };
    let StringPattern::Regex(regex) = &name.pattern else { panic!("regex") };
    assert!(regex.is_match("spiffe://cluster.local/ns/shop/sa/web"));
    assert!(!regex.is_match("spiffe://cluster.local/ns/shop/sa/web2"));
    assert!(!regex.is_match("xspiffe://cluster.local/ns/shop/sa/web"));

    let hosts = &r.routes[0].virtual_hosts;
    let domains = [
        Domain::Exact("reviews".to_owned()),
        Domain::Exact("reviews.shop:80".to_owned()),
        Domain::Suffix(".shop.svc".to_owned()),
        Domain::Prefix("reviews.".to_owned()),
    ];
    assert_eq!(hosts[0].domains, domains);
    assert_eq!(hosts[1].domains, [Domain::Any]);
    let canary = &hosts[0].routes[0];
    assert!(matches!(&canary.matches.path, PathMatch::Exact(path) if path == "/reviews/canary"));
    assert!(!canary.matches.case_sensitive);
    assert!(matches!(canary.matches.headers[0].kind, HeaderMatchKind::Range { start: 2, end: 5 }));
    assert_eq!(canary.matches.headers[1].name, ":authority");
    assert!(canary.matches.headers[1].invert);
    assert!(canary.matches.headers[2].treat_missing_as_empty);
    let RouteAction::Forward(forward) = &canary.action else { panic!("forward") };
    assert_eq!(forward.timeout, Some(Duration::from_millis(2500)));
    let rewrite = forward.path_rewrite.as_ref();
    assert!(matches!(rewrite, Some(PathRewrite::Prefix(prefix)) if prefix == "/canary"));
    let RouteAction::Forward(forward) = &hosts[0].routes[1].action else { panic!("forward") };
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));

    let [v1, v2, application, mysql_a, _] = r.clusters.as_slice() else { panic!("clusters") };
    assert!(
        matches!(&v1.discovery, Discovery::Eds { service_name } if &**service_name == "reviews-v1.shop")
    );
    assert_eq!(v1.lb_policy, LbPolicy::LeastRequest { choice_count: 3 });
    assert_eq!(v1.connect_timeout, Duration::from_millis(250));
    assert_eq!(v1.upstream_protocol, UpstreamProtocol::SameAsDownstream);
    assert!(
        matches!(&v2.discovery, Discovery::Eds { service_name } if &**service_name == "reviews-v2")
    );
    assert_eq!(v2.upstream_protocol, UpstreamProtocol::Http2);
    assert_eq!(v2.connect_timeout, Duration::from_secs(5));
    assert!(matches!(application.discovery, Discovery::OriginalDestination));
    assert!(matches!(&mysql_a.discovery, Discovery::Static(a) if a.endpoints().count() == 1));

    let (name, assignment) = &r.assignments[0];
    assert_eq!(&**name, "reviews-v1.shop");
    let [first, second] = &assignment.localities[0].endpoints[..] else { panic!("endpoints") };
    assert_eq!((first.weight, first.health), (4, Health::Healthy));
    let Tunnel::Hbone { identity, workload } = &first.tunnel else { panic!("tunnel") };
    assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/reviews");
    assert_eq!(workload.as_ref().unwrap().to_string(), "reviews-v1-0");
    assert_eq!(second.address, "10.2.0.6:8080".parse().unwrap());
    assert_eq!((second.weight, second.health), (1, Health::Unhealthy));
    assert_eq!(second.tunnel, Tunnel::Direct);
}

#[test]
fn the_example_of_the_documentation_is_refused_by_its_full_path() {
    check(
        r#"
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: web
traffic_direction: INBOUND
address: {socket_address: {address: 0.0.0.0, port_value: 80}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      rds: {route_config_name: r}
      http_filters:
      - name: envoy.filters.http.rbac
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}
      - name: envoy.filters.http.rbac
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}
      - name: envoy.filters.http.lua
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          inline_code: x
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"#,
        &[
            "listeners[web].filter_chains[0].filters[0].http_filters[2]: envoy.filters.http.lua is not supported",
        ],
    );
}

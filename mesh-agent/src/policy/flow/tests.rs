use super::*;
use crate::{
    model::listener::FilterChainMatch,
    policy::fixtures::{
        POD_V6, addr, by_tls, chain, for_transport, identity, inbound, listener, outbound_to,
        snapshot,
    },
};

fn names(flow: &Flow) -> (Option<&str>, Option<&str>) {
    (flow.listener().map(|l| &*l.name), flow.chain().map(|c| &*c.name))
}

fn any() -> FilterChainMatch {
    FilterChainMatch::default()
}

#[test]
fn an_outbound_listener_is_found_by_original_destination() {
    let to = |address| listener(Direction::Outbound, address, vec![chain("c", any())], None);
    let snapshot = snapshot(
        vec![
            to("10.96.0.1:80"),
            to("0.0.0.0:80"),
            to("[fd00::1]:80"),
            listener(Direction::Inbound, "10.96.0.2:81", vec![chain("c", any())], None),
        ],
        vec![],
    );
    for (destination, expected) in [
        ("10.96.0.1:80", Some("Outbound-10.96.0.1:80")),
        ("[::ffff:10.96.0.1]:80", Some("Outbound-10.96.0.1:80")),
        ("10.96.0.9:80", Some("Outbound-0.0.0.0:80")),
        ("[fd00::1]:80", Some("Outbound-[fd00::1]:80")),
        // The unspecified address of one family is not the other's.
        ("[fd00::9]:80", None),
        ("10.96.0.1:81", None),
        ("10.96.0.2:81", None),
    ] {
        let flow = |policy| Flow::outbound(outbound_to(destination), &snapshot, policy);
        let allowed = flow(OutboundPolicy::AllowAny).unwrap();
        assert_eq!(names(&allowed).0, expected, "{destination}");
        assert_eq!(allowed.source_identity(), Some(&identity("web")));
        assert_eq!(allowed.source_principal(), Some("spiffe://cluster.local/ns/shop/sa/web"));
        assert_eq!(allowed.direction(), Direction::Outbound);
        assert_eq!(allowed.peer(), None);
        match expected {
            Some(_) => assert!(flow(OutboundPolicy::RegistryOnly).is_ok(), "{destination}"),
            None => {
                let error = flow(OutboundPolicy::RegistryOnly).unwrap_err();
                assert!(matches!(error, FlowError::NoListener { .. }), "{error}");
                let text = error.to_string();
                assert!(text.contains(destination) && text.contains("/sa/web"), "{text}");
            }
        }
    }
}

#[test]
fn the_agents_own_ports_are_no_destination() {
    let empty = Snapshot::default();
    for port in AGENT_PORTS {
        for own in ["10.1.0.2", "[fd00::2]", "127.0.0.1", "[::1]", "0.0.0.0", "[::ffff:10.1.0.2]"] {
            let destination = format!("{own}:{port}");
            let out = Flow::outbound(outbound_to(&destination), &empty, OutboundPolicy::AllowAny);
            assert!(matches!(out, Err(FlowError::AgentPort { .. })), "{destination}: {out:?}");
        }
        let elsewhere = outbound_to(&format!("10.9.9.9:{port}"));
        assert!(Flow::outbound(elsewhere, &empty, OutboundPolicy::AllowAny).is_ok());
        let captured = inbound(Some("client"), MtlsMode::Permissive, &format!("10.1.0.2:{port}"));
        let error = Flow::inbound(captured, &empty).unwrap_err();
        assert!(matches!(error, FlowError::AgentPort { .. }), "{error}");
    }
}

#[test]
fn an_inbound_connection_is_for_the_workload_or_refused() {
    let empty = Snapshot::default();
    for (destination, expected) in [
        ("10.1.0.2:8080", true),
        ("[fd00::2]:8080", true),
        ("[::ffff:10.1.0.2]:8080", true),
        ("10.1.0.3:8080", false),
        ("127.0.0.1:8080", false),
        ("[::1]:8080", false),
        ("0.0.0.0:8080", false),
        ("169.254.169.254:80", false),
    ] {
        let captured = inbound(Some("client"), MtlsMode::Strict, destination);
        match Flow::inbound(captured, &empty) {
            Ok(flow) => {
                assert!(expected, "{destination} was let in");
                assert_eq!(flow.source_identity(), Some(&identity("client")));
                assert!(flow.chain().is_none());
            }
            Err(error) => {
                assert!(!expected, "{error}");
                assert!(matches!(error, FlowError::NotThisWorkload { .. }), "{error}");
                assert!(error.to_string().contains(destination), "{error}");
            }
        }
    }
}

#[test]
fn plaintext_is_let_in_where_the_workload_or_the_port_takes_it() {
    use MtlsMode::{Permissive, Strict};
    type Case<'a> = (
        &'a [(&'a str, Option<TransportProtocol>)],
        Option<&'a str>,
        MtlsMode,
        Result<&'a str, &'a str>,
    );
    const TLS: Option<TransportProtocol> = Some(TransportProtocol::Tls);
    const RAW: Option<TransportProtocol> = Some(TransportProtocol::RawBuffer);
    // Chains of the listener (none: no listener), caller, mode, the chain taken.
    let cases: &[Case] = &[
        (&[], Some("client"), Strict, Ok("")),
        (&[], None, Permissive, Ok("")),
        (&[], None, Strict, Err("strict")),
        (&[("any", None)], Some("client"), Strict, Ok("any")),
        (&[("any", None)], None, Permissive, Ok("any")),
        (&[("any", None)], None, Strict, Err("strict")),
        (&[("tls", TLS)], Some("client"), Strict, Ok("tls")),
        (&[("tls", TLS)], None, Strict, Err("strict")),
        (&[("tls", TLS)], None, Permissive, Err("no filter chain")),
        (&[("raw", RAW)], None, Strict, Ok("raw")),
        (&[("raw", RAW)], None, Permissive, Ok("raw")),
        (&[("raw", RAW)], Some("client"), Permissive, Err("no filter chain")),
        (&[("tls", TLS), ("raw", RAW)], None, Strict, Ok("raw")),
        (&[("any", None), ("raw", RAW)], None, Strict, Ok("raw")),
        (&[("any", None), ("raw", RAW)], Some("client"), Strict, Ok("any")),
        (&[("any", None), ("tls", TLS)], None, Permissive, Ok("any")),
        (&[("any", None), ("tls", TLS)], None, Strict, Err("strict")),
    ];
    for (chains, caller, mode, expected) in cases {
        let chains: Vec<_> = chains
            .iter()
            .map(|(name, transport)| chain(name, transport.map_or_else(any, for_transport)))
            .collect();
        let listeners = match chains.is_empty() {
            true => vec![],
            false => vec![listener(Direction::Inbound, "10.1.0.2:8080", chains, None)],
        };
        let result =
            Flow::inbound(inbound(*caller, *mode, "10.1.0.2:8080"), &snapshot(listeners, vec![]));
        match (result, expected) {
            (Ok(flow), Ok(name)) => assert_eq!(names(&flow).1.unwrap_or(""), *name),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (result, expected) => panic!("{caller:?} {mode:?}: {result:?} is not {expected:?}"),
        }
    }
}

#[test]
fn a_default_chain_takes_no_plaintext_under_strict_mtls() {
    let default = Some(chain("default", any()));
    let snapshot =
        snapshot(vec![listener(Direction::Inbound, "0.0.0.0:8080", vec![], default)], vec![]);
    let flow = |caller, mode| Flow::inbound(inbound(caller, mode, "10.1.0.2:8080"), &snapshot);
    assert!(matches!(flow(None, MtlsMode::Strict), Err(FlowError::PlaintextRefused { .. })));
    assert_eq!(names(&flow(None, MtlsMode::Permissive).unwrap()).1, Some("default"));
    assert_eq!(names(&flow(Some("client"), MtlsMode::Strict).unwrap()).1, Some("default"));
}

#[test]
fn the_most_specific_chain_is_taken_in_envoys_order() {
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    let port = |port| FilterChainMatch { destination_port: Some(port), ..any() };
    let to = |ranges: &[&str]| FilterChainMatch { prefix_ranges: nets(ranges), ..any() };
    let from = |ranges: &[&str]| FilterChainMatch { source_prefix_ranges: nets(ranges), ..any() };
    let sport = |ports: &[u16]| FilterChainMatch { source_ports: ports.to_vec(), ..any() };
    // From 10.1.0.2:40000 to 10.96.1.1:80. Chains in order, and the one to take,
    // where `default` is the default chain.
    let cases: Vec<(&str, Vec<FilterChainMatch>, Option<usize>)> = vec![
        ("anything", vec![any()], Some(0)),
        ("nothing", vec![], None),
        ("port before order", vec![any(), port(80)], Some(1)),
        ("another port", vec![port(81)], None),
        ("longest destination", vec![to(&["10.0.0.0/8"]), to(&["10.96.0.0/16"]), any()], Some(1)),
        (
            "longest of several",
            vec![to(&["10.96.0.0/16"]), to(&["10.0.0.0/8", "10.96.1.1/32"])],
            Some(1),
        ),
        ("none is as short as any", vec![to(&["0.0.0.0/0"]), any()], Some(0)),
        ("other family", vec![to(&["::/0"])], None),
        ("port before destination", vec![to(&["10.96.1.1/32"]), port(80)], Some(1)),
        ("destination before source", vec![from(&["10.1.0.2/32"]), to(&["10.0.0.0/8"])], Some(1)),
        ("longest source", vec![from(&["10.0.0.0/8"]), from(&["10.1.0.0/16"]), any()], Some(1)),
        ("source port", vec![any(), sport(&[1, 40000])], Some(1)),
        ("another source port", vec![sport(&[1])], None),
        ("source before its port", vec![sport(&[40000]), from(&["10.1.0.2/32"])], Some(1)),
        // No way back: what the port's chain hides stays hidden.
        (
            "a chain that fails later still hides",
            vec![any(), FilterChainMatch { source_ports: vec![1], ..port(80) }],
            None,
        ),
        (
            "a longer prefix that fails later still hides",
            vec![
                to(&["10.0.0.0/8"]),
                FilterChainMatch { source_ports: vec![1], ..to(&["10.96.1.1/32"]) },
            ],
            None,
        ),
        ("tls is not for outbound", vec![for_transport(TransportProtocol::Tls)], None),
        ("raw buffer is", vec![any(), for_transport(TransportProtocol::RawBuffer)], Some(1)),
    ];
    for (what, matches, expected) in cases {
        let chains = || {
            let numbered = matches.iter().enumerate();
            numbered.map(|(i, m)| chain(&i.to_string(), m.clone())).collect::<Vec<_>>()
        };
        let choose = |default| {
            let listeners = vec![listener(Direction::Outbound, "0.0.0.0:80", chains(), default)];
            let captured = outbound_to("10.96.1.1:80");
            Flow::outbound(captured, &snapshot(listeners, vec![]), OutboundPolicy::AllowAny)
        };
        match (choose(None), expected) {
            (Ok(flow), Some(i)) => assert_eq!(names(&flow).1, Some(&*i.to_string()), "{what}"),
            (Err(FlowError::NoFilterChain { listener, .. }), None) => {
                assert_eq!(&*listener, "Outbound-0.0.0.0:80", "{what}");
            }
            (result, _) => panic!("{what}: {result:?}"),
        }
        let expected = expected.map_or("default".to_owned(), |i| i.to_string());
        let flow = choose(Some(chain("default", any()))).unwrap();
        assert_eq!(names(&flow).1, Some(&*expected), "{what} with a default chain");
    }
}

#[test]
fn ipv6_goes_its_own_way() {
    let chains = vec![chain(
        "c",
        FilterChainMatch { prefix_ranges: vec!["fd00::/16".parse().unwrap()], ..any() },
    )];
    let snapshot = snapshot(vec![listener(Direction::Inbound, "[::]:8080", chains, None)], vec![]);
    let captured = inbound(Some("client"), MtlsMode::Strict, &format!("[{POD_V6}]:8080"));
    let flow = Flow::inbound(captured, &snapshot).unwrap();
    assert_eq!(names(&flow), (Some("Inbound-[::]:8080"), Some("c")));
    assert_eq!(
        flow.to_string(),
        "spiffe://cluster.local/ns/shop/sa/client at 10.2.0.7:50000 -> [fd00::2]:8080"
    );
    assert_eq!(flow.source(), addr("10.2.0.7:50000"));
}

/// A client of the gateway listener at 10.0.0.1:443 that says this in its ClientHello.
fn client(server_name: &str, application_protocols: &[&str]) -> AcceptedByGateway {
    AcceptedByGateway {
        pod: outbound_to("10.0.0.1:443").pod,
        bound: addr("10.0.0.1:443"),
        direct_source: addr("192.0.2.1:1000"),
        source: addr("192.0.2.1:1000"),
        original_destination: addr("10.0.0.1:443"),
        inspected: Inspected {
            transport: TransportProtocol::Tls,
            server_name: Some(server_name.into()),
            application_protocols: application_protocols.iter().map(|&name| name.into()).collect(),
            ..Inspected::default()
        },
        peer: GatewayPeer::Plaintext,
    }
}

#[test]
fn a_gateways_chain_is_what_the_client_asks_for() {
    let of = |names: &[&str], alpn: &[&str]| FilterChainMatch {
        server_names: names.iter().map(|&name| name.into()).collect(),
        application_protocols: alpn.iter().map(|&name| name.into()).collect(),
        ..any()
    };
    let chains = vec![
        chain("any", any()),
        chain("exact", of(&["a.b.example"], &[])),
        chain("near", of(&["*.b.example"], &[])),
        chain("far", of(&["*.example"], &[])),
        chain("http/1.1", of(&["alpn.test"], &["http/1.1"])),
        chain("h2", of(&["alpn.test"], &["h2"])),
        chain(
            "direct",
            FilterChainMatch {
                server_names: vec!["proxied.test".into()],
                direct_source_prefix_ranges: vec!["10.0.0.0/8".parse().unwrap()],
                ..any()
            },
        ),
        chain(
            "local",
            FilterChainMatch {
                server_names: vec!["type.test".into()],
                source_type: SourceType::SameIpOrLoopback,
                ..any()
            },
        ),
        chain("raw", for_transport(TransportProtocol::RawBuffer)),
    ];
    let snapshot =
        snapshot(vec![listener(Direction::Gateway, "0.0.0.0:443", chains, None)], vec![]);
    let picked = |accepted: &AcceptedByGateway| {
        gateway_chain(accepted, &snapshot).map(|(_, chain)| chain.name.to_string()).ok()
    };
    for (name, alpn, expected) in [
        ("a.b.example", &[][..], Some("exact")),
        ("c.b.example", &[], Some("near")),
        ("d.c.b.example", &[], Some("near")),
        ("b.example", &[], Some("far")),
        ("example", &[], Some("any")),
        ("", &[], Some("any")),
        // The client's order, not that of the chains.
        ("alpn.test", &["h2", "http/1.1"], Some("h2")),
        ("alpn.test", &["http/1.1", "h2"], Some("http/1.1")),
        // There is no way back to "any" from a name.
        ("alpn.test", &["imap"], None),
        ("proxied.test", &[], None),
        ("type.test", &[], None),
    ] {
        assert_eq!(picked(&client(name, alpn)).as_deref(), expected, "{name} {alpn:?}");
    }
    let proxied =
        AcceptedByGateway { direct_source: addr("10.1.1.1:1"), ..client("proxied.test", &[]) };
    assert_eq!(picked(&proxied).as_deref(), Some("direct"));
    let local = AcceptedByGateway { source: addr("10.0.0.1:5"), ..client("type.test", &[]) };
    assert_eq!(picked(&local).as_deref(), Some("local"));
    let plain = AcceptedByGateway { inspected: Inspected::default(), ..client("", &[]) };
    assert_eq!(picked(&plain).as_deref(), Some("raw"));
    let elsewhere = AcceptedByGateway { bound: addr("10.0.0.1:444"), ..client("", &[]) };
    assert!(matches!(gateway_chain(&elsewhere, &snapshot), Err(FlowError::NoGateway { .. })));
}

#[test]
fn who_spoke_no_tls_does_not_get_into_a_chain_for_it() {
    let chain = by_tls(chain("tls", any()));
    let snapshot =
        snapshot(vec![listener(Direction::Gateway, "10.0.0.1:443", vec![chain], None)], vec![]);
    let flow =
        |peer| Flow::gateway(Arc::new(AcceptedByGateway { peer, ..client("", &[]) }), &snapshot);
    let error = flow(GatewayPeer::Plaintext).unwrap_err();
    assert!(matches!(error, FlowError::NoFilterChain { .. }), "{error}");
    let names = ["spiffe://other.org/x".into(), "client.example".into()];
    let peer = GatewayPeer::Tls {
        names: names.into(),
        identity: None,
        server_name: None,
        session: TlsSession::default(),
    };
    let proven = flow(peer).unwrap();
    assert_eq!((proven.source_identity(), proven.is_secure()), (None, true));
    assert_eq!(proven.source_principal(), Some("spiffe://other.org/x"));
    assert_eq!(proven.principals().len(), 2);
}

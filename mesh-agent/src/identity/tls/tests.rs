use std::time::Duration;

use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::{
    AlertDescription, HandshakeKind, NamedGroup, PeerIncompatible, ProtocolVersion,
    pki_types::CertificateDer, sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::identity::{
    PeerAlert, Timestamp, TrustBundles, refusal, refused_by_peer, system_clock,
    testing::{Fixed, Forge, domain, exchange, handshake, id, node, uri},
    verify::{Role, SvidVerifier, verify_chain},
};

const HOUR: Duration = Duration::from_secs(3600);
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

#[tokio::test]
async fn both_sides_prove_their_identity_over_tls13_and_mlkem() {
    let node = node("cluster.local", HOUR);
    let (web, cart) = (id("ns/shop/sa/web"), id("ns/shop/sa/cart"));
    node.manager.ensure(&web).await.unwrap();
    node.manager.ensure(&cart).await.unwrap();
    let client_config = node.manager.client_config(&web, &cart).unwrap();
    let server_config = node.manager.server_config(&cart).unwrap();
    for _ in 0..2 {
        let (client, server) = handshake(&client_config, &server_config).await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        exchange(&mut client, &mut server).await.unwrap();
        let (client, server) = (client.get_ref().1, server.get_ref().1);
        assert_eq!(peer_identity(client).unwrap(), cart);
        assert_eq!(peer_identity(server).unwrap(), web);
        assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(client.alpn_protocol(), Some(ALPN_H2));
        assert_eq!(server.alpn_protocol(), Some(ALPN_H2));
        assert_eq!(
            client.negotiated_key_exchange_group().map(|g| g.name()),
            Some(NamedGroup::X25519MLKEM768)
        );
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full), "nothing is resumed");
        assert_eq!(server.server_name(), None);
    }
}

/// A peer with a certificate of its own making, and who refuses it for what.
struct Case {
    name: &'static str,
    certificate: Option<Arc<CertifiedKey>>,
    expected: fn(&RefusedPeer) -> bool,
    log: &'static str,
}

fn cases(forge: &Forge) -> Vec<Case> {
    let now = Timestamp::now(&system_clock());
    let at = |t: Timestamp| t.date_time().unwrap();
    let other_key = Arc::clone(&forge.leaf(CART, |_| {}).key);
    let same_name = Forge::new("test root");
    let mut cases = Vec::new();
    let mut case = |name, certificate, expected, log| {
        cases.push(Case { name, certificate: Some(certificate), expected, log });
    };
    case(
        "garbage instead of a certificate",
        Arc::new(CertifiedKey::new(
            vec![CertificateDer::from(vec![0x30, 0x03, 1])],
            Arc::clone(&other_key),
        )),
        |r| matches!(r, RefusedPeer::Malformed { .. }),
        "peer's certificate is malformed: ",
    );
    case(
        "unknown root",
        Forge::new("unknown root").leaf(CART, |_| {}),
        |r| matches!(r, RefusedPeer::UnknownIssuer { presented } if presented.to_string() == CART),
        "peer claims spiffe://cluster.local/ns/shop/sa/cart: its certificate was not issued by a \
         trusted root of `cluster.local`",
    );
    case(
        "root with the trusted one's name",
        same_name.leaf(CART, |_| {}),
        |r| matches!(r, RefusedPeer::UnknownIssuer { .. }),
        "peer claims spiffe://cluster.local/ns/shop/sa/cart: its certificate was not issued by a \
         trusted root of `cluster.local`",
    );
    case(
        "self-signed",
        {
            let key = crate::identity::PrivateKey::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names = vec![uri(CART)];
            let leaf = params.self_signed(&key).unwrap();
            Arc::new(CertifiedKey::new(vec![leaf.into()], Arc::new(key)))
        },
        |r| matches!(r, RefusedPeer::UnknownIssuer { .. }),
        "peer claims spiffe://cluster.local/ns/shop/sa/cart: its certificate was not issued by a \
         trusted root of `cluster.local`",
    );
    case(
        "foreign trust domain, signed by our own root",
        forge.leaf("spiffe://other.example/ns/shop/sa/cart", |_| {}),
        |r| matches!(r, RefusedPeer::ForeignTrustDomain { .. }),
        "peer claims spiffe://other.example/ns/shop/sa/cart: foreign trust domain \
         `other.example`, trusted: `cluster.local`",
    );
    case(
        "expired",
        forge.leaf(CART, |p| p.not_after = at(now.minus(Duration::from_secs(5)))),
        |r| matches!(r, RefusedPeer::Expired { not_after, now, .. } if not_after < now),
        "certificate of spiffe://cluster.local/ns/shop/sa/cart expired at ",
    );
    case(
        "not yet valid",
        forge.leaf(CART, |p| p.not_before = at(now.plus(Duration::from_secs(600)))),
        |r| matches!(r, RefusedPeer::NotYetValid { not_before, now, .. } if not_before > now),
        "certificate of spiffe://cluster.local/ns/shop/sa/cart is not valid before ",
    );
    case(
        "no SAN",
        forge.leaf(CART, |p| p.subject_alt_names = vec![]),
        |r| matches!(r, RefusedPeer::NoSpiffeId { uri: None }),
        "peer's certificate holds no SPIFFE ID of a workload: it has no URI SAN",
    );
    case(
        "DNS name only",
        forge.leaf(CART, |p| {
            p.subject_alt_names = vec![SanType::DnsName("cart.shop".try_into().unwrap())];
        }),
        |r| matches!(r, RefusedPeer::NoSpiffeId { uri: None }),
        "peer's certificate holds no SPIFFE ID of a workload: it has no URI SAN",
    );
    case(
        "URI that is no SPIFFE ID",
        forge.leaf("https://cart.shop/\u{1b}[2J", |_| {}),
        |r| matches!(r, RefusedPeer::NoSpiffeId { uri: Some(_) }),
        "peer's certificate holds no SPIFFE ID of a workload: its URI SAN is \
         `https://cart.shop/\\u{1b}[2J`",
    );
    case(
        "SPIFFE ID of a trust domain, not of a workload",
        forge.leaf("spiffe://cluster.local", |_| {}),
        |r| matches!(r, RefusedPeer::NoSpiffeId { uri: Some(_) }),
        "peer's certificate holds no SPIFFE ID of a workload: its URI SAN is \
         `spiffe://cluster.local`",
    );
    case(
        "two URI SANs",
        forge.leaf(CART, |p| p.subject_alt_names.push(uri("https://cart.shop"))),
        |r| matches!(r, RefusedPeer::SeveralUriSans { count: 2 }),
        "peer's certificate holds 2 URI SANs, an X509-SVID holds exactly one",
    );
    case(
        "CA certificate as leaf",
        forge.leaf(CART, |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
        |r| matches!(r, RefusedPeer::NotALeaf { .. }),
        "peer claims spiffe://cluster.local/ns/shop/sa/cart with a signing (CA) certificate, \
         not a leaf",
    );
    case(
        "leaf that may sign certificates",
        forge.leaf(CART, |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        |r| matches!(r, RefusedPeer::NotALeaf { .. }),
        "peer claims spiffe://cluster.local/ns/shop/sa/cart with a signing (CA) certificate, \
         not a leaf",
    );
    case(
        "leaf for signing code",
        forge.leaf(CART, |p| {
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        }),
        |r| matches!(r, RefusedPeer::WrongPurpose { .. }),
        "certificate of spiffe://cluster.local/ns/shop/sa/cart is not allowed for TLS ",
    );
    case(
        "leaf for encryption only",
        forge.leaf(CART, |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        |r| matches!(r, RefusedPeer::WrongPurpose { .. }),
        "certificate of spiffe://cluster.local/ns/shop/sa/cart is not allowed for TLS ",
    );
    case(
        "somebody else's key",
        Arc::new(CertifiedKey::new(forge.leaf(CART, |_| {}).cert.clone(), other_key)),
        |r| *r == RefusedPeer::BadSignature,
        "peer failed to prove that it holds its certificate's key",
    );
    cases
}

fn trust(forge: &Forge) -> watch::Receiver<Arc<TrustBundles>> {
    let mut trust = TrustBundles::new();
    trust.insert(domain("cluster.local"), std::slice::from_ref(&forge.root)).unwrap();
    watch::Sender::new(Arc::new(trust)).subscribe()
}

fn client_of(
    forge: &Forge,
    certificate: Option<Arc<CertifiedKey>>,
    expected: &str,
) -> Arc<ClientConfig> {
    let expected = Some(expected.parse().unwrap());
    let verifier = SvidVerifier::new(trust(forge), expected, &provider());
    client_config(provider(), verifier, Arc::new(Fixed(certificate)), system_clock()).unwrap()
}

fn server_of(forge: &Forge, certificate: Option<Arc<CertifiedKey>>) -> Arc<ServerConfig> {
    let verifier = SvidVerifier::new(trust(forge), None, &provider());
    server_config(provider(), verifier, Arc::new(Fixed(certificate)), system_clock()).unwrap()
}

#[tokio::test]
async fn a_client_refuses_every_bad_server_and_says_why() {
    let forge = Forge::new("test root");
    let good = forge.leaf("spiffe://cluster.local/ns/shop/sa/web", |_| {});
    for case in cases(&forge) {
        let client = client_of(&forge, Some(Arc::clone(&good)), CART);
        let (client, server) = handshake(&client, &server_of(&forge, case.certificate)).await;
        check(case.name, case.expected, case.log, client.err(), server.err());
    }
}

#[tokio::test]
async fn a_server_refuses_every_bad_client_and_says_why() {
    let forge = Forge::new("test root");
    let good = forge.leaf("spiffe://cluster.local/ns/shop/sa/web", |_| {});
    let mut cases = cases(&forge);
    cases.push(Case {
        name: "no certificate",
        certificate: None,
        expected: |r| *r == RefusedPeer::NoCertificate,
        log: "peer presented no certificate",
    });
    for case in cases {
        let client = client_of(&forge, case.certificate, "spiffe://cluster.local/ns/shop/sa/web");
        let (client, server) =
            handshake(&client, &server_of(&forge, Some(Arc::clone(&good)))).await;
        check(case.name, case.expected, case.log, server.err(), client.err());
    }
}

fn check(
    name: &str,
    expected: fn(&RefusedPeer) -> bool,
    log: &str,
    refuser: Option<std::io::Error>,
    refused: Option<std::io::Error>,
) {
    let refuser = refuser.unwrap_or_else(|| panic!("{name}: was accepted"));
    let refusal = refusal(&refuser).unwrap_or_else(|| panic!("{name}: no refusal in {refuser:?}"));
    assert!(expected(&refusal), "{name}: {refusal:?}");
    assert!(refusal.to_string().starts_with(log), "{name}: {refusal}");
    assert!(!refusal.reason().is_empty());
    assert_eq!(refused_by_peer(&refuser), None, "{name}");
    let refused = refused.unwrap_or_else(|| panic!("{name}: the peer was not told"));
    let alert = refused_by_peer(&refused).unwrap_or_else(|| panic!("{name}: {refused:?}"));
    let told = match refusal {
        RefusedPeer::NoCertificate => AlertDescription::CertificateRequired,
        RefusedPeer::BadSignature => AlertDescription::DecryptError,
        _ => AlertDescription::CertificateUnknown,
    };
    assert_eq!(alert, PeerAlert(told), "{name}");
    assert!(alert.to_string().starts_with("peer refused our certificate: "));
    assert_eq!(super::super::refusal(&refused), None, "{name}");
}

#[tokio::test]
async fn a_server_with_a_good_certificate_of_another_workload_is_refused() {
    let forge = Forge::new("test root");
    let web = forge.leaf("spiffe://cluster.local/ns/shop/sa/web", |_| {});
    let cart = forge.leaf(CART, |_| {});
    let client = client_of(&forge, Some(web), "spiffe://cluster.local/ns/shop/sa/billing");
    let (client, _) = handshake(&client, &server_of(&forge, Some(cart))).await;
    let refused = refusal(&client.unwrap_err()).unwrap();
    assert_eq!(refused.presented().map(ToString::to_string).as_deref(), Some(CART));
    assert_eq!(
        refused.to_string(),
        "expected spiffe://cluster.local/ns/shop/sa/billing, but the peer is \
         spiffe://cluster.local/ns/shop/sa/cart"
    );
}

#[tokio::test]
async fn intermediates_are_followed_and_held_to_their_own_rules() {
    let root = Forge::new("test root");
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let good = root.intermediate(|_| {});
    let client = client_of(&root, Some(good.leaf(web, |_| {})), CART);
    let server = server_of(&root, Some(good.leaf(CART, |_| {})));
    let (client, server) = handshake(&client, &server).await;
    assert_eq!(peer_identity(client.unwrap().get_ref().1).unwrap().to_string(), CART);
    assert_eq!(peer_identity(server.unwrap().get_ref().1).unwrap().to_string(), web);

    let now = Timestamp::now(&system_clock());
    let past = now.minus(Duration::from_secs(5)).date_time().unwrap();
    for (spoilt, reason) in [
        (root.intermediate(|p| p.not_after = past), "expired"),
        (root.intermediate(|p| p.is_ca = IsCa::ExplicitNoCa), "invalid_chain"),
        (root.intermediate(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]), "invalid_chain"),
        (good.intermediate(|_| {}), "unknown_issuer"),
    ] {
        let client = client_of(&root, Some(spoilt.leaf(web, |_| {})), CART);
        let server = server_of(&root, Some(good.leaf(CART, |_| {})));
        let refused = handshake(&client, &server).await.1.unwrap_err();
        let refused = refusal(&refused).unwrap();
        assert_eq!(refused.reason(), reason, "{refused}");
    }
}

#[tokio::test]
async fn a_change_of_trust_applies_to_the_next_handshake() {
    let (here, there) = (node("cluster.local", HOUR), node("other.example", HOUR));
    let web = id("ns/shop/sa/web");
    let cart = "spiffe://other.example/ns/shop/sa/cart".parse().unwrap();
    here.manager.ensure(&web).await.unwrap();
    there.manager.ensure(&cart).await.unwrap();
    let client = here.manager.client_config(&web, &cart).unwrap();
    let server = there.manager.server_config(&cart).unwrap();

    let (refused, _) = handshake(&client, &server).await;
    let refused = refusal(&refused.unwrap_err()).unwrap();
    assert!(matches!(refused, RefusedPeer::ForeignTrustDomain { .. }), "{refused:?}");

    let root = |ca: &crate::identity::DevelopmentCa| [ca.root().clone()];
    here.source.ca.trust_foreign(domain("other.example"), &root(&there.source.ca)).unwrap();
    there.source.ca.trust_foreign(domain("cluster.local"), &root(&here.source.ca)).unwrap();
    let (accepted, proven) = handshake(&client, &server).await;
    accepted.unwrap();
    assert_eq!(peer_identity(proven.unwrap().get_ref().1).unwrap(), web);

    there.source.ca.distrust(&domain("cluster.local"));
    let (_, refused) = handshake(&client, &server).await;
    let refused = refusal(&refused.unwrap_err()).unwrap();
    assert_eq!(refused.reason(), "foreign_trust_domain");
}

#[tokio::test]
async fn tls12_is_refused() {
    let forge = Forge::new("test root");
    let good = forge.leaf(CART, |_| {});
    let verifier = SvidVerifier::new(trust(&forge), None, &provider());
    let old = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Fixed(Some(Arc::clone(&good)))));
    let (client, server) = handshake(&Arc::new(old), &server_of(&forge, Some(good))).await;
    let server = server.unwrap_err();
    assert_eq!(refusal(&server), None);
    assert_eq!(
        server.get_ref().and_then(|e| e.downcast_ref()),
        Some(&rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    );
    assert_eq!(
        client.unwrap_err().get_ref().and_then(|e| e.downcast_ref()),
        Some(&rustls::Error::AlertReceived(AlertDescription::ProtocolVersion))
    );
}

#[tokio::test]
async fn garbage_gets_an_error() {
    let forge = Forge::new("test root");
    let server = server_of(&forge, Some(forge.leaf(CART, |_| {})));
    // A real ClientHello, to be spoilt.
    let (near, mut far) = duplex(64 * 1024);
    let client = TlsConnector::from(client_of(&forge, None, CART));
    let connecting = tokio::spawn(client.connect(server_name(), near));
    let mut hello = vec![0_u8; 16 * 1024];
    let length = far.read(&mut hello).await.unwrap();
    hello.truncate(length);
    connecting.abort();

    let mut inputs: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0xff; 70_000],
        vec![22, 3, 1, 0xff, 0xff],
        vec![],
    ];
    inputs.extend((0..hello.len()).step_by(7).map(|at| {
        let mut spoilt = hello.clone();
        spoilt[at] ^= 0xff;
        spoilt
    }));
    inputs.extend((1..hello.len()).step_by(61).map(|end| hello[..end].to_vec()));
    for input in inputs {
        let (mut near, far) = duplex(128 * 1024);
        near.write_all(&input).await.unwrap();
        near.shutdown().await.unwrap();
        assert!(TlsAcceptor::from(Arc::clone(&server)).accept(far).await.is_err());
    }
}

#[test]
fn no_spoilt_certificate_is_accepted() {
    let forge = Forge::new("test root");
    let leaf = forge.leaf(CART, |_| {}).cert[0].to_vec();
    let (trust, algorithms) = (trust(&forge), provider().signature_verification_algorithms);
    let trust = trust.borrow();
    let now = Timestamp::now(&system_clock()).unix_time();
    let verify = |der: Vec<u8>| {
        let der = CertificateDer::from(der);
        verify_chain(&trust, &algorithms, &der, &[], Role::Client, now)
    };
    verify(leaf.clone()).unwrap();
    for at in 0..leaf.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut spoilt = leaf.clone();
            spoilt[at] ^= flip;
            verify(spoilt).unwrap_err().to_string();
        }
        verify(leaf[..at].to_vec()).unwrap_err();
    }
    verify([&leaf[..], &[0]].concat()).unwrap_err();
}

use std::fs;

use rcgen::CertificateParams;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject as _},
    server::Acceptor,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::*;
use crate::{
    identity::testing::authority::Authority,
    model::tls::{
        CertificateFiles, CertificateSource, DownstreamTls, TlsCertificate, TlsVersion,
        ValidationSource,
    },
};

type Pair = (String, String);

fn given(pair: &Pair) -> CertificateSource {
    let certificate = TlsCertificate::from_pem(pair.0.as_bytes(), pair.1.as_bytes()).unwrap();
    CertificateSource::Given(CertificateMaterial::Inline(certificate))
}

fn settings(certificates: Vec<CertificateSource>) -> DownstreamTls {
    DownstreamTls {
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
        cipher_suites: Vec::new(),
        curves: Vec::new(),
        alpn: Vec::new(),
        certificates,
        validation: None,
        require_client_certificate: false,
        require_sni: false,
        prefer_client_ciphers: false,
    }
}

fn termination(settings: DownstreamTls) -> TlsTermination {
    let certificates = settings.certificates.iter().map(|_| None).collect();
    let settings = Arc::new(settings);
    TlsTermination { listener: "edge".into(), settings, certificates, validation: None }
}

/// Of a client that trusts `authority`.
struct Client<'a> {
    authority: &'a Authority,
    name: &'a str,
    presents: Option<&'a Pair>,
    alpn: &'a [&'a str],
}

impl<'a> Client<'a> {
    fn of(authority: &'a Authority, name: &'a str) -> Self {
        Self { authority, name, presents: None, alpn: &[] }
    }

    fn config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.presents {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![chain], key).unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// What the client sees: the server's leaf and the protocol; and whom the server sees.
    async fn meets(
        &self,
        contexts: &DownstreamContexts,
        termination: &TlsTermination,
    ) -> Result<Met, String> {
        self.meets_late(contexts, termination, termination).await
    }

    /// As [`Client::meets`], where something else is in force after the handshake.
    async fn meets_late(
        &self,
        contexts: &DownstreamContexts,
        termination: &TlsTermination,
        after: &TlsTermination,
    ) -> Result<Met, String> {
        let after = contexts.context(after).map_err(|error| error.to_string())?;
        let context = contexts.context(termination).map_err(|error| error.to_string())?;
        let (near, far) = duplex(64 * 1024);
        let connect = async {
            let name = ServerName::try_from(self.name.to_owned()).unwrap();
            let mut stream = TlsConnector::from(self.config()).connect(name, near).await?;
            stream.read_u8().await?;
            let connection = stream.get_ref().1;
            let leaf = connection.peer_certificates().unwrap()[0].to_vec();
            let protocol = connection.alpn_protocol().map(<[u8]>::to_vec);
            std::io::Result::Ok((leaf, protocol))
        };
        let accept = async {
            let start = LazyConfigAcceptor::new(Acceptor::default(), far).await?;
            let handshake = context.handshake(&start.client_hello());
            let config = Arc::clone(&handshake.config);
            let mut stream = start.into_stream(config).await?;
            after.judge_again(stream.get_ref().1).map_err(std::io::Error::other)?;
            stream.write_u8(1).await?;
            stream.shutdown().await?;
            std::io::Result::Ok(after.peer(&handshake, stream.get_ref().1))
        };
        let (client, server) = tokio::join!(connect, accept);
        let (leaf, protocol) = client.map_err(|error| format!("client: {error}"))?;
        let peer = server.map_err(|error| format!("server: {error}"))?;
        Ok(Met { leaf, protocol, peer })
    }
}

struct Met {
    leaf: Vec<u8>,
    protocol: Option<Vec<u8>>,
    peer: GatewayPeer,
}

/// Whose certificate `pair` is, in DER.
fn der(pair: &Pair) -> Vec<u8> {
    CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn the_clients_sni_picks_the_certificate() {
    let authority = Authority::new();
    let issue = |names: &[&str]| authority.issue(names, |_| {});
    let first = issue(&["first.example"]);
    let exact = issue(&["a.b.example", "twice.b.example"]);
    let wildcard = issue(&["*.b.example"]);
    let common = authority.issue(&[], |params: &mut CertificateParams| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "cn.example");
    });
    let pairs = [&first, &exact, &wildcard, &common];
    let termination = termination(settings(pairs.map(given).into()));
    let contexts = DownstreamContexts::default();
    for (name, expected) in [
        ("a.b.example", &exact),
        ("A.B.example", &exact),
        ("c.b.example", &wildcard),
        ("first.example", &first),
    ] {
        let met = Client::of(&authority, name).meets(&contexts, &termination).await.unwrap();
        assert!(met.leaf == der(expected), "{name}");
        let GatewayPeer::Tls { server_name, names, identity, .. } = met.peer else { panic!() };
        assert_eq!(server_name.as_deref(), Some(&*name.to_ascii_lowercase()));
        assert!(names.is_empty() && identity.is_none());
    }
    // The first, which clients do not take for another's.
    for name in ["b.example", "c.d.b.example", "other.example"] {
        let refused = Client::of(&authority, name).meets(&contexts, &termination).await;
        let refused = refused.err().unwrap();
        assert!(refused.contains("certificate") && refused.contains("first.example"), "{refused}");
    }
    // A client that names an address sends no SNI.
    let first = authority.issue(&["first.example"], |params| {
        params.subject_alt_names.push(rcgen::SanType::IpAddress([192, 0, 2, 1].into()));
    });
    let mut of_addresses = settings([&first, &exact].map(given).into());
    let open = super::tests::termination(of_addresses.clone());
    let met = Client::of(&authority, "192.0.2.1").meets(&contexts, &open).await.unwrap();
    assert!(met.leaf == der(&first));
    let GatewayPeer::Tls { names, identity, server_name, .. } = met.peer else { panic!() };
    assert!(names.is_empty() && identity.is_none() && server_name.is_none());
    of_addresses.require_sni = true;
    let strict = super::tests::termination(of_addresses);
    for name in ["192.0.2.1", "other.example"] {
        assert!(Client::of(&authority, name).meets(&contexts, &strict).await.is_err(), "{name}");
    }
    Client::of(&authority, "a.b.example").meets(&contexts, &strict).await.unwrap();
}

#[tokio::test]
async fn protocols_are_agreed_on_or_not_spoken_of() {
    let authority = Authority::new();
    let pair = authority.issue(&["a.example"], |_| {});
    let mut settings = settings(vec![given(&pair)]);
    settings.alpn = vec!["h2".into(), "http/1.1".into()];
    let (contexts, termination) = (DownstreamContexts::default(), termination(settings));
    for (alpn, expected) in [
        (&["http/1.1", "h2"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&["imap"], None),
        (&[], None),
    ] {
        let client = Client { alpn, ..Client::of(&authority, "a.example") };
        let met = client.meets(&contexts, &termination).await.unwrap();
        assert_eq!(met.protocol.as_deref(), expected, "{alpn:?}");
    }
}

#[tokio::test]
async fn clients_prove_who_they_are_where_they_have_to() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let own = ours.issue(&["a.example"], |_| {});
    let known = ours.issue(&["client.example", "spiffe://cluster.local/ns/a/sa/b"], |_| {});
    let foreign = theirs.issue(&["client.example"], |_| {});
    let expired = ours.issue(&["client.example"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
    });
    let mut settings = settings(vec![given(&own)]);
    settings.validation = Some(ValidationSource::Inline(Arc::new(ours.trusted())));
    let asks = termination(settings.clone());
    settings.require_client_certificate = true;
    let demands = termination(settings);
    let contexts = DownstreamContexts::default();
    let client = |presents| Client { presents, ..Client::of(&ours, "a.example") };
    for termination in [&asks, &demands] {
        let met = client(Some(&known)).meets(&contexts, termination).await.unwrap();
        let GatewayPeer::Tls { names, identity, session, .. } = met.peer else { panic!() };
        let told = session.certificate.unwrap();
        assert_eq!(*told.uris, ["spiffe://cluster.local/ns/a/sa/b".into()]);
        assert_eq!(*told.hosts, ["client.example".into()]);
        assert_eq!(&*told.subject, &**names.last().unwrap());
        let encoded = told.chain.encoded();
        let pem = known.0.replace('\n', "%0A").replace(' ', "%20").replace('+', "%2B");
        assert_eq!(encoded.concat(), pem.replace('/', "%2F").replace('=', "%3D").replace('\r', ""));
        assert_eq!(session.version, "TLSv1.3");
        assert!(session.cipher.starts_with("TLS_"), "{}", session.cipher);
        assert_eq!(
            names[..2],
            ["spiffe://cluster.local/ns/a/sa/b".into(), "client.example".into()]
        );
        assert_eq!(identity.unwrap().to_string(), "spiffe://cluster.local/ns/a/sa/b");
        for bad in [&foreign, &expired] {
            assert!(client(Some(bad)).meets(&contexts, termination).await.is_err());
        }
    }
    let met = client(None).meets(&contexts, &asks).await.unwrap();
    let GatewayPeer::Tls { names, identity, server_name, session } = met.peer else { panic!() };
    assert!(names.is_empty() && identity.is_none() && session.certificate.is_none());
    assert_eq!(server_name.as_deref(), Some("a.example"));
    assert!(client(None).meets(&contexts, &demands).await.is_err());
}

#[tokio::test]
async fn secrets_and_files_are_followed_and_the_last_good_ones_stay() {
    let authority = Authority::new();
    let (old, new) =
        (authority.issue(&["a.example"], |_| {}), authority.issue(&["a.example"], |_| {}));
    let contexts = DownstreamContexts::default();
    let client = Client::of(&authority, "a.example");

    let missing = termination(settings(vec![CertificateSource::Secret("mine".into())]));
    let refused = client.meets(&contexts, &missing).await.err().unwrap();
    assert_eq!(refused, "listener `edge`: there is no secret `mine`");
    let with = |pair: &Pair| {
        let CertificateSource::Given(material) = given(pair) else { unreachable!() };
        TlsTermination { certificates: vec![Some(Arc::new(material))], ..missing.clone() }
    };
    for pair in [&old, &new] {
        assert!(client.meets(&contexts, &with(pair)).await.unwrap().leaf == der(pair));
    }

    let directory = tempfile::tempdir().unwrap();
    let (chain, key) = (directory.path().join("chain.pem"), directory.path().join("key.pem"));
    let put = |(chain_pem, key_pem): &Pair| {
        fs::write(&chain, chain_pem).unwrap();
        fs::write(&key, key_pem).unwrap();
    };
    put(&old);
    let files = CertificateFiles { chain: chain.clone(), key: key.clone() };
    let source = CertificateSource::Given(CertificateMaterial::Files(files));
    let from_files = termination(settings(vec![source]));
    assert!(client.meets(&contexts, &from_files).await.unwrap().leaf == der(&old));
    fs::write(&chain, "half writ").unwrap();
    contexts.look();
    assert!(client.meets(&contexts, &from_files).await.unwrap().leaf == der(&old));
    put(&new);
    contexts.look();
    assert!(client.meets(&contexts, &from_files).await.unwrap().leaf == der(&new));

    contexts.retain(|one| Arc::ptr_eq(&one.settings, &missing.settings));
    assert_eq!(contexts.all().len(), 1);
}

#[tokio::test]
async fn what_is_in_force_after_a_handshake_judges_its_client() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let own = ours.issue(&["a.example"], |_| {});
    let friend = ours.issue(&["client.example"], |_| {});
    let open = settings(vec![given(&own)]);
    let trusting = |authority: &Authority, require_client_certificate| {
        let validation = Some(ValidationSource::Inline(Arc::new(authority.trusted())));
        termination(DownstreamTls { validation, require_client_certificate, ..open.clone() })
    };
    let (asks, demands) = (trusting(&ours, false), trusting(&ours, true));
    let (asks_others, demands_others) = (trusting(&theirs, false), trusting(&theirs, true));
    let open = termination(open.clone());
    let contexts = DownstreamContexts::default();
    for (presents, before, after, named) in [
        (Some(&friend), &asks, &demands, Some(true)),
        (Some(&friend), &demands, &demands_others, None),
        (Some(&friend), &asks, &asks_others, None),
        // Nobody vouches for it any more.
        (Some(&friend), &demands, &open, Some(false)),
        (Some(&friend), &open, &asks, Some(false)),
        (Some(&friend), &open, &demands, None),
        (None, &asks, &asks_others, Some(false)),
        (None, &asks, &demands, None),
    ] {
        let client = Client { presents, ..Client::of(&ours, "a.example") };
        let met = client.meets_late(&contexts, before, after).await;
        let is_named = met.as_ref().ok().map(|met| {
            let GatewayPeer::Tls { names, .. } = &met.peer else { panic!() };
            !names.is_empty()
        });
        assert_eq!(is_named, named, "{:?}", met.err());
    }
}

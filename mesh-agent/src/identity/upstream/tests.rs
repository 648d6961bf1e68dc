use std::{fs, io, sync::Arc};

use rcgen::KeyPair;
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{
    identity::testing::authority::Authority,
    model::{
        authz::{StringMatcher, StringPattern},
        tls::{
            CertificateFiles, CertificateSource, Crls, HostNames, Roots, SanMatcher,
            SanType as Kind, TlsVersion, ValidationSource, crls_from_pem,
        },
    },
};

fn settings(validation: ValidationSource) -> UpstreamTls {
    UpstreamTls {
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
        cipher_suites: Vec::new(),
        curves: Vec::new(),
        alpn: Vec::new(),
        sni: None,
        sni_by_endpoint: false,
        sni_is_san: false,
        by_host: HostNames::default(),
        certificate: None,
        validation,
    }
}

fn origination(settings: UpstreamTls) -> TlsOrigination {
    TlsOrigination {
        cluster: ClusterName("c".into()),
        place: None,
        settings: Arc::new(settings),
        certificate: None,
        validation: None,
    }
}

fn inline(context: ValidationContext) -> TlsOrigination {
    origination(settings(ValidationSource::Inline(Arc::new(context))))
}

fn server(pair: &(String, String)) -> Arc<ServerConfig> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let chain = CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.1.as_bytes()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(builder.with_single_cert(vec![chain], key).unwrap())
}

/// What became of a handshake, and the name the client asked for.
async fn meet(
    contexts: &UpstreamContexts,
    origination: &TlsOrigination,
    host: Option<&str>,
    server: Arc<ServerConfig>,
) -> (Result<(), String>, Option<String>) {
    meet_by(contexts, origination, Names { host, endpoint: None }, server).await
}

async fn meet_by(
    contexts: &UpstreamContexts,
    origination: &TlsOrigination,
    names: Names<'_>,
    server: Arc<ServerConfig>,
) -> (Result<(), String>, Option<String>) {
    let context = match contexts.context(origination) {
        Ok(context) => context,
        Err(error) => return (Err(error.to_string()), None),
    };
    let (config, name) = context.connection(Alpn::Http1, names, [127, 0, 0, 1].into());
    let (near, far) = duplex(64 * 1024);
    let connect = async {
        let mut stream = TlsConnector::from(config).connect(name, near).await?;
        stream.read_u8().await
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await.ok()?;
        let asked = stream.get_ref().1.server_name().map(str::to_owned);
        stream.write_u8(1).await.ok()?;
        stream.flush().await.ok()?;
        asked
    };
    let (connected, asked) = tokio::join!(connect, accept);
    let told = |error: io::Error| match refused_server(&error) {
        Some(refused) => refused.to_string(),
        None => error.to_string(),
    };
    (connected.map(drop).map_err(told), asked)
}

fn exact(kind: Kind, text: &str) -> SanMatcher {
    let pattern = StringPattern::Exact(text.to_owned());
    SanMatcher { kind, matcher: StringMatcher { pattern, ignore_case: false } }
}

#[tokio::test]
async fn a_server_is_believed_only_if_all_of_what_is_expected_holds() {
    let (trusted, foreign) = (Authority::new(), Authority::new());
    let contexts = UpstreamContexts::default();
    let pair = trusted.issue(&["web.example", "spiffe://a.example/ns/x"], |p| {
        p.serial_number = Some(7_u64.into());
    });
    let web = server(&pair);
    let check = async |context: ValidationContext, server: &Arc<ServerConfig>, refused: &str| {
        let (met, _) = meet(&contexts, &inline(context), None, Arc::clone(server)).await;
        match (refused, met) {
            ("", met) => assert_eq!(met, Ok(())),
            (_, Err(told)) => assert!(told.contains(refused), "{told}"),
            (_, Ok(())) => panic!("believed, not: {refused}"),
        }
    };
    check(trusted.trusted(), &web, "").await;
    check(foreign.trusted(), &web, "no trusted root issued it").await;
    let named =
        |kind, text| ValidationContext { sans: vec![exact(kind, text)], ..trusted.trusted() };
    check(named(Kind::Dns, "web.example"), &web, "").await;
    check(named(Kind::Uri, "spiffe://a.example/ns/x"), &web, "").await;
    check(named(Kind::Dns, "other.example"), &web, "(web.example, spiffe://").await;
    check(named(Kind::Uri, "web.example"), &web, "none of the names expected").await;

    // Revocation: by serial, and unknown where no list is the issuer's.
    let revoked = |pem: String| {
        let lists = Some(Crls::Inline(crls_from_pem(pem.as_bytes()).unwrap().into()));
        ValidationContext { crls: lists, ..trusted.trusted() }
    };
    check(revoked(trusted.revokes(7)), &web, "it has been revoked").await;
    check(revoked(trusted.revokes(8)), &web, "").await;

    // Roots by trust domain: each for its own only.
    let domains = |of: &str| ValidationContext {
        trust_domains: [(of.parse().unwrap(), trusted.roots())].into(),
        ..ValidationContext::default()
    };
    check(domains("a.example"), &web, "").await;
    check(domains("b.example"), &web, "trust domain is not among").await;
    let nameless = server(&trusted.issue(&["web.example"], |_| ()));
    check(domains("a.example"), &nameless, "does not hold one SPIFFE ID").await;

    // Hashes, with nobody to vouch.
    let leaf = rustls::pki_types::CertificateDer::from(web_der(&pair.0));
    let hash: [u8; 32] = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, &leaf)
        .as_ref()
        .try_into()
        .unwrap();
    let pinned =
        |hash| ValidationContext { certificate_hashes: vec![hash], ..ValidationContext::default() };
    check(pinned(hash), &web, "").await;
    check(pinned([0; 32]), &web, "none of the hashes").await;

    // Nobody said whom to trust; or that nobody has to be.
    check(ValidationContext::default(), &web, "anybody would be believed").await;
    let anybody = ValidationContext { accept_untrusted: true, ..ValidationContext::default() };
    check(anybody, &web, "").await;

    let expired = server(&trusted.issue(&["web.example"], |params| {
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    }));
    check(trusted.trusted(), &expired, "it has expired").await;
}

fn web_der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn the_name_asked_for_is_the_settings_or_the_requests() {
    let authority = Authority::new();
    let contexts = UpstreamContexts::default();
    let web = server(&authority.issue(&["*.example.com"], |_| ()));
    let with = |change: &dyn Fn(&mut UpstreamTls)| {
        let mut settings = settings(ValidationSource::Inline(Arc::new(authority.trusted())));
        change(&mut settings);
        origination(settings)
    };
    let meet =
        async |origination, host| meet(&contexts, &origination, host, Arc::clone(&web)).await;
    assert_eq!(meet(with(&|_| ()), Some("a.example.com")).await, (Ok(()), None));
    let fixed = with(&|settings| settings.sni = Some("fixed.example.com".into()));
    let asked = |name: &str| Some(name.to_owned());
    assert_eq!(meet(fixed, Some("a.example.com")).await, (Ok(()), asked("fixed.example.com")));
    let by_host = |sni, san| {
        with(&move |settings: &mut UpstreamTls| {
            settings.by_host = HostNames { sni, san, header: None };
        })
    };
    assert_eq!(
        meet(by_host(true, true), Some("a.example.com")).await,
        (Ok(()), asked("a.example.com"))
    );
    let (refused, _) = meet(by_host(true, true), Some("a.example.org")).await;
    assert!(refused.unwrap_err().ends_with("is not for `a.example.org`"));
    let (refused, _) = meet(by_host(false, true), Some("example.com")).await;
    assert!(refused.unwrap_err().ends_with("is not for `example.com`"));
    let own = with(&|settings| {
        settings.sni = Some("example.org".into());
        settings.sni_is_san = true;
    });
    assert!(meet(own, None).await.0.unwrap_err().ends_with("is not for `example.org`"));

    // Of all that may name it, the request's host goes first, and the endpoint's before `sni`.
    let by_endpoint = |sni_is_san, by_host: bool| {
        with(&move |settings: &mut UpstreamTls| {
            settings.sni = Some("fixed.example.com".into());
            (settings.sni_by_endpoint, settings.sni_is_san) = (true, sni_is_san);
            settings.by_host.sni = by_host;
        })
    };
    let names = |endpoint| Names { host: Some("host.example.com"), endpoint };
    let meet = async |origination: TlsOrigination, names| {
        meet_by(&contexts, &origination, names, Arc::clone(&web)).await
    };
    let named = names(Some("a.example.com"));
    assert_eq!(meet(by_endpoint(true, false), named).await, (Ok(()), asked("a.example.com")));
    assert_eq!(meet(by_endpoint(true, true), named).await, (Ok(()), asked("host.example.com")));
    let unnamed = meet(by_endpoint(true, false), names(None)).await;
    assert_eq!(unnamed, (Ok(()), asked("fixed.example.com")));
    let (refused, _) = meet(by_endpoint(true, false), names(Some("a.example.org"))).await;
    assert!(refused.unwrap_err().ends_with("is not for `a.example.org`"));
    for address in ["10.0.0.1", "[fd00::1]"] {
        let names = Names { host: Some(address), endpoint: Some("a.example.com") };
        assert_eq!(meet(by_endpoint(true, true), names).await, (Ok(()), asked("a.example.com")));
    }
    // Who does not want it asks for none.
    assert_eq!(meet(with(&|_| ()), named).await, (Ok(()), None));
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_makes_a_new_context_and_a_missing_one_none() {
    let (old, new) = (Authority::new(), Authority::new());
    let contexts = UpstreamContexts::default();
    let mut wanted = origination(settings(ValidationSource::Secret("ca".into())));
    let error = contexts.context(&wanted).unwrap_err().to_string();
    assert_eq!(error, "cluster `c`: there is no secret `ca`");
    wanted.validation = Some(Arc::new(old.trusted()));
    let first = contexts.context(&wanted).unwrap();
    assert_eq!(contexts.context(&wanted).unwrap().id(), first.id());
    wanted.validation = Some(Arc::new(new.trusted()));
    let second = contexts.context(&wanted).unwrap();
    assert_ne!(second.id(), first.id());
    assert_eq!(contexts.current(), [second.id()].into());
    let web = server(&new.issue(&["web.example"], |_| ()));
    assert_eq!(meet(&contexts, &wanted, None, web).await.0, Ok(()));
    // A secret that leaves open whom to trust is no better than none.
    wanted.validation = Some(Arc::default());
    assert!(contexts.context(&wanted).unwrap_err().to_string().contains("anybody"));
}

#[test]
fn files_are_read_again_when_they_change_and_bad_ones_change_nothing() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let (chain, key) = (directory.path().join("chain.pem"), directory.path().join("key.pem"));
    let ca = directory.path().join("ca.pem");
    let write = |pair: &(String, String)| {
        fs::write(&chain, &pair.0).unwrap();
        fs::write(&key, &pair.1).unwrap();
    };
    let validation =
        ValidationContext { roots: Some(Roots::File(ca.clone())), ..ValidationContext::default() };
    let mut settings = settings(ValidationSource::Inline(Arc::new(validation)));
    let files = CertificateFiles { chain: chain.clone(), key: key.clone() };
    settings.certificate = Some(CertificateSource::Given(CertificateMaterial::Files(files)));
    let wanted = origination(settings);
    let contexts = UpstreamContexts::default();
    let failed = || contexts.context(&wanted).unwrap_err().to_string();
    assert!(failed().contains("chain.pem: No such file"), "{}", failed());
    // Nobody will ever write to it.
    nix::unistd::mkfifo(&chain, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(failed().contains("chain.pem: is not a regular file"), "{}", failed());
    fs::remove_file(&chain).unwrap();
    fs::write(&ca, &authority.pem).unwrap();
    write(&authority.issue(&["a"], |_| ()));
    let first = contexts.context(&wanted).unwrap();
    let look = || {
        contexts.look();
        contexts.context(&wanted).unwrap().id()
    };
    assert_eq!(look(), first.id());
    // Half written: the key is still the old one's.
    let next = authority.issue(&["b"], |_| ());
    fs::write(&chain, &next.0).unwrap();
    assert_eq!(look(), first.id());
    write(&next);
    // Who asks waits for no file.
    assert_eq!(contexts.context(&wanted).unwrap().id(), first.id());
    assert_ne!(look(), first.id());
    assert_eq!(contexts.current().len(), 1);
    contexts.retain(|_| true);
    assert_eq!(contexts.current().len(), 1);
    contexts.retain(|origination| origination.cluster != wanted.cluster);
    assert!(contexts.current().is_empty());
    let foreign = KeyPair::generate().unwrap().serialize_pem();
    let other = origination(UpstreamTls {
        certificate: wanted.settings.certificate.clone(),
        ..UpstreamTls::clone(&wanted.settings)
    });
    fs::write(&key, foreign).unwrap();
    let refused = contexts.context(&other).unwrap_err().to_string();
    assert!(refused.contains("key.pem: the private key does not belong"), "{refused}");
}

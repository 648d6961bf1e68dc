use std::collections::BTreeSet;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use super::*;
use crate::{
    identity::{
        IdentityManager, IdentityOptions, Renewal,
        testing::{domain, id},
    },
    model::tls::anchors_from_pem,
};

/// Which names are asked for.
#[derive(Default)]
struct Asked(Mutex<BTreeSet<Arc<str>>>);

impl Asked {
    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}

impl Subscriptions for Asked {
    fn want(&self, secret: &Arc<str>) {
        assert!(self.0.lock().unwrap().insert(Arc::clone(secret)), "{secret} twice");
    }

    fn unwant(&self, secret: &Arc<str>) {
        assert!(self.0.lock().unwrap().remove(secret), "{secret} was not wanted");
    }
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn certificate(&self, name: &str, identity: &Identity) -> Secret {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let pair = TlsCertificate::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes());
        let material = CertificateMaterial::Inline(pair.unwrap());
        Secret { name: name.into(), kind: SecretKind::TlsCertificate(Arc::new(material)) }
    }

    fn roots(&self) -> Roots {
        Roots::Inline(anchors_from_pem(self.pem.as_bytes()).unwrap().into())
    }
}

fn validation(context: ValidationContext) -> Secret {
    Secret { name: "ROOTCA".into(), kind: SecretKind::ValidationContext(Arc::new(context)) }
}

fn trusting(authority: &Authority) -> Secret {
    validation(ValidationContext { roots: Some(authority.roots()), ..Default::default() })
}

fn table(secrets: impl IntoIterator<Item = Secret>) -> Secrets {
    let named = |secret: Secret| (Arc::clone(&secret.name), Arc::new(secret));
    Arc::new(secrets.into_iter().map(named).collect())
}

fn source(asked: &Arc<Asked>) -> Arc<SdsCertificates> {
    let options = SdsOptions {
        names: "{identity}".parse().unwrap(),
        validation: "ROOTCA".into(),
        trust_domain: domain("cluster.local"),
        patience: Duration::from_secs(3),
    };
    Arc::new(SdsCertificates::new(options, Arc::<Asked>::clone(asked)))
}

#[test]
fn a_name_is_made_of_an_identity() {
    let web = id("ns/shop/sa/web");
    for (template, name) in [
        ("{identity}", "spiffe://cluster.local/ns/shop/sa/web"),
        ("default", "default"),
        ("{trust_domain}/{namespace}.{service_account}", "cluster.local/shop.web"),
    ] {
        assert_eq!(&*template.parse::<SecretNames>().unwrap().of(&web), name);
    }
    for wrong in ["", "{pod}", "{identity", "}"] {
        assert!(wrong.parse::<SecretNames>().is_err(), "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pushed_certificate_is_judged_and_the_last_good_one_stays() {
    let asked = Arc::<Asked>::default();
    let sds = source(&asked);
    let source: Arc<dyn CertificateSource> = Arc::<SdsCertificates>::clone(&sds);
    let manager = IdentityManager::new(source, IdentityOptions::default());
    let (web, other) = (id("ns/shop/sa/web"), id("ns/shop/sa/other"));
    assert_eq!(asked.names(), ["ROOTCA"]);

    // Held, and refused by the secret's name.
    manager.ensure(&web).await.unwrap();
    assert_eq!(asked.names(), ["ROOTCA", &web.to_string()]);
    let refused = manager.server_config(&web).unwrap_err().to_string();
    assert!(refused.contains(&format!("there is no secret `{web}`")), "{refused}");

    let authority = Authority::new();
    let settled = async |expected: &str| {
        // Paused time goes on when all tasks wait.
        time::sleep(Duration::from_millis(50)).await;
        let status = manager.status().remove(0);
        let error = status.last_error.unwrap_or_default();
        match expected {
            "" => assert_eq!(error, ""),
            expected => assert!(error.contains(expected), "{error}"),
        }
        status.serial
    };
    let good = || authority.certificate(&web.to_string(), &web);
    sds.deliver(&table([good()]));
    time::sleep(Duration::from_secs(4)).await;
    assert_eq!(settled("there is no secret `ROOTCA`").await, None);
    sds.deliver(&table([good(), trusting(&authority)]));
    let first = settled("").await;
    assert!(first.is_some() && manager.server_config(&web).is_ok());

    let mut renewals = manager.renewals();
    sds.deliver(&table([good(), trusting(&authority)]));
    let second = settled("").await;
    assert_ne!(second, first);
    assert_eq!(renewals.try_recv(), Ok(Renewal::Certificate(web.clone())));

    let others = authority.certificate(&web.to_string(), &other);
    sds.deliver(&table([others, trusting(&authority)]));
    assert_eq!(
        settled("issued certificate is for spiffe://cluster.local/ns/shop/sa/other").await,
        second
    );
    let foreign = Authority::new().certificate(&web.to_string(), &web);
    sds.deliver(&table([foreign, trusting(&authority)]));
    assert_eq!(settled("does not verify against the trust bundle").await, second);
    let roots = Secret { name: web.to_string().into(), ..trusting(&authority) };
    sds.deliver(&table([roots, trusting(&authority)]));
    assert_eq!(settled("is no certificate").await, second);
    assert!(manager.server_config(&web).is_ok());
    assert!(renewals.try_recv().is_err());

    manager.release(&web);
    time::sleep(Duration::from_millis(50)).await;
    assert_eq!(asked.names(), ["ROOTCA"]);
    drop((manager, sds));
    time::sleep(Duration::from_millis(50)).await;
    assert!(asked.names().is_empty());
}

#[test]
fn roots_that_say_more_than_can_be_honoured_change_nothing() {
    let asked = Arc::<Asked>::default();
    let sds = source(&asked);
    let (authority, federated) = (Authority::new(), Authority::new());
    let trusted = || {
        let bundles = Arc::clone(&sds.trust_bundles().borrow());
        bundles.trust_domains().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(trusted().is_empty());
    sds.deliver(&table([trusting(&authority)]));
    assert_eq!(trusted(), ["cluster.local"]);
    let roots = || Some(authority.roots());
    for bad in [
        ValidationContext::default(),
        ValidationContext { roots: roots(), accept_untrusted: true, ..Default::default() },
        ValidationContext { roots: roots(), spki_hashes: vec![[0; 32]], ..Default::default() },
        ValidationContext { roots: Some(Roots::File("/ca".into())), ..Default::default() },
    ] {
        sds.deliver(&table([validation(bad)]));
        assert_eq!(trusted(), ["cluster.local"]);
    }
    let domains = [("cluster.local", &authority), ("elsewhere.example", &federated)];
    let trust_domains = domains.map(|(name, a)| (domain(name), a.roots())).into();
    sds.deliver(&table([validation(ValidationContext { trust_domains, ..Default::default() })]));
    assert_eq!(trusted(), ["cluster.local", "elsewhere.example"]);
    // Gone from SDS, not from trust.
    sds.deliver(&table([]));
    assert_eq!(trusted().len(), 2);
}

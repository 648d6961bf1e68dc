use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    sync::Barrier,
    thread,
};

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::*;
use crate::identity::testing::{domain, id};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_root_is_kept_for_its_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state/ca");
    let td = domain("cluster.local");
    assert!(matches!(DevelopmentCa::open(&dir, &td), Err(CaError::Missing { .. })));
    let made = DevelopmentCa::create(&dir, &td).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
    assert_eq!(mode(&dir.join(CERTIFICATE_FILE)) & 0o022, 0);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no draft is left");
    assert!(matches!(DevelopmentCa::create(&dir, &td), Err(CaError::Exists { .. })));

    let opened = DevelopmentCa::open(&dir, &td).unwrap();
    assert_eq!(opened.root(), made.root());
    let (_, root) = X509Certificate::from_der(made.root()).unwrap();
    assert!(root.is_ca());
    let san = root.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names, [GeneralName::URI("spiffe://cluster.local")]);
    let shown = format!("{opened:?}");
    assert!(!shown.contains("PRIVATE") && !shown.contains("key"), "{shown}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let td = domain("cluster.local");
    DevelopmentCa::create(dir.path(), &td).unwrap();
    let key = dir.path().join(KEY_FILE);
    for open_to_others in [0o640, 0o604, 0o666, 0o620] {
        fs::set_permissions(&key, Permissions::from_mode(open_to_others)).unwrap();
        for error in [
            DevelopmentCa::open(dir.path(), &td).unwrap_err(),
            DevelopmentCa::open_or_create(dir.path(), &td).unwrap_err(),
        ] {
            assert!(matches!(&error, CaError::Exposed { mode, .. } if *mode == open_to_others));
            assert!(error.to_string().contains("chmod"), "{error}");
        }
    }
    fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
    DevelopmentCa::open(dir.path(), &td).unwrap();
}

#[test]
fn a_key_of_another_user_is_not_trusted() {
    assert!(store::is_trusted_owner(1000, 1000));
    assert!(store::is_trusted_owner(0, 1000));
    assert!(!store::is_trusted_owner(1000, 0));
    assert!(!store::is_trusted_owner(1000, 1001));
}

#[test]
fn another_meshs_root_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    DevelopmentCa::create(dir.path(), &domain("other.example")).unwrap();
    let error = DevelopmentCa::open_or_create(dir.path(), &domain("cluster.local")).unwrap_err();
    assert!(
        error.to_string().ends_with(
            "root.pem is the root of trust domain `other.example`, but `cluster.local` is \
             configured"
        ),
        "{error}"
    );
}

#[test]
fn broken_halves_are_refused() {
    let td = domain("cluster.local");
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    DevelopmentCa::create(one.path(), &td).unwrap();
    DevelopmentCa::create(two.path(), &td).unwrap();
    let path = |dir: &tempfile::TempDir, file: &str| dir.path().join(file);

    fs::copy(path(&two, CERTIFICATE_FILE), path(&one, CERTIFICATE_FILE)).unwrap();
    let error = DevelopmentCa::open(one.path(), &td).unwrap_err();
    assert!(matches!(error, CaError::KeyMismatch { .. }), "{error}");

    fs::remove_file(path(&two, KEY_FILE)).unwrap();
    let error = DevelopmentCa::open_or_create(two.path(), &td).unwrap_err();
    assert!(matches!(error, CaError::Missing { .. }), "{error}");
    assert!(!path(&two, KEY_FILE).exists(), "no other key is made for the certificate");

    for garbage in [&b""[..], b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"] {
        fs::write(path(&one, CERTIFICATE_FILE), garbage).unwrap();
        let error = DevelopmentCa::open(one.path(), &td).unwrap_err();
        assert!(matches!(error, CaError::Malformed { .. }), "{error}");
    }
    fs::write(path(&one, KEY_FILE), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
    let error = store::read_key(&path(&one, KEY_FILE)).unwrap_err().to_string();
    assert!(error.contains("PKCS #8") && !error.contains("c2Vj"), "{error}");
}

#[test]
fn many_agents_at_once_end_with_one_root() {
    for _ in 0..10 {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("ca");
        let barrier = Barrier::new(8);
        let roots: Vec<_> = thread::scope(|scope| {
            let open = || {
                barrier.wait();
                DevelopmentCa::open_or_create(&dir, &domain("cluster.local")).unwrap().root
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }
}

#[test]
fn an_interrupted_creation_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let td = domain("cluster.local");
    DevelopmentCa::create(dir.path(), &td).unwrap();
    let key = fs::read(dir.path().join(KEY_FILE)).unwrap();
    fs::remove_file(dir.path().join(CERTIFICATE_FILE)).unwrap();
    DevelopmentCa::open_or_create(dir.path(), &td).unwrap();
    assert_eq!(fs::read(dir.path().join(KEY_FILE)).unwrap(), key);
}

#[test]
fn a_leaf_is_an_svid_and_does_not_outlive_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DevelopmentCa::create(dir.path(), &domain("cluster.local")).unwrap();
    let identity = id("ns/shop/sa/cart");
    let key = PrivateKey::generate().unwrap();
    // What a request asks for does not matter.
    let request = key.signing_request(&id("ns/shop/sa/admin")).unwrap();

    let ca = ca.with_ttl(Duration::from_secs(5));
    let chain = ca.sign(&request, &identity).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names, [GeneralName::URI(&identity.to_string())]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let usage = leaf.extended_key_usage().unwrap().unwrap();
    assert!(usage.value.server_auth && usage.value.client_auth);
    let now = Timestamp::now(&system_clock()).unix_seconds() as i64;
    let validity = leaf.validity();
    assert!((now - 70..=now - 50).contains(&validity.not_before.timestamp()));
    assert!((now..=now + 10).contains(&validity.not_after.timestamp()));
    let again = ca.sign(&request, &identity).unwrap();
    let (_, again) = X509Certificate::from_der(&again[0]).unwrap();
    assert_ne!(again.raw_serial(), leaf.raw_serial());

    let ca = ca.with_ttl(Duration::from_secs(100 * 365 * 24 * 3600));
    let chain = ca.sign(&request, &identity).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.validity().not_after.timestamp(), ca.root_not_after().unix_seconds() as i64);
}

#[test]
fn what_must_not_be_signed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DevelopmentCa::create(dir.path(), &domain("cluster.local")).unwrap();
    let key = PrivateKey::generate().unwrap();
    let cart = id("ns/shop/sa/cart");
    let request = key.signing_request(&cart).unwrap();

    let foreign = "spiffe://other.example/ns/shop/sa/cart".parse().unwrap();
    let error = ca.sign(&request, &foreign).unwrap_err();
    assert!(matches!(error, CaError::ForeignIdentity { .. }), "{error}");

    let mut forged = request.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let error = ca.sign(&forged.into(), &cart).unwrap_err();
    assert!(matches!(error, CaError::InvalidRequest { .. }), "{error}");
    assert!(ca.sign(&vec![0x30, 0x80].into(), &cart).is_err());
}

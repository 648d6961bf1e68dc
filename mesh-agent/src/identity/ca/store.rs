//! The root's two files.
//!
//! A file appears under its name complete and at once: it is written under another
//! name and then linked, which fails where the name is taken. So of many creators one
//! wins, and nobody ever reads half a file.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};
use zeroize::{Zeroize, Zeroizing};

use super::CaError;
use crate::identity::{clock::Timestamp, csr::PrivateKey};

pub(super) const CERTIFICATE_FILE: &str = "root.pem";
pub(super) const KEY_FILE: &str = "root-key.pem";

/// No root is larger.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A root as read from its directory.
pub(super) struct Root {
    pub(super) key: PrivateKey,
    pub(super) certificate: CertificateDer<'static>,
    /// Its URI SAN: `spiffe://<trust domain>`.
    pub(super) trust_domain: String,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

impl Root {
    pub(super) fn read(dir: &Path) -> Result<Self, CaError> {
        let path = dir.join(CERTIFICATE_FILE);
        let (pem, _) = read(&path)?;
        let malformed = |reason: String| CaError::Malformed { path: path.clone(), reason };
        let certificate =
            CertificateDer::from_pem_slice(&pem).map_err(|e| malformed(e.to_string()))?;
        let key = read_key(&dir.join(KEY_FILE))?;
        let (rest, root) =
            X509Certificate::from_der(&certificate).map_err(|e| malformed(e.to_string()))?;
        if !rest.is_empty() || !root.is_ca() {
            return Err(malformed("it is no CA certificate".to_owned()));
        }
        if root.public_key().subject_public_key.data.as_ref() != key.public_key() {
            return Err(CaError::KeyMismatch { dir: dir.to_owned() });
        }
        let trust_domain = uri_san(&root)
            .ok_or_else(|| malformed("it names no trust domain as URI SAN".to_owned()))?;
        let not_before = root.validity().not_before.into();
        let not_after = root.validity().not_after.into();
        Ok(Self { key, trust_domain, not_before, not_after, certificate })
    }
}

fn uri_san(certificate: &X509Certificate<'_>) -> Option<String> {
    let san = certificate.subject_alternative_name().ok()??;
    match san.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => Some((*uri).to_owned()),
        _ => None,
    }
}

/// Reads the root's key; refuses one that others may read.
pub(super) fn read_key(path: &Path) -> Result<PrivateKey, CaError> {
    let (pem, metadata) = read(path)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CaError::Exposed { path: path.to_owned(), mode });
    }
    if !is_trusted_owner(metadata.uid(), nix::unistd::geteuid().as_raw()) {
        return Err(CaError::ForeignOwner { path: path.to_owned(), owner: metadata.uid() });
    }
    // What the parsers say may quote the key: it is not passed on.
    let malformed = || CaError::Malformed {
        path: path.to_owned(),
        reason: "it is no P-256 key in PKCS #8 PEM".to_owned(),
    };
    let mut der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| malformed())?;
    let key = PrivateKey::from_pkcs8(der.secret_pkcs8_der());
    der.zeroize();
    key.map_err(|_| malformed())
}

/// Root's files are root's own business.
pub(super) const fn is_trusted_owner(owner: u32, us: u32) -> bool {
    owner == us || owner == 0
}

/// Makes a key and stores it under `path`; false where there is one already.
pub(super) fn commit_new_key(path: &Path) -> Result<bool, CaError> {
    let mut pair = rcgen::KeyPair::generate().map_err(super::crypto)?;
    let pem = Zeroizing::new(pair.serialize_pem());
    pair.zeroize();
    commit(path, pem.as_bytes(), 0o600)
}

/// Stores a file under `path`, complete and at once; false where there is one already.
pub(super) fn commit(path: &Path, contents: &[u8], mode: u32) -> Result<bool, CaError> {
    let draft = draft_path(path);
    let failed = |action| {
        let path = path.to_owned();
        move |cause| CaError::Io { action, path, cause }
    };
    let result =
        write_new(&draft, contents, mode).map_err(failed("write")).and_then(
            |()| match fs::hard_link(&draft, path) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(failed("create")(error)),
            },
        );
    // The draft may be missing where writing it failed.
    let _ = fs::remove_file(&draft);
    let created = result?;
    if let (true, Some(dir)) = (created, path.parent()) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(failed("sync directory of"))?;
    }
    Ok(created)
}

fn draft_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()))
}

fn write_new(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// Contents and metadata, both of the very file that was opened.
fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, Metadata), CaError> {
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => CaError::Missing { path: path.to_owned() },
        _ => CaError::Io { action: "read", path: path.to_owned(), cause },
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        let reason = "it is no file of a root's size".to_owned();
        return Err(CaError::Malformed { path: path.to_owned(), reason });
    }
    // All the room at once: a growing buffer would leave copies of a key behind.
    let capacity = usize::try_from(MAX_FILE_BYTES).unwrap_or_default();
    let mut contents = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(MAX_FILE_BYTES).read_to_end(&mut contents).map_err(failed)?;
    Ok((contents, metadata))
}

pub(super) fn exists(path: &Path) -> Result<bool, CaError> {
    path.try_exists().map_err(|cause| CaError::Io {
        action: "look for",
        path: path.to_owned(),
        cause,
    })
}

/// Makes `dir` and its missing parents for the owner alone.
pub(super) fn create_dir(dir: &Path) -> Result<(), CaError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|cause| CaError::Io {
        action: "create directory",
        path: dir.to_owned(),
        cause,
    })
}

//! Certificates, keys and roots out of configuration, secrets and files, for TLS with
//! peers that need not be of the mesh.

use std::{
    fs, io,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CipherSuite, NamedGroup,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::TrustAnchor,
    sign::CertifiedKey,
};
use webpki::CertRevocationList;
use zeroize::Zeroizing;

use crate::model::tls::{
    CertificateFiles, CertificateMaterial, Crls, MATERIAL_MAX_BYTES, MaterialError, Roots,
    TlsCertificate, ValidationContext, anchors_from_pem, crls_from_pem,
};

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("{}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {source}", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: MaterialError,
    },
}

impl Unusable {
    fn malformed(path: &Path, source: MaterialError) -> Self {
        Self::Malformed { path: path.to_owned(), source }
    }
}

/// Tells one content of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    /// Each file as it is now.
    pub(super) fn all(files: Vec<PathBuf>) -> Vec<(PathBuf, Option<Self>)> {
        let stamped = |path: PathBuf| {
            let stamp = Self::of(&path);
            (path, stamp)
        };
        files.into_iter().map(stamped).collect()
    }
}

/// A certificate with its key, read where it is in files.
pub(super) fn certified(material: &CertificateMaterial) -> Result<Arc<CertifiedKey>, Unusable> {
    let certificate = match material {
        CertificateMaterial::Inline(certificate) => certificate.clone(),
        CertificateMaterial::Files(CertificateFiles { chain, key }) => {
            let (pem, key_pem) = (read(chain)?, read(key)?);
            TlsCertificate::from_pem(&pem, &key_pem).map_err(|source| {
                let at_key = matches!(source, MaterialError::Key | MaterialError::KeyMismatch);
                Unusable::malformed(if at_key { key } else { chain }, source)
            })?
        }
    };
    Ok(Arc::clone(certificate.certified()))
}

pub(super) fn anchors(roots: &Roots) -> Result<Arc<[TrustAnchor<'static>]>, Unusable> {
    match roots {
        Roots::Inline(anchors) => Ok(Arc::clone(anchors)),
        Roots::File(path) => {
            let anchors = anchors_from_pem(&read(path)?);
            anchors.map(Arc::from).map_err(|error| Unusable::malformed(path, error))
        }
    }
}

pub(super) fn revoked(crls: &Crls) -> Result<Arc<[CertRevocationList<'static>]>, Unusable> {
    match crls {
        Crls::Inline(lists) => Ok(Arc::clone(lists)),
        Crls::File(path) => {
            let lists = crls_from_pem(&read(path)?);
            lists.map(Arc::from).map_err(|error| Unusable::malformed(path, error))
        }
    }
}

pub(super) fn files_of_certificate(material: &CertificateMaterial) -> Vec<PathBuf> {
    match material {
        CertificateMaterial::Inline(_) => Vec::new(),
        CertificateMaterial::Files(CertificateFiles { chain, key }) => {
            vec![chain.clone(), key.clone()]
        }
    }
}

pub(super) fn files_of_validation(context: &ValidationContext) -> Vec<PathBuf> {
    let roots = context.roots.iter().chain(context.trust_domains.values());
    let mut files: Vec<_> = roots
        .filter_map(|roots| match roots {
            Roots::File(path) => Some(path.clone()),
            Roots::Inline(_) => None,
        })
        .collect();
    if let Some(Crls::File(path)) = &context.crls {
        files.push(path.clone());
    }
    files
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Unusable> {
    let whole = || {
        // A pipe in its place must not hold a connection up for ever.
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        if metadata.len() > MATERIAL_MAX_BYTES as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Large enough from the start: a buffer that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
        file.take(metadata.len()).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    whole().map_err(|source| Unusable::Unreadable { path: path.to_owned(), source })
}

/// The library's, with these suites of TLS 1.2 and curves, where any are given.
pub(super) fn provider(cipher_suites: &[CipherSuite], curves: &[NamedGroup]) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if !cipher_suites.is_empty() {
        // The list is about TLS 1.2 alone.
        let place = |suite| cipher_suites.iter().position(|wanted| *wanted == suite);
        provider
            .cipher_suites
            .retain(|suite| suite.tls13().is_some() || place(suite.suite()).is_some());
        provider.cipher_suites.sort_by_key(|suite| place(suite.suite()));
    }
    if !curves.is_empty() {
        let place = |group| curves.iter().position(|wanted| *wanted == group);
        provider.kx_groups = aws_lc_rs::ALL_KX_GROUPS.to_vec();
        provider.kx_groups.retain(|group| place(group.name()).is_some());
        provider.kx_groups.sort_by_key(|group| place(group.name()));
    }
    provider
}

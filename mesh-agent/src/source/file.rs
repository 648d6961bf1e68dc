//! A directory of files as a configuration.
//!
//! Every `.yaml`, `.yml` and `.json` file directly in the directory is read, hidden
//! ones left out; together they are the whole configuration, in the order of their
//! names. A file holds a `DiscoveryResponse` (`{version_info, resources: [...]}`), a
//! list of resources, or single resources, as one or several YAML documents; each
//! resource says its `@type`.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest;
use envoy_types::pb::{envoy::service::discovery::v3::DiscoveryResponse, google::protobuf::Any};
use serde_json::{Map, Value};

use super::{
    json,
    last_good::Raw,
    text::{self, Format},
    xds::{self, Origin, Reference, Resource, ResourceType},
};
use crate::snapshot::{RejectedResource, Resources};

/// The largest file that is read, and the most that all of them may hold, in bytes.
pub(super) const FILE_MAX_BYTES: u64 = 8 << 20;
const TOTAL_MAX_BYTES: u64 = 64 << 20;

/// How many files a directory may hold.
const FILES_MAX: usize = 4096;

/// The fields of a `DiscoveryResponse` that may stand in a file.
const RESPONSE_FIELDS: [&str; 6] =
    ["@type", "version_info", "versionInfo", "resources", "type_url", "typeUrl"];

const RESPONSE_TYPE: &str = "envoy.service.discovery.v3.DiscoveryResponse";

/// A directory that can't serve as a configuration's source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there, or it can't be read.
    #[error("configuration directory {} can't be read", .path.display())]
    Directory { path: PathBuf, source: io::Error },
}

/// A whole configuration, decoded.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub resources: Resources,
    /// The files' own `version_info` where they agree on one, else a digest of their
    /// content.
    pub label: String,
    /// The same for [`LastGood`](super::LastGood).
    pub raw: Raw,
    /// Whether something else that was delivered is still refused.
    pub refused: bool,
}

/// The files of a directory as they were read together.
#[derive(Debug)]
pub(super) struct Contents {
    /// By name.
    files: Vec<(String, Format, Vec<u8>)>,
    rejected: Vec<RejectedResource>,
    /// SHA-256 of names, contents and rejections.
    pub(super) digest: [u8; 32],
}

/// Checks a directory as `config validate` does: everything the agent would check
/// before it applies it, references between resources too.
///
/// # Errors
/// Every reason for a refusal, by file or by resource and field.
pub fn validate(directory: &Path) -> Result<Delivery, Vec<RejectedResource>> {
    let contents = Contents::read(directory).map_err(|error| vec![unreadable(&error)])?;
    contents.deliver()
}

/// How a directory that can't be read is told to who watches.
pub(super) fn unreadable(error: &SourceError) -> RejectedResource {
    let SourceError::Directory { path, source } = error;
    xds::rejection(&path.display().to_string(), source.to_string())
}

impl Contents {
    /// Reads every file that counts. Blocks.
    pub(super) fn read(directory: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Directory { path: directory.to_owned(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(format) = format_of(Path::new(&name)) {
                names.push((name.to_string_lossy().into_owned(), format, directory.join(name)));
            }
        }
        names.sort_by(|(a, ..), (b, ..)| a.cmp(b));

        let mut files = Vec::new();
        let mut rejected = Vec::new();
        let mut left = TOTAL_MAX_BYTES;
        if names.len() > FILES_MAX {
            let path = directory.display().to_string();
            let reason = format!("holds {} files, more than {FILES_MAX}", names.len());
            rejected.push(xds::rejection(&path, reason));
            names.clear();
        }
        for (name, format, path) in names {
            match read_file(&path, left.min(FILE_MAX_BYTES)) {
                Ok(text) => {
                    left = left.saturating_sub(text.len() as u64);
                    files.push((name, format, text));
                }
                // Gone since the directory was read: not there, then.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
                Err(error) => {
                    rejected.push(xds::rejection(&name, error.to_string()));
                }
            }
        }
        let digest = digest_of(&files, &rejected);
        Ok(Self { files, rejected, digest })
    }

    /// Decodes them all and checks that together they are a whole configuration.
    pub(super) fn deliver(self) -> Result<Delivery, Vec<RejectedResource>> {
        let delivery = self.decode()?;
        crate::snapshot::check(delivery.resources.clone())?;
        Ok(delivery)
    }

    /// Decodes them all; one bad file refuses the whole configuration.
    pub(super) fn decode(self) -> Result<Delivery, Vec<RejectedResource>> {
        let digest = short(&self.digest);
        let mut decoding = Decoding { rejected: self.rejected, ..Decoding::default() };
        for (name, format, text) in &self.files {
            match text::documents(name, *format, text) {
                Ok(documents) => {
                    for document in documents {
                        decoding.document(name, document);
                    }
                }
                Err(rejected) => decoding.rejected.push(rejected),
            }
        }
        let Decoding { resources, mut raw, mut versions, rejected, encoded: _ } = decoding;
        if !rejected.is_empty() {
            return Err(rejected);
        }
        versions.sort();
        versions.dedup();
        let label = match <[String; 1]>::try_from(versions) {
            Ok([version]) => version,
            Err(_) => format!("sha256:{digest}"),
        };
        let version: Arc<str> = label.as_str().into();
        raw.versions.iter_mut().for_each(|(_, own)| *own = Some(Arc::clone(&version)));
        Ok(Delivery { resources, label, raw, refused: false })
    }
}

/// The first bytes of a digest, in hexadecimal.
fn short(digest: &[u8]) -> String {
    digest.iter().take(6).map(|b| format!("{b:02x}")).collect()
}

/// What stands for a version where there is none.
pub(super) fn short_digest(content: &[u8]) -> String {
    format!("sha256:{}", short(digest::digest(&digest::SHA256, content).as_ref()))
}

/// One file that holds a `DiscoveryResponse`, whose resources are judged elsewhere.
///
/// # Errors
/// Why it is none. One resource that can't even be encoded refuses the file.
pub(super) fn response(
    name: &str,
    path: &Path,
    content: &[u8],
) -> Result<DiscoveryResponse, Vec<RejectedResource>> {
    let format = format_of(path).unwrap_or(Format::Yaml);
    let documents = text::documents(name, format, content).map_err(|rejected| vec![rejected])?;
    let mut decoding = Decoding { encoded: Some(Vec::new()), ..Decoding::default() };
    match <[Value; 1]>::try_from(documents) {
        Ok([Value::Object(fields)]) if is_response(&fields) => decoding.response(name, fields),
        _ => decoding.refuse(name.to_owned(), "must hold one {version_info, resources}"),
    }
    let Decoding { versions, encoded, rejected, .. } = decoding;
    if !rejected.is_empty() {
        return Err(rejected);
    }
    Ok(DiscoveryResponse {
        version_info: versions.into_iter().next().unwrap_or_default(),
        resources: encoded.unwrap_or_default(),
        ..DiscoveryResponse::default()
    })
}

/// How a file of that name is read; `None` if it isn't.
pub(super) fn format_of(name: &Path) -> Option<Format> {
    let hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
    match name.extension().and_then(|extension| extension.to_str()) {
        Some("yaml" | "yml") if !hidden => Some(Format::Yaml),
        Some("json") if !hidden => Some(Format::Json),
        _ => None,
    }
}

fn digest_of(files: &[(String, Format, Vec<u8>)], rejected: &[RejectedResource]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |part: &[u8]| {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    };
    for (name, _, text) in files {
        add(name.as_bytes());
        add(text);
    }
    for RejectedResource { path, reason } in rejected {
        add(path.as_bytes());
        add(reason.as_bytes());
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

pub(super) fn read_file(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    // Not to hang on a FIFO that nobody writes to.
    let file: File = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut text)?;
    if text.len() as u64 > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "is too large: a file may hold {FILE_MAX_BYTES} bytes, all of them together \
                 {TOTAL_MAX_BYTES}"
            ),
        ));
    }
    Ok(text)
}

/// What has been decoded so far.
#[derive(Default)]
struct Decoding {
    resources: Resources,
    raw: Raw,
    versions: Vec<String>,
    rejected: Vec<RejectedResource>,
    /// Where resources go that are only encoded, not decoded.
    encoded: Option<Vec<Any>>,
}

impl Decoding {
    fn refuse(&mut self, path: String, reason: impl Into<String>) {
        self.rejected.push(xds::rejection(&path, reason));
    }

    fn document(&mut self, file: &str, document: Value) {
        match document {
            Value::Array(items) => self.list(file, "", items, None),
            Value::Object(fields) if is_response(&fields) => self.response(file, fields),
            Value::Object(fields) => self.resource(file, "", fields, None),
            _ => self.refuse(
                file.to_owned(),
                "must hold a resource with @type, a list of them, or {version_info, resources}",
            ),
        }
    }

    fn response(&mut self, file: &str, mut fields: Map<String, Value>) {
        let mut text = |names: [&str; 2]| {
            let value = names.iter().find_map(|name| fields.remove(*name))?;
            Some(match value {
                Value::String(s) => s,
                Value::Null => String::new(),
                // `version_info: 7` is what people write.
                other => other.to_string(),
            })
        };
        let version = text(["version_info", "versionInfo"]).filter(|s| !s.is_empty());
        let type_url = text(["type_url", "typeUrl"]).filter(|s| !s.is_empty());
        self.versions.extend(version);
        for key in fields.keys().filter(|key| !RESPONSE_FIELDS.contains(&key.as_str())) {
            self.refuse(format!("{file}: {key}"), "unknown field");
        }
        match fields.remove("resources") {
            Some(Value::Array(items)) => self.list(file, "resources", items, type_url.as_deref()),
            None | Some(Value::Null) => {}
            Some(_) => self.refuse(format!("{file}: resources"), "must be a list"),
        }
    }

    fn list(&mut self, file: &str, field: &str, items: Vec<Value>, type_url: Option<&str>) {
        for (i, item) in items.into_iter().enumerate() {
            let place = format!("{field}[{i}]");
            match item {
                Value::Object(fields) => self.resource(file, &place, fields, type_url),
                _ => self.refuse(at(file, &place), "must be a resource: a mapping with @type"),
            }
        }
    }

    fn resource(
        &mut self,
        file: &str,
        place: &str,
        fields: Map<String, Value>,
        expected: Option<&str>,
    ) {
        let here = at(file, place);
        let type_url = match fields.get("@type") {
            Some(Value::String(type_url)) => type_url,
            Some(_) => return self.refuse(here, "@type must be a string"),
            None => return self.refuse(here, "has no @type"),
        };
        let Some(kind) = ResourceType::of_url(type_url) else {
            return self.refuse(here, format!("unknown @type `{type_url}`"));
        };
        if expected.is_some_and(|expected| expected != type_url) {
            return self.refuse(here, format!("@type is `{type_url}`, not type_url's"));
        }
        let name = [kind.name_field(), kind.json_name_field()]
            .iter()
            .find_map(|field| fields.get(*field))
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty());
        let Some(name) = name else {
            return self.refuse(here, format!("has no {}", kind.name_field()));
        };
        let type_url = type_url.clone();
        let root = format!("{}[{name}]", kind.table());
        let transcoded = match json::transcode(kind, fields, root) {
            Ok(transcoded) => transcoded,
            Err(rejected) => return self.rejected.extend(rejected),
        };
        if let Some(encoded) = &mut self.encoded {
            encoded.push(Any { type_url: kind.type_url().to_owned(), value: transcoded.bytes });
            return self.rejected.extend(transcoded.rejected);
        }
        let decoded = xds::decode_with_references(&type_url, &transcoded.bytes);
        match decoded.and_then(|(resource, references)| alone(resource, &references)) {
            Ok(resource) if transcoded.rejected.is_empty() => {
                // They have the version of the whole, once that is known.
                let version = Arc::from("");
                self.raw.keep(resource.key(), &resource, transcoded.bytes.into(), version);
                resource.add_to(&mut self.resources);
            }
            Ok(_) => self.rejected.extend(transcoded.rejected),
            Err(mut further) => {
                further.retain(|rejection| !transcoded.explains(&rejection.path));
                self.rejected.extend(transcoded.rejected);
                self.rejected.extend(further);
            }
        }
    }
}

/// A directory is the whole configuration: nothing in it may be had from elsewhere.
fn alone(resource: Resource, references: &[Reference]) -> Result<Resource, Vec<RejectedResource>> {
    let elsewhere = references.iter().filter_map(|reference| match reference.origin {
        None | Some(Origin::Ads) => None,
        Some(Origin::Service(_)) => Some((reference, "api_config_source")),
        Some(Origin::File(_)) => Some((reference, "path_config_source")),
    });
    let refused: Vec<_> = elsewhere
        .map(|(reference, field)| {
            let reason = "is not supported: resources come from the source of this one (`ads: {}`)";
            xds::rejection(&format!("{}.{field}", reference.path), reason)
        })
        .collect();
    if refused.is_empty() { Ok(resource) } else { Err(refused) }
}

fn at(file: &str, place: &str) -> String {
    if place.is_empty() { file.to_owned() } else { format!("{file}: {place}") }
}

fn is_response(fields: &Map<String, Value>) -> bool {
    match fields.get("@type") {
        Some(type_url) => {
            type_url.as_str().and_then(|url| url.rsplit('/').next()) == Some(RESPONSE_TYPE)
        }
        None => RESPONSE_FIELDS.iter().any(|field| fields.contains_key(*field)),
    }
}

//! From bytes to what a table holds.

use std::sync::Arc;

use aws_lc_rs::digest::{self, SHA256};
use envoy_types::pb::google::protobuf::Any;

use super::table::{Body, Digest, Held, Needs, namespace};
use crate::{
    snapshot::RejectedResource,
    source::xds::{self, Reference, Resource, ResourceType, rejection},
};

/// Names with this prefix need `resource_locator`s, which we don't speak.
pub(super) const LOCATOR: &str = "xdstp:";

/// The longest name or version of a resource, in bytes: both are kept with each, said to
/// servers, logged and shown.
pub(super) const TEXT_MAX_BYTES: usize = 4096;

pub(super) fn too_long() -> String {
    format!("is longer than {TEXT_MAX_BYTES} bytes")
}

pub(super) fn digest_of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Digest {
    let mut context = digest::Context::new(&SHA256);
    for value in values {
        context.update(&(value.len() as u64).to_be_bytes());
        context.update(value);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// A virtual host that was accepted before.
pub(super) fn decode_again(name: &Arc<str>, version: &str, raw: Arc<[u8]>) -> Option<Body> {
    match xds::decode_strict(ResourceType::VirtualHost.type_url(), &raw) {
        Ok((Resource::VirtualHost(_, host), _)) => {
            let resource = Resource::VirtualHost(Arc::clone(name), host);
            Some(Body { resource, raw, version: version.into() })
        }
        _ => None,
    }
}

/// Decodes a resource of that name.
pub(super) fn decode(
    kind: ResourceType,
    name: &Arc<str>,
    version: &str,
    any: &Any,
) -> Result<(Held, Vec<Reference>), Vec<RejectedResource>> {
    let path = format!("{}[{name}]", kind.table());
    let (resource, references) = xds::decode_strict(&any.type_url, &any.value).map_err(|all| {
        // What can't be read does not say its name.
        let nameless = format!("{}[]", kind.table());
        let named = |RejectedResource { path: at, reason }| match at.strip_prefix(&nameless) {
            Some(field) => rejection(&format!("{path}{field}"), reason),
            None => RejectedResource { path: at, reason },
        };
        all.into_iter().map(named).collect::<Vec<_>>()
    })?;
    let resource = match resource {
        // Its own name is not what it is asked for by.
        Resource::VirtualHost(_, host) => Resource::VirtualHost(Arc::clone(name), host),
        resource => resource,
    };
    if kind == ResourceType::VirtualHost && namespace(name).is_empty() {
        let reason = "is not called `<route configuration>/<host>`";
        return Err(vec![rejection(&path, reason)]);
    }
    let (_, own) = resource.key();
    if own != *name {
        let reason = format!("calls itself `{own}`");
        return Err(vec![rejection(&format!("{path}.{}", kind.name_field()), reason)]);
    }
    let needs = Needs::of(&resource);
    let names = ResourceType::ALL.into_iter().flat_map(|kind| needs.named(kind));
    for name in names.chain(&needs.leads_to) {
        if name.starts_with(LOCATOR) {
            let reason = format!("`{name}`: xdstp names are not supported");
            return Err(vec![rejection(&path, reason)]);
        }
        if name.len() > TEXT_MAX_BYTES {
            return Err(vec![rejection(&path, format!("refers to a name that {}", too_long()))]);
        }
    }
    let held = Held {
        version: version.to_owned(),
        digest: digest_of([any.value.as_slice()]),
        needs,
        body: Some(Body {
            // No second copy of a private key.
            raw: resource.stored(any.value.as_slice().into()).unwrap_or_default(),
            resource,
            version: version.into(),
        }),
        again: None,
    };
    Ok((held, references))
}

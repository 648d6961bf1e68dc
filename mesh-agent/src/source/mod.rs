//! Where configuration comes from. Protobuf types stop here.
//!
//! `file` reads a directory, `text` and `json` turn what is in it into encoded
//! protobuf, `xds` decodes that into the model, strictly; `watch` does so at every change;
//! `last_good` keeps what was applied on disk, `versions` how old it is. What comes out is a whole
//! [`Resources`](crate::snapshot::Resources), what changed since, or every reason why not;
//! this room must not know what is in force.

#![forbid(unsafe_code)]

mod file;
mod json;
mod last_good;
mod text;
mod versions;
mod watch;
mod xds;

pub use file::{Delivery, SourceError, validate};
pub use last_good::{LastGood, LastGoodError, Raw, Restored};
pub use versions::{Version, Versions};
pub use watch::{Delta, FileSource, Update};
pub use xds::{
    AdsSource, AdsStatus, Bootstrap, ConnectionOptions, NodeInfo, Origin, Pem, Refused, Resource,
    ResourceType, Server, ServerAddress, StreamState, StreamStatus, TYPE_URLS, TlsOptions,
    TypeStatus, Variant, Warming, Wishes, XdsOptions, decode_any, hear, read_bootstrap,
};

#[cfg(test)]
mod tests;

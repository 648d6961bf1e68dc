//! Where the configuration of traffic comes from.

use std::{fmt, path::PathBuf, sync::Arc};

use super::{layers::Layers, values::absolute};
use crate::{
    model::{
        cluster::{ClusterName, LocalCluster, Place},
        runtime::LayeredRuntime,
    },
    source::{
        ConnectionOptions, NodeInfo, Pem, Server, ServerAddress, TlsOptions, Variant, XdsOptions,
    },
};

/// Where listeners, routes, clusters and endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// A directory, watched for changes.
    Directory(PathBuf),
    /// Control planes, and what else a bootstrap file says.
    ControlPlane(Box<XdsOptions>),
}

impl fmt::Display for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "files in {}", directory.display()),
            // Servers may be renamed and moved: what they say stays good.
            Self::ControlPlane(options) => {
                write!(f, "xDS for node {} in {}", options.node.id, options.node.cluster)
            }
        }
    }
}

/// The layers of runtime values that flags name.
pub(super) fn runtime(layers: &mut Layers<'_>) -> Option<LayeredRuntime> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for name in layers.many("xds_runtime_layer", |s| match s {
        "" => Err("a layer has a name".to_owned()),
        name => Ok(Arc::from(name)),
    })? {
        if names.contains(&name) {
            let reason = format!("`{name}` is given twice");
            layers.fail_given("xds_runtime_layer", reason);
            return None;
        }
        names.push(name);
    }
    Some(LayeredRuntime::of_resources(names))
}

/// Where this node is; the outer `None` says that it is no locality.
pub(super) fn locality(layers: &mut Layers<'_>) -> Option<Option<Place>> {
    layers.optional("locality", |s| {
        let parts: Vec<&str> = s.split('/').collect();
        match parts[..] {
            [region, ref rest @ ..] if rest.len() < 3 && parts.iter().any(|of| !of.is_empty()) => {
                let part = |at: usize| rest.get(at).copied().unwrap_or_default().to_owned();
                Ok(Place { region: region.to_owned(), zone: part(0), sub_zone: part(1) })
            }
            _ => Err(format!("`{s}` is not REGION/ZONE/SUBZONE")),
        }
    })
}

/// Where traffic comes from; the outer `None` says that something is wrong.
pub(super) fn local_cluster(
    layers: &mut Layers<'_>,
    place: Option<Option<Place>>,
) -> Option<Option<LocalCluster>> {
    let name = layers.optional("local_cluster", |s| match s {
        "" => Err("a cluster has a name".to_owned()),
        name => Ok(ClusterName(name.into())),
    })?;
    let place = place?;
    Some(name.map(|name| LocalCluster { name, place }))
}

/// `None` only where an error was noted.
pub(super) fn source(
    layers: &mut Layers<'_>,
    node_name: Option<&str>,
    locality: Option<Place>,
) -> Option<SourceConfig> {
    let addresses = layers.many("xds_server", str::parse::<ServerAddress>)?;
    if addresses.is_empty() {
        return layers.one("config_dir", absolute).map(SourceConfig::Directory);
    }
    let directory = layers.optional("config_dir", absolute);
    if directory != Some(None) {
        let reason = "excludes xds_server: configuration has one source";
        layers.fail_given("config_dir", reason);
        return None;
    }
    let variant = variant(layers, "xds_mode");
    let is_tls = |server: &ServerAddress| matches!(server, ServerAddress::Tls { .. });
    let sds_is_tls = layers.peek("sds_server").is_some_and(|s| s.starts_with("https:"));
    let tls = tls(layers, sds_is_tls || addresses.iter().any(is_tls));
    let id = layers.optional("xds_node_id", |s| Ok(s.to_owned()));
    let cluster = layers.one("xds_cluster", |s| Ok(s.to_owned()));
    let metadata = layers.optional("xds_metadata", |s| {
        serde_json::from_str(s).map_err(|error| format!("is not a JSON object: {error}"))
    });
    let id = id?.or_else(|| node_name.map(str::to_owned))?;
    let metadata = metadata?.unwrap_or_default();
    let node = NodeInfo { id, cluster: cluster?, metadata, locality };
    let tls = tls?;
    let servers = addresses.into_iter().map(|address| Server {
        tls: tls.clone().filter(|_| is_tls(&address)),
        address,
        connection: ConnectionOptions::default(),
    });
    let options = XdsOptions::aggregated(servers.collect(), variant?, node);
    Some(SourceConfig::ControlPlane(Box::new(options)))
}

/// Who speaks SDS, if it is somebody else than the control plane. The outer `None` says
/// that something is wrong.
pub(super) fn sds_server(
    layers: &mut Layers<'_>,
    node_name: Option<&str>,
) -> Option<Option<Box<XdsOptions>>> {
    let address = layers.optional("sds_server", str::parse::<ServerAddress>)?;
    let variant = variant(layers, "sds_mode")?;
    let Some(address) = address else {
        if layers.is_given("sds_mode") {
            layers.fail_given("sds_mode", "is for an sds_server of its own: there is none");
            return None;
        }
        return Some(None);
    };
    let is_tls = matches!(address, ServerAddress::Tls { .. });
    let tls = if is_tls { tls(layers, true)? } else { None };
    let id = layers.optional("xds_node_id", |s| Ok(s.to_owned()))?;
    let id = id.or_else(|| node_name.map(str::to_owned))?;
    let cluster = layers.one("xds_cluster", |s| Ok(s.to_owned()))?;
    let node = NodeInfo { id, cluster, ..NodeInfo::default() };
    let server = Server { address, tls, connection: ConnectionOptions::default() };
    Some(Some(Box::new(XdsOptions::secrets(vec![server], variant, node))))
}

fn variant(layers: &mut Layers<'_>, key: &'static str) -> Option<Variant> {
    layers.one(key, |s| match s {
        "sotw" => Ok(Variant::Sotw),
        "delta" => Ok(Variant::Delta),
        other => Err(format!("`{other}` is neither sotw nor delta")),
    })
}

/// The outer `None` says that something is wrong.
fn tls(layers: &mut Layers<'_>, used: bool) -> Option<Option<TlsOptions>> {
    let ca = layers.optional("xds_ca", absolute)?;
    let chain = layers.optional("xds_cert", absolute)?;
    let key = layers.optional("xds_key", absolute)?;
    let mut wrong = |key, reason: &str| {
        layers.fail_given(key, reason);
        None
    };
    if !used && (ca.is_some() || chain.is_some() || key.is_some()) {
        return wrong("xds_ca", "xds_ca, xds_cert and xds_key are for https:// servers only");
    }
    if used && ca.is_none() {
        return wrong("xds_ca", "is not set, and an https:// server has to be verified");
    }
    let identity = match (chain, key) {
        (Some(chain), Some(key)) => Some((Pem::File(chain), Pem::File(key))),
        (None, None) => None,
        (Some(_), None) => return wrong("xds_key", "is not set, but xds_cert is"),
        (None, Some(_)) => return wrong("xds_cert", "is not set, but xds_key is"),
    };
    Some(ca.map(|ca| TlsOptions::new(Pem::File(ca), identity)))
}

//! What the agent is told of its control planes: who it is, where they are, and which
//! of them, or which file, says what.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::config::core::v3::{Locality, Node, node::UserAgentVersionType},
    google::protobuf::{ListValue, Struct, Value, value::Kind},
};

use crate::model::{cluster::Place, tracing::TracingProvider};

use super::{ResourceType, address::Server, config_source::Reference, session::Variant};

/// A name that was asked for and does not come holds others up for this long, unless its
/// source says otherwise.
pub(super) const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// The name under which the servers of [`XdsOptions::aggregated`] go.
const FLAGS_CLUSTER: &str = "xds_server";

/// The name under which the servers of [`XdsOptions::secrets`] go.
const SDS_CLUSTER: &str = "sds_server";

/// Where the configuration comes from, and as whom it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdsOptions {
    pub node: NodeInfo,
    /// Management servers by the name of their cluster; in the order in which they are
    /// tried, never empty.
    pub servers: BTreeMap<String, Vec<Server>>,
    /// The aggregated stream: what `ads: {}` means.
    pub ads: Option<Service>,
    /// Where all listeners come from.
    pub listeners: Option<Subscription>,
    /// Where all clusters come from.
    pub clusters: Option<Subscription>,
    /// A stream for secrets, where nothing else says where they come from.
    pub secrets: Option<Service>,
    /// Where layers of the runtime come from: one source for all.
    pub(super) layers: Vec<Reference>,
    /// What the bootstrap file itself holds.
    pub fixed: Vec<Fixed>,
    /// For connection managers that trace and name no provider.
    pub tracing: Option<Arc<TracingProvider>>,
}

impl XdsOptions {
    /// Everything from one aggregated stream.
    pub fn aggregated(servers: Vec<Server>, variant: Variant, node: NodeInfo) -> Self {
        let clusters = vec![FLAGS_CLUSTER.to_owned()];
        let subscription = Subscription { origin: Origin::Ads, timeout: None };
        Self {
            node,
            servers: BTreeMap::from([(FLAGS_CLUSTER.to_owned(), servers)]),
            ads: Some(Service { variant, clusters, rate: None, message_max: None }),
            listeners: Some(subscription.clone()),
            clusters: Some(subscription),
            secrets: None,
            layers: Vec::new(),
            fixed: Vec::new(),
            tracing: None,
        }
    }

    /// Nothing but secrets, by their own service.
    pub fn secrets(servers: Vec<Server>, variant: Variant, node: NodeInfo) -> Self {
        let clusters = vec![SDS_CLUSTER.to_owned()];
        Self {
            node,
            servers: BTreeMap::from([(SDS_CLUSTER.to_owned(), servers)]),
            ads: None,
            listeners: None,
            clusters: None,
            secrets: Some(Service { variant, clusters, rate: None, message_max: None }),
            layers: Vec::new(),
            fixed: Vec::new(),
            tracing: None,
        }
    }

    /// The servers of a service, in order.
    pub(super) fn servers_of(&self, service: &Service) -> Vec<Server> {
        let found = service.clusters.iter().filter_map(|name| self.servers.get(name));
        found.flatten().cloned().collect()
    }
}

/// Where resources come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The aggregated stream.
    Ads,
    /// A stream of the type's own service.
    Service(Service),
    /// A file.
    File(WatchedFile),
}

/// A discovery service, reached over gRPC.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    pub variant: Variant,
    /// Names of [`XdsOptions::servers`], in the order in which they are tried.
    pub clusters: Vec<String>,
    pub rate: Option<RateLimit>,
    /// The largest response, in bytes, where it is not the agent's own limit.
    pub message_max: Option<u32>,
}

/// How fast requests may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RateLimit {
    /// So many may go at once.
    pub tokens: u32,
    /// And one more each time this has passed.
    pub every: Duration,
}

/// A file that holds a `DiscoveryResponse`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchedFile {
    pub path: PathBuf,
    /// Read anew when something is moved into this directory; `None`: when the file
    /// itself is moved into place.
    pub directory: Option<PathBuf>,
    /// Whether writing in place counts as well.
    pub in_place: bool,
    /// Read anew this often; then nothing is watched.
    pub poll: Option<Duration>,
}

/// A type's resources as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub origin: Origin,
    /// How long to wait for what is asked for; zero: for ever. `None`: the default.
    pub timeout: Option<Duration>,
}

/// A resource that never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    pub(super) kind: ResourceType,
    pub(super) name: Arc<str>,
    /// Encoded.
    pub(super) value: Arc<[u8]>,
}

/// Who the agent is to its control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    pub id: String,
    pub cluster: String,
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// `None` where that is not known.
    pub locality: Option<Place>,
}

impl From<NodeInfo> for Node {
    fn from(info: NodeInfo) -> Self {
        let NodeInfo { id, cluster, metadata, locality } = info;
        Self {
            id,
            cluster,
            metadata: (!metadata.is_empty()).then(|| fields(metadata)),
            locality: locality.map(|Place { region, zone, sub_zone }| Locality {
                region,
                zone,
                sub_zone,
            }),
            user_agent_name: "mesh-agent".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            client_features: vec!["xds.config.resource-in-sotw".to_owned()],
            ..Self::default()
        }
    }
}

fn fields(map: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: map.into_iter().map(|(name, value)| (name, of_json(value))).collect() }
}

fn of_json(value: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(items) => {
            Kind::ListValue(ListValue { values: items.into_iter().map(of_json).collect() })
        }
        Json::Object(map) => Kind::StructValue(fields(map)),
    };
    Value { kind: Some(kind) }
}

/// The same the other way about.
pub(super) fn json_of(fields: Struct) -> serde_json::Map<String, serde_json::Value> {
    fields.fields.into_iter().map(|(name, value)| (name, to_json(value))).collect()
}

fn to_json(value: Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(value),
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => Json::String(value),
        Some(Kind::ListValue(list)) => Json::Array(list.values.into_iter().map(to_json).collect()),
        Some(Kind::StructValue(fields)) => Json::Object(json_of(fields)),
    }
}

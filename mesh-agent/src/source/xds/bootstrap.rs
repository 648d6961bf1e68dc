//! Envoy's bootstrap file: who the agent is, where its control planes are, and what is
//! fixed. What does not apply is refused by its path.
//!
//! Spec: `envoy/config/bootstrap/v3/bootstrap.proto`.

mod server;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
};

use envoy_types::pb::envoy::config::{
    bootstrap::v3::{
        Admin, Bootstrap as PbBootstrap, ClusterManager,
        bootstrap::{DynamicResources, StaticResources},
    },
    cluster::v3::Cluster as PbCluster,
    core::v3::{ConfigSource, Locality, Node},
};
use prost::Message as _;
use serde_json::Value;

use super::{
    ResourceType, common, config_source,
    config_source::Reference,
    decode_with_references, layered_runtime,
    options::{Fixed, NodeInfo, Origin, Service, Subscription, XdsOptions, json_of},
    reject::{Decoder, rejection, unsupported},
    traces,
};
use crate::{
    model::{
        cluster::{ClusterName, Place},
        runtime::LayeredRuntime,
    },
    snapshot::RejectedResource,
    source::{
        json,
        text::{self, Format},
    },
};

const FULL_NAME: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// More than any bootstrap file.
const FILE_MAX_BYTES: u64 = 16 << 20;

const GIVEN_TWICE: &str = "is given twice";

/// What a bootstrap file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// The node's `id` is empty where the file does not say one.
    pub xds: XdsOptions,
    /// Where the agent answers.
    pub admin: Option<SocketAddr>,
    pub runtime: LayeredRuntime,
    /// Whose endpoints send as this agent does.
    pub local_cluster: Option<ClusterName>,
}

/// Reads a bootstrap file, in YAML or JSON. Blocks.
///
/// # Errors
/// Everything in it that is wrong or not supported, by path.
pub fn read_bootstrap(path: &Path) -> Result<Bootstrap, Vec<RejectedResource>> {
    let file = path.display().to_string();
    let told = |reason: String| vec![rejection(&file, reason)];
    let length = fs::metadata(path).map_err(|error| told(error.to_string()))?.len();
    if length > FILE_MAX_BYTES {
        return Err(told(format!("is larger than {FILE_MAX_BYTES} bytes")));
    }
    let content = fs::read(path).map_err(|error| told(error.to_string()))?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let format = if is_json { Format::Json } else { Format::Yaml };
    let documents = text::documents(&file, format, &content).map_err(|rejected| vec![rejected])?;
    let parsed = match <[Value; 1]>::try_from(documents) {
        Ok([document]) => parse(document),
        Err(_) => Err(told("must hold one document".to_owned())),
    };
    json::forget_descriptors();
    parsed
}

fn parse(document: Value) -> Result<Bootstrap, Vec<RejectedResource>> {
    let Value::Object(fields) = document else {
        return Err(vec![rejection("bootstrap", "must be a mapping")]);
    };
    let mut rejected = Vec::new();
    let decoded = match json::transcode_message(FULL_NAME, fields, String::new()) {
        Err(reasons) => Err(reasons),
        Ok(transcoded) => {
            let decoded = PbBootstrap::decode(transcoded.bytes.as_slice())
                .map_err(|error| vec![rejection("bootstrap", error.to_string())])
                .and_then(decode);
            match decoded {
                Ok(decoded) if transcoded.rejected.is_empty() => Ok(decoded),
                Ok(_) => Err(transcoded.rejected),
                Err(mut further) => {
                    further.retain(|further| !transcoded.explains(&further.path));
                    rejected = transcoded.rejected;
                    Err(further)
                }
            }
        }
    };
    decoded.map_err(|further| {
        rejected.extend(further);
        for RejectedResource { path, .. } in &mut rejected {
            // The root has no name.
            if let Some(rest) = path.strip_prefix('.') {
                *path = rest.to_owned();
            }
        }
        rejected
    })
}

fn decode(value: PbBootstrap) -> Result<Bootstrap, Vec<RejectedResource>> {
    let mut decoder = Decoder::new(String::new());
    let decoded = bootstrap(&mut decoder, value);
    decoder.finish(decoded)
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn bootstrap(d: &mut Decoder, value: PbBootstrap) -> Option<Bootstrap> {
    let PbBootstrap {
        node,
        node_context_params,
        static_resources,
        dynamic_resources,
        cluster_manager,
        hds_config,
        flags_path,
        stats_sinks,
        deferred_stat_options,
        stats_config,
        watchdog,
        watchdogs,
        tracing,
        layered_runtime,
        admin,
        overload_manager,
        enable_dispatcher_stats,
        header_prefix,
        stats_server_version_override,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        inline_headers,
        perf_tracing_file_path,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager,
        application_log_config,
        grpc_async_client_manager_config,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
        // Metrics are scraped: nothing is flushed.
        stats_flush_interval: _,
        stats_flush: _,
        stats_eviction,
    } = value;
    unsupported!(
        d;
        node_context_params, hds_config, flags_path, stats_sinks,
        deferred_stat_options, stats_config, watchdog, watchdogs,
        overload_manager, enable_dispatcher_stats, header_prefix, stats_server_version_override,
        use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config,
        bootstrap_extensions, fatal_actions, config_sources, default_config_source,
        default_socket_interface, certificate_provider_instances, inline_headers,
        perf_tracing_file_path, default_regex_engine, xds_delegate_extension,
        xds_config_tracker_extension, listener_manager, application_log_config,
        grpc_async_client_manager_config, memory_allocator_manager, enable_worker_cpu_affinity,
        stats_eviction,
    );
    let node = match node {
        Some(value) => d.field("node", |d| self::node(d, value)),
        None => Some(NodeInfo::default()),
    };
    let admin = match admin {
        Some(value) => d.field("admin", |d| self::admin(d, value)),
        None => Some(None),
    };
    let dynamic_is_empty = dynamic_resources.is_none();
    let dynamic = match dynamic_resources {
        Some(value) => d.field("dynamic_resources", |d| dynamic(d, value)),
        None => Some(Dynamic::default()),
    };
    if dynamic_is_empty && static_resources.is_none() {
        d.refuse_field("dynamic_resources", "is missing, and nothing is static");
    }
    let runtime = match layered_runtime {
        Some(value) => d.field("layered_runtime", |d| layered_runtime::layered_runtime(d, value)),
        None => Some(LayeredRuntime::default()),
    };
    let tracing = match tracing.and_then(|tracing| tracing.http) {
        Some(provider) => d
            .field("tracing", |d| d.field("http", |d| traces::provider(d, provider)))
            .map(|provider| Some(Arc::new(provider))),
        None => Some(None),
    };
    let Dynamic { ads, listeners, clusters } = dynamic?;
    let layers = d.take_references();
    one_source(d, &layers, ads.is_some());
    let mut named = BTreeSet::new();
    let origins = [&listeners, &clusters].into_iter().flatten().map(|s| &s.origin);
    let origins = origins.chain(layers.iter().filter_map(|layer| layer.origin.as_ref()));
    let origins = origins.filter_map(|origin| match origin {
        Origin::Service(service) => Some(service),
        Origin::Ads | Origin::File(_) => None,
    });
    for service in ads.iter().chain(origins) {
        named.extend(service.clusters.iter().map(String::as_str));
    }
    let Static { servers, fixed } =
        d.field("static_resources", |d| fixed(d, static_resources.unwrap_or_default(), &named))?;
    let local_cluster = match cluster_manager {
        Some(value) => d.field("cluster_manager", |d| self::cluster_manager(d, value, &fixed)),
        None => Some(None),
    };
    let xds = XdsOptions {
        node: node?,
        servers,
        ads,
        listeners,
        clusters,
        secrets: None,
        layers,
        fixed,
        tracing: tracing?,
    };
    Some(Bootstrap { xds, admin: admin?, runtime: runtime?, local_cluster: local_cluster? })
}

/// A type comes from one source, and so do all layers of the runtime.
fn one_source(d: &mut Decoder, layers: &[Reference], has_ads: bool) {
    let origin = |layer: &Reference| layer.origin.clone().unwrap_or(Origin::Ads);
    for layer in layers {
        let reason = if layers.first().map(origin) != Some(origin(layer)) {
            "is another source than that of the layers before"
        } else if origin(layer) == Origin::Ads && !has_ads {
            "needs dynamic_resources.ads_config"
        } else {
            continue;
        };
        d.refuse_field(layer.path.trim_start_matches('.'), reason);
    }
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn node(d: &mut Decoder, value: Node) -> Option<NodeInfo> {
    let Node {
        id,
        cluster,
        metadata,
        dynamic_parameters,
        locality,
        user_agent_name,
        extensions,
        client_features,
        listening_addresses,
        user_agent_version_type,
    } = value;
    // The agent says itself what it is and what it can.
    unsupported!(
        d;
        dynamic_parameters, user_agent_name, extensions, client_features, listening_addresses,
        user_agent_version_type,
    );
    let locality =
        locality.map(|Locality { region, zone, sub_zone }| Place { region, zone, sub_zone });
    let metadata = metadata.map(json_of).unwrap_or_default();
    Some(NodeInfo { id, cluster, metadata, locality })
}

/// The local cluster, which has to be there from the start, as for Envoy; the outer `None`
/// says that something was refused.
fn cluster_manager(
    d: &mut Decoder,
    value: ClusterManager,
    fixed: &[Fixed],
) -> Option<Option<ClusterName>> {
    let ClusterManager {
        local_cluster_name: name,
        outlier_detection,
        upstream_bind_config,
        load_stats_config,
        // Saves Envoy memory.
        enable_deferred_cluster_creation: _,
    } = value;
    unsupported!(d; outlier_detection, upstream_bind_config, load_stats_config);
    if name.is_empty() {
        return Some(None);
    }
    let is_it = |fixed: &Fixed| fixed.kind == ResourceType::Cluster && *fixed.name == *name;
    if !fixed.iter().any(is_it) {
        let reason = format!("`{name}` is not among the clusters of static_resources");
        return d.field("local_cluster_name", |d| d.refused(reason));
    }
    Some(Some(ClusterName(name.into())))
}

/// The address; the outer `None` says that something was refused.
#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn admin(d: &mut Decoder, value: Admin) -> Option<Option<SocketAddr>> {
    let Admin {
        access_log,
        access_log_path,
        profile_path,
        address,
        socket_options,
        // There is no such limit.
        ignore_global_conn_limit: _,
        allow_paths,
    } = value;
    unsupported!(d; profile_path, socket_options, allow_paths);
    common::refuse_access_logs(d, &access_log);
    if !access_log_path.is_empty() && access_log_path != "/dev/null" {
        d.refuse_field("access_log_path", "is not supported, but for /dev/null");
    }
    match address {
        None => Some(None),
        some => common::socket_address(d, "address", some).map(Some),
    }
}

#[derive(Default)]
struct Dynamic {
    ads: Option<Service>,
    listeners: Option<Subscription>,
    clusters: Option<Subscription>,
}

fn dynamic(d: &mut Decoder, value: DynamicResources) -> Option<Dynamic> {
    let DynamicResources {
        lds_config,
        lds_resources_locator,
        cds_config,
        cds_resources_locator,
        ads_config,
    } = value;
    unsupported!(d; lds_resources_locator, cds_resources_locator);
    let ads = match ads_config {
        Some(api) => d.field("ads_config", |d| config_source::service(d, api)).map(Some),
        None => Some(None),
    };
    let has_ads = ads != Some(None);
    let listeners = subscription(d, "lds_config", lds_config, has_ads);
    let clusters = subscription(d, "cds_config", cds_config, has_ads);
    Some(Dynamic { ads: ads?, listeners: listeners?, clusters: clusters? })
}

fn subscription(
    d: &mut Decoder,
    field: &str,
    value: Option<ConfigSource>,
    has_ads: bool,
) -> Option<Option<Subscription>> {
    let Some(value) = value else { return Some(None) };
    d.field(field, |d| {
        let (origin, timeout) = config_source::decode(d, value)?;
        match origin {
            Some(Origin::Ads) if !has_ads => {
                d.refuse_field("ads", "needs dynamic_resources.ads_config");
                None
            }
            Some(origin) => Some(Some(Subscription { origin, timeout })),
            None => d.refused("must be ads, api_config_source or path_config_source"),
        }
    })
}

struct Static {
    servers: BTreeMap<String, Vec<super::address::Server>>,
    fixed: Vec<Fixed>,
}

/// Clusters of management servers, which `named` are at least, and everything else.
fn fixed(d: &mut Decoder, value: StaticResources, named: &BTreeSet<&str>) -> Option<Static> {
    let StaticResources { listeners, clusters, secrets } = value;
    let mut found = Static { servers: BTreeMap::new(), fixed: Vec::new() };
    let mut names = BTreeSet::new();
    for (i, mut listener) in listeners.into_iter().enumerate() {
        if listener.name.is_empty() {
            // Envoy makes up a name as well.
            listener.name = format!("static-{i}");
        }
        if names.insert(listener.name.clone()) {
            found.fixed(d, ResourceType::Listener, &listener.name, listener.encode_to_vec());
        } else {
            d.item("listeners", &listener.name, |d| d.refuse(GIVEN_TWICE));
        }
    }
    names.clear();
    for secret in secrets {
        if names.insert(secret.name.clone()) {
            found.fixed(d, ResourceType::Secret, &secret.name, secret.encode_to_vec());
        } else {
            d.item("secrets", &secret.name, |d| d.refuse(GIVEN_TWICE));
        }
    }
    names.clear();
    for cluster in clusters {
        let name = cluster.name.clone();
        if !names.insert(name.clone()) {
            d.item("clusters", &name, |d| d.refuse(GIVEN_TWICE));
        } else if named.contains(name.as_str()) {
            let servers = d.item("clusters", &name, |d| server::cluster(d, cluster));
            found.servers.extend(servers.map(|servers| (name, servers)));
        } else {
            found.unnamed(d, name, cluster);
        }
    }
    for name in named.iter().filter(|name| !names.contains(**name)) {
        d.refuse_field("clusters", format!("`{name}` is missing"));
    }
    Some(found)
}

impl Static {
    fn fixed(&mut self, d: &mut Decoder, kind: ResourceType, name: &str, value: Vec<u8>) {
        match decode_with_references(kind.type_url(), &value) {
            Ok(_) => self.fixed.push(Fixed { kind, name: name.into(), value: value.into() }),
            Err(reasons) => d.adopt(reasons),
        }
    }

    /// A cluster that the bootstrap itself asks nothing of: a resource may name it as its
    /// config source, if it speaks HTTP/2; or it is one for traffic; or both.
    fn unnamed(&mut self, d: &mut Decoder, name: String, cluster: PbCluster) {
        let value = cluster.encode_to_vec();
        let mut aside = Decoder::new(String::new());
        let servers = if server::speaks_http2(&cluster) {
            let servers = server::cluster(&mut aside, cluster);
            aside.finish(servers).ok()
        } else {
            None
        };
        let Some(servers) = servers else {
            return self.fixed(d, ResourceType::Cluster, &name, value);
        };
        if decode_with_references(ResourceType::Cluster.type_url(), &value).is_ok() {
            self.fixed(d, ResourceType::Cluster, &name, value);
        }
        self.servers.insert(name, servers);
    }
}

#[cfg(test)]
mod tests;

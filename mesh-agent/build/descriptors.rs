//! Compiles the protobuf descriptors that `source` transcodes YAML and JSON with.
//!
//! The protos are those the `envoy-types` crate ships beside its Rust types, so the
//! two can't drift apart. Only the ones that are decoded, and what they import, are
//! compiled: a type that is not here is refused as unsupported at run time anyway.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The roots: every type that may stand in an `@type` and is understood.
const ROOTS: &[&str] = &[
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/compression/brotli/compressor/v3/brotli.proto",
    "envoy/extensions/compression/brotli/decompressor/v3/brotli.proto",
    "envoy/extensions/compression/gzip/compressor/v3/gzip.proto",
    "envoy/extensions/compression/gzip/decompressor/v3/gzip.proto",
    "envoy/extensions/compression/zstd/compressor/v3/zstd.proto",
    "envoy/extensions/compression/zstd/decompressor/v3/zstd.proto",
    "envoy/extensions/filters/http/buffer/v3/buffer.proto",
    "envoy/extensions/filters/http/compressor/v3/compressor.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/csrf/v3/csrf.proto",
    "envoy/extensions/filters/http/decompressor/v3/decompressor.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto",
    "envoy/extensions/filters/http/health_check/v3/health_check.proto",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/http/on_demand/v3/on_demand.proto",
    "envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/set_metadata/v3/set_metadata.proto",
    "envoy/extensions/filters/http/stateful_session/v3/stateful_session.proto",
    "envoy/extensions/filters/http/upstream_codec/v3/upstream_codec.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/sni_cluster/v3/sni_cluster.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/http/original_ip_detection/custom_header/v3/custom_header.proto",
    "envoy/extensions/http/original_ip_detection/xff/v3/xff.proto",
    "envoy/extensions/http/stateful_session/cookie/v3/cookie.proto",
    "envoy/extensions/http/stateful_session/header/v3/header.proto",
    "envoy/extensions/load_balancing_policies/cluster_provided/v3/cluster_provided.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/load_balancing_policies/wrr_locality/v3/wrr_locality.proto",
    "envoy/extensions/path/match/uri_template/v3/uri_template_match.proto",
    "envoy/extensions/path/rewrite/uri_template/v3/uri_template_rewrite.proto",
    "envoy/extensions/request_id/uuid/v3/uuid.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/environment_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/static_config_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/always_on_sampler.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/parent_based_sampler.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/secret.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/service/runtime/v3/rtds.proto",
];

/// Roots that others must not be compiled beside: with the package `envoy.extensions.filters.common`
/// in the same pool, the compiler finds their `common.ratelimit.v3` there and gives up.
const APART: &[&str] = &["envoy/extensions/filters/http/fault/v3/fault.proto"];

/// The folders of the crate's `proto/` that imports are looked up in.
const INCLUDES: [&str; 8] = [
    "data-plane-api",
    "xds",
    "protoc-gen-validate",
    "googleapis",
    "cel-spec/proto",
    "client_model",
    "opentelemetry-proto",
    "ratelimit",
];

/// Names a directory with the protos, for builds that cargo can't be asked about.
const OVERRIDE: &str = "MESH_ENVOY_PROTO_DIR";

/// Writes `envoy.fds` and `apart.fds`, each an encoded `FileDescriptorSet` with all that it
/// imports, to `OUT_DIR`.
pub(crate) fn compile() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build/descriptors.rs");
    println!("cargo:rerun-if-changed=Cargo.toml");
    println!("cargo:rerun-if-changed=../Cargo.lock");
    println!("cargo:rerun-if-env-changed={OVERRIDE}");

    let protos = locate()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    for (file, roots) in [("envoy.fds", ROOTS), ("apart.fds", APART)] {
        let includes = INCLUDES.iter().map(|folder| protos.join(folder));
        let mut compiler = protox::Compiler::new(includes.filter(|path| path.is_dir()))?;
        compiler.include_imports(true).include_source_info(false);
        for root in roots {
            compiler.open_file(root).map_err(|error| format!("{root}: {error:?}"))?;
        }
        fs::write(out.join(file), compiler.encode_file_descriptor_set())?;
    }
    Ok(())
}

/// The `proto` folder of the `envoy-types` that is being built against.
fn locate() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(dir) = env::var_os(OVERRIDE) {
        return Ok(dir.into());
    }
    // Cargo knows best: it heeds vendoring, patches and alternative registries. A
    // partly filled registry (only what this build needs) makes it fail offline, and
    // then the sources of this very build are still in the registry's usual place.
    let crate_dir = match ask_cargo() {
        Ok(dir) => dir,
        Err(error) => search_registry().ok_or_else(|| {
            format!("the sources of envoy-types were not found ({error}); set {OVERRIDE}")
        })?,
    };
    let protos = crate_dir.join("proto");
    if !protos.is_dir() {
        return Err(format!("{} is not a directory; set {OVERRIDE}", protos.display()).into());
    }
    Ok(protos)
}

fn ask_cargo() -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").ok_or("CARGO is not set")?;
    let target = env::var("TARGET")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform"])
        .arg(target)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("cargo metadata does not list envoy-types")?;
    Ok(Path::new(manifest).parent().ok_or("the manifest has no folder")?.to_owned())
}

fn search_registry() -> Option<PathBuf> {
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?).parent()?.to_owned();
    let lock = fs::read_to_string(workspace.join("Cargo.lock")).ok()?;
    let (_, entry) = lock.split_once("name = \"envoy-types\"\nversion = \"")?;
    let (version, _) = entry.split_once('"')?;
    let named = format!("envoy-types-{version}");

    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))?;
    let vendored = workspace.join("vendor");
    let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    registries
        .map(|registry| registry.path().join(&named))
        .chain([vendored.join(&named), vendored.join("envoy-types")])
        .find(|path| path.is_dir())
}

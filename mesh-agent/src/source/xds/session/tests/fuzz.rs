//! Bytes that are no response, or odd ones, never panic; what is in force stays whole.

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource,
};
use prost::Message as _;

use super::{
    messages::{ECDS, RTDS, SDS, SRDS, VHDS, extension, host, layer, odd_secret, scope, secret},
    *,
};

fn near(bytes: &[u8], mut run: impl FnMut(&[u8])) {
    for at in (0..bytes.len()).step_by(3) {
        for flip in [0x01, 0x08, 0x80, 0xff] {
            let mut other = bytes.to_vec();
            other[at] ^= flip;
            run(&other);
        }
        run(&bytes[..at]);
    }
}

/// The seeds of the fuzz target `xds_response`; `MESH_WRITE_SEEDS=1` writes them anew.
#[test]
fn seeds_are_heard() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/xds_response");
    let write = std::env::var_os("MESH_WRITE_SEEDS").is_some();
    let resources = [
        (CDS, "cluster", cluster("a")),
        (EDS, "endpoints", endpoints("a", 2)),
        (LDS, "listener", http_listener("l", 80, "r")),
        (RDS, "routes", routes("r", "a")),
        (SDS, "secret", odd_secret(NAME_HEARD)),
        (RTDS, "runtime", layer(NAME_HEARD, "key", 7.0)),
        (ECDS, "extension-config", extension(NAME_HEARD)),
        (VHDS, "virtual-host", host("h", "h", "a")),
        (SRDS, "scope", scope(NAME_HEARD, "k", "r")),
        (CDS, "refused", super::messages::bad_cluster("a")),
        (CDS, "unknown-field", super::messages::with_unknown_field(cluster("a"))),
    ];
    for (url, name, resource) in resources {
        let (type_url, nonce) = (url.to_owned(), "n".to_owned());
        let sotw = DiscoveryResponse {
            resources: vec![resource.clone()],
            type_url: type_url.clone(),
            nonce: nonce.clone(),
            ..DiscoveryResponse::default()
        };
        let four = [LDS, RDS, CDS, EDS].contains(&url);
        let wrapped = Resource {
            name: if four { "a" } else { NAME_HEARD }.to_owned(),
            aliases: if url == VHDS { vec!["r/b".to_owned()] } else { Vec::new() },
            resource: Some(resource),
            ..Resource::default()
        };
        let delta = DeltaDiscoveryResponse {
            resources: vec![wrapped],
            removed_resources: vec!["b".to_owned()],
            type_url,
            nonce,
            ..DeltaDiscoveryResponse::default()
        };
        let variants = [(0, "sotw", sotw.encode_to_vec()), (1, "delta", delta.encode_to_vec())];
        for (first, variant, response) in variants {
            let path = std::path::Path::new(directory).join(format!("{variant}-{name}"));
            let seed = [&[first], response.as_slice()].concat();
            if write {
                std::fs::create_dir_all(directory).unwrap();
                std::fs::write(&path, &seed).unwrap();
            }
            let found = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(found, seed, "{}: MESH_WRITE_SEEDS=1", path.display());
            let which = if first == 0 { Variant::Sotw } else { Variant::Delta };
            assert!(hear(which, &response).is_some_and(|requests| requests >= 2));
        }
    }
}

#[test]
fn responses_that_are_nearly_right_do_no_harm() {
    let resources = [
        (CDS, cluster("a")),
        (EDS, endpoints("a", 2)),
        (LDS, http_listener("l", 80, "r")),
        (RDS, routes("r", "a")),
        (SDS, secret(NAME_HEARD)),
        (RTDS, layer(NAME_HEARD, "key", 7.0)),
        (ECDS, extension(NAME_HEARD)),
        (VHDS, host("h", "h", "a")),
    ];
    for (url, resource) in resources {
        let name = if [LDS, RDS, CDS, EDS].contains(&url) { "a" } else { NAME_HEARD };
        let sotw = DiscoveryResponse {
            version_info: "1".to_owned(),
            resources: vec![resource.clone()],
            type_url: url.to_owned(),
            nonce: "n".to_owned(),
            ..DiscoveryResponse::default()
        };
        let wanted = ResourceType::ALL.map(|kind| (kind, NAME_HEARD.into()));
        let mut bench = Bench::new(Variant::Sotw);
        bench.session.want(&wanted, bench.now);
        near(&sotw.encode_to_vec(), |bytes| {
            if let Ok(response) = DiscoveryResponse::decode(bytes) {
                bench.session.on_sotw(0, response, bench.now);
                bench.apply();
                while bench.session.poll_request(0, bench.now).is_some() {}
            }
        });
        let wrapped =
            Resource { name: name.to_owned(), resource: Some(resource), ..Resource::default() };
        let delta = DeltaDiscoveryResponse {
            resources: vec![wrapped],
            type_url: url.to_owned(),
            nonce: "n".to_owned(),
            removed_resources: vec!["a".to_owned()],
            ..DeltaDiscoveryResponse::default()
        };
        let mut bench = Bench::new(Variant::Delta);
        bench.session.want(&wanted, bench.now);
        near(&delta.encode_to_vec(), |bytes| {
            if let Ok(response) = DeltaDiscoveryResponse::decode(bytes) {
                bench.session.on_delta(0, response, bench.now);
                bench.apply();
                while bench.session.poll_request(0, bench.now).is_some() {}
            }
        });
    }
}

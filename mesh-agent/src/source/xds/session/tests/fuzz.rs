//! Bytes that are no response, or odd ones, never panic; what is in force stays whole.

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource,
};
use prost::Message as _;

use super::*;

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

#[test]
fn responses_that_are_nearly_right_do_no_harm() {
    let resources =
        vec![cluster("a"), endpoints("a", 2), http_listener("l", 80, "r"), routes("r", "a")];
    for (url, resource) in [CDS, EDS, LDS, RDS].into_iter().zip(resources) {
        let sotw = DiscoveryResponse {
            version_info: "1".to_owned(),
            resources: vec![resource.clone()],
            type_url: url.to_owned(),
            nonce: "n".to_owned(),
            ..DiscoveryResponse::default()
        };
        let mut bench = Bench::new(Variant::Sotw);
        near(&sotw.encode_to_vec(), |bytes| {
            if let Ok(response) = DiscoveryResponse::decode(bytes) {
                bench.session.on_sotw(response, bench.now);
                bench.apply();
                while bench.session.poll_request(bench.now).is_some() {}
            }
        });
        let wrapped =
            Resource { name: "a".to_owned(), resource: Some(resource), ..Resource::default() };
        let delta = DeltaDiscoveryResponse {
            resources: vec![wrapped],
            type_url: url.to_owned(),
            nonce: "n".to_owned(),
            removed_resources: vec!["a".to_owned()],
            ..DeltaDiscoveryResponse::default()
        };
        let mut bench = Bench::new(Variant::Delta);
        near(&delta.encode_to_vec(), |bytes| {
            if let Ok(response) = DeltaDiscoveryResponse::decode(bytes) {
                bench.session.on_delta(response, bench.now);
                bench.apply();
                while bench.session.poll_request(bench.now).is_some() {}
            }
        });
    }
}

//! What a proxy tells of itself and of who came to it: `x-forwarded-*`, `x-request-id`,
//! `via`, `server`, and what it does not believe a client.
//!
//! Spec: Envoy's "HTTP header manipulation", "HTTP header sanitizing".

use std::net::{IpAddr, SocketAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{SERVER, VIA},
};

use super::headers::{FORWARDED_PROTO, REQUEST_ID, append_value, new_request_id};
use super::spans::forget;
use crate::model::http_options::{HttpOptions, ServerHeader};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");

/// Only the mesh's own services may steer an Envoy so, and here nobody counts as one
/// (Envoy's default for `internal_address_config`).
const INTERNAL: [&str; 16] = [
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
];

/// Not to be believed either where the peer is the client itself.
const EDGE: [&str; 5] = [
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-host",
    "x-envoy-original-path",
];

/// Before anything is judged by it. Returns the client, where the proxies before this one say
/// who that is.
pub(super) fn of_request(
    headers: &mut HeaderMap,
    options: &HttpOptions,
    (remote, local): (SocketAddr, SocketAddr),
    secure: bool,
) -> Option<IpAddr> {
    let edge = options.use_remote_address;
    disbelieve(headers, edge);
    // Who is no edge is told of its peer as well.
    let hops = if edge { options.trusted_hops } else { options.trusted_hops.saturating_add(1) };
    let believed = believed_client(headers, hops);
    if edge {
        let client = believed.unwrap_or(remote.ip());
        if !options.skip_xff_append {
            let address = if remote.ip().is_loopback() { local.ip() } else { remote.ip() };
            append_address(headers, address);
        }
        if let Ok(client) = HeaderValue::try_from(client.to_string()) {
            headers.insert(EXTERNAL_ADDRESS, client);
        }
    }
    if edge && options.trusted_hops == 0 || !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(
            FORWARDED_PROTO,
            HeaderValue::from_static(if secure { "https" } else { "http" }),
        );
    }
    if let Some(via) = &options.via {
        append_value(headers, VIA, via, ", ");
    }
    let foreign = edge && !options.preserve_external_request_id;
    if edge && !foreign {
        forget(headers, options.request_ids);
    }
    if options.generate_request_id && (foreign || !headers.contains_key(REQUEST_ID)) {
        headers.insert(REQUEST_ID, new_request_id());
    }
    believed
}

/// Takes out what only the mesh's own may say. Found by what is there: looking for each of
/// them hashes each, and most requests have one at most.
fn disbelieve(headers: &mut HeaderMap, edge: bool) {
    loop {
        let found = headers.keys().find(|name| {
            let name = name.as_str();
            name.starts_with("x-envoy-")
                && (INTERNAL.contains(&name) || edge && EDGE.contains(&name))
        });
        let Some(name) = found.cloned() else { return };
        headers.remove(name);
    }
}

/// The address that the first of the proxies that are believed saw.
fn believed_client(headers: &HeaderMap, trusted_hops: u32) -> Option<IpAddr> {
    let back = usize::try_from(trusted_hops.checked_sub(1)?).ok()?;
    let mut lines: Vec<&str> = Vec::new();
    for line in headers.get_all(FORWARDED_FOR) {
        lines.push(line.to_str().ok()?);
    }
    let mut addresses = lines.into_iter().rev().flat_map(|line| line.rsplit(','));
    addresses.nth(back)?.trim().parse().ok()
}

fn append_address(headers: &mut HeaderMap, address: IpAddr) {
    if let Ok(address) = HeaderValue::try_from(address.to_string()) {
        append_value(headers, FORWARDED_FOR, &address, ",");
    }
}

/// What every response says, the agent's own ones too.
pub(super) fn of_response(
    headers: &mut HeaderMap,
    options: &HttpOptions,
    request_id: Option<&HeaderValue>,
) {
    let sets_server = match options.server_header {
        ServerHeader::Overwrite => true,
        ServerHeader::AppendIfAbsent => !headers.contains_key(SERVER),
        ServerHeader::PassThrough => false,
    };
    if sets_server {
        headers.insert(SERVER, options.server_name.clone());
    }
    if options.request_id_in_response
        && let Some(id) = request_id
    {
        headers.insert(REQUEST_ID, id.clone());
    }
    if let Some(via) = &options.via {
        append_value(headers, VIA, via, ", ");
    }
}

#[cfg(test)]
mod tests;

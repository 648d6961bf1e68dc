//! What a proxy tells of itself and of who came to it: `x-forwarded-*`, `x-request-id`,
//! `via`, `server`, and what it does not believe a client.
//!
//! Spec: Envoy's "HTTP header manipulation", "HTTP header sanitizing".

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{SERVER, VIA},
};
use nix::ifaddrs::getifaddrs;

use super::headers::{FORWARDED_PROTO, REQUEST_ID, append_value, new_request_id};
use super::spans::forget;
use crate::model::http_options::{HttpOptions, OriginalIp, ServerHeader, TrustedProxies};

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

/// What the agent's own host is called: the first address of IPv4 that any of its interfaces has.
static OWN_ADDRESS: LazyLock<IpAddr> = LazyLock::new(|| {
    let interfaces = getifaddrs().into_iter().flatten();
    let mut addresses =
        interfaces.filter_map(|of| Some(IpAddr::V4(of.address?.as_sockaddr_in()?.ip())));
    addresses.find(|ip| !is_loopback(*ip)).unwrap_or(Ipv4Addr::LOCALHOST.into())
});

/// To Envoy, the others of `127.0.0.0/8` are addresses like any.
fn is_loopback(ip: IpAddr) -> bool {
    ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
}

/// The other end of a connection.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    pub(super) ip: IpAddr,
    /// Whether the client speaks TLS.
    pub(super) secure: bool,
}

impl Peer {
    /// What is said of it: who comes by loopback is this host.
    fn told(self) -> IpAddr {
        if is_loopback(self.ip) { *OWN_ADDRESS } else { self.ip }
    }
}

/// Before anything is judged by it. Returns the client, where the proxies before this one say
/// who that is.
///
/// # Errors
/// They must say so and do not: what the request is to be answered.
pub(super) fn of_request(
    headers: &mut HeaderMap,
    options: &HttpOptions,
    peer: Peer,
) -> Result<Option<IpAddr>, StatusCode> {
    join_lines(headers, FORWARDED_FOR);
    let edge = options.use_remote_address;
    disbelieve(headers, edge);
    let believed = match options.original_ip.as_slice() {
        [] if edge => options.trusted_hops.checked_sub(1).and_then(|skip| entry(headers, skip)),
        // Who is no edge is told of its peer as well.
        [] => entry(headers, options.trusted_hops),
        all => detect(headers, all, peer)?,
    };
    if edge {
        let client = believed.unwrap_or(peer.ip);
        if !options.skip_xff_append {
            append_address(headers, peer.told());
        }
        if let Ok(client) = HeaderValue::try_from(client.to_string()) {
            headers.insert(EXTERNAL_ADDRESS, client);
        }
    }
    if edge && options.trusted_hops == 0 || !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(
            FORWARDED_PROTO,
            HeaderValue::from_static(if peer.secure { "https" } else { "http" }),
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
    Ok(believed)
}

/// Asks one after the other.
///
/// Spec: Envoy's `ConnectionManagerUtility::mutateRequestHeaders`.
fn detect(
    headers: &mut HeaderMap,
    all: &[OriginalIp],
    peer: Peer,
) -> Result<Option<IpAddr>, StatusCode> {
    for one in all {
        let (found, append) = match one {
            OriginalIp::ForwardedFor { trusted: TrustedProxies::Hops(skip), append } => {
                (entry(headers, *skip), *append)
            }
            OriginalIp::ForwardedFor { trusted: TrustedProxies::Ranges(ranges), append } => {
                let trusts = |ip: IpAddr| ranges.iter().any(|range| range.contains(&ip));
                match trusts(peer.ip) {
                    true => (first_foreign(headers, trusts), *append),
                    false => (None, true),
                }
            }
            OriginalIp::Header { name, rejected } => {
                let value = headers.get(name).and_then(|value| value.to_str().ok());
                match (value.and_then(|value| value.parse().ok()), rejected) {
                    (None, Some(status)) => {
                        return Err(StatusCode::from_u16(*status).unwrap_or(StatusCode::FORBIDDEN));
                    }
                    (found, _) => (found, false),
                }
            }
        };
        if append {
            append_address(headers, peer.told());
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
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

/// The entry of `x-forwarded-for` that so many come after: whom the first of the proxies that
/// are believed saw.
fn entry(headers: &HeaderMap, skip: u32) -> Option<IpAddr> {
    entries(headers)?.nth(usize::try_from(skip).ok()?)?.trim().parse().ok()
}

/// The last entry that is not trusted; the first one, where all are. None where one on the way
/// is no address.
fn first_foreign(headers: &HeaderMap, trusts: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let mut last = None;
    for entry in entries(headers)? {
        let ip = entry.trim().parse().ok()?;
        last = Some(ip);
        if !trusts(ip) {
            break;
        }
    }
    last
}

/// Those of `x-forwarded-for`, the last first.
fn entries(headers: &HeaderMap) -> Option<impl Iterator<Item = &str>> {
    let mut lines: Vec<&str> = Vec::new();
    for line in headers.get_all(FORWARDED_FOR) {
        lines.push(line.to_str().ok()?);
    }
    Some(lines.into_iter().rev().flat_map(|line| line.rsplit(',')))
}

/// As Envoy: one line, whoever reads on.
pub(super) fn join_lines(headers: &mut HeaderMap, name: HeaderName) {
    let mut lines = headers.get_all(&name).iter().map(HeaderValue::as_bytes);
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else { return };
    let all: Vec<&[u8]> = [first, second].into_iter().chain(lines).collect();
    // Parts of valid values, joined by a visible character, are one.
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b","[..])) {
        headers.insert(name, joined);
    }
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

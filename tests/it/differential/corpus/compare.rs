//! An answer cut into named parts, without what differs from one request to the next.

use std::collections::BTreeMap;

use tests::{
    coding::decoded,
    corpus::{Field, Heard, Seen, of_bytes, to_bytes},
    twins::ADDRESSES,
};

/// The first of the ports that the kernel gives out.
const EPHEMERAL: u16 = 32768;
/// How a cookie begins that a hash policy makes.
const HASHED: &str = "hashed=";

/// By name: `status`, `reason` (by HTTP/1), `header x`, `body`, `trailer x`, `end`, `interim`, the same behind
/// `more N` for later responses, `log N`, `upstream` (how many requests it saw), and for each of
/// those `upstream N method` and so on.
pub(super) type Parts = BTreeMap<String, String>;

pub(super) fn parts<'a>(
    heard: &Heard,
    seen: &[&Seen],
    logged: impl Iterator<Item = &'a str>,
    client: &str,
) -> Parts {
    let mut parts = Parts::new();
    for (index, line) in logged.enumerate() {
        parts.insert(format!("log {index}"), timeless(&portless(&line.replace(client, "CLIENT"))));
    }
    parts.insert("end".to_owned(), heard.end.clone());
    for (index, response) in heard.responses.iter().enumerate() {
        let of =
            |part: &str| if index == 0 { part.to_owned() } else { format!("more {index} {part}") };
        parts.insert(of("status"), response.status.to_string());
        if !response.reason.is_empty() {
            parts.insert(of("reason"), response.reason.clone());
        }
        parts.insert(of("body"), plain(&response.headers, &response.body));
        if !response.interim.is_empty() {
            parts.insert(of("interim"), format!("{:?}", response.interim));
        }
        put(&mut parts, &of("header"), &response.headers, client);
        put(&mut parts, &of("trailer"), &response.trailers, client);
    }
    parts.insert("upstream".to_owned(), format!("{} requests", seen.len()));
    for (index, seen) in seen.iter().enumerate() {
        let of = |part: &str| format!("upstream {index} {part}");
        for (part, value) in [
            ("by", &seen.by),
            ("version", &seen.version),
            ("method", &seen.method),
            ("target", &seen.target),
            ("body", &plain(&seen.headers, &seen.body)),
            ("whole", &seen.whole.to_string()),
        ] {
            parts.insert(of(part), value.clone());
        }
        put(&mut parts, &of("header"), &seen.headers, client);
        put(&mut parts, &of("trailer"), &seen.trailers, client);
        if index > 0 {
            // Envoy tells what is left of the time, which no two runs have the same of; the
            // agent the whole of it (README).
            parts.remove(&of("header x-envoy-expected-rq-timeout-ms"));
        }
    }
    parts
}

/// A line of a log without the ports that clients' own sockets have. Envoy's client is the
/// service's first address, see `put`.
fn portless(line: &str) -> String {
    let line = line.replace(&format!("{}:", ADDRESSES[0]), "CLIENT:");
    let mut pieces = line.split("CLIENT:");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let rest = piece.trim_start_matches(|c: char| c.is_ascii_digit());
        let port: u16 = piece[..piece.len() - rest.len()].parse().unwrap_or_default();
        out.push_str("CLIENT:");
        out.push_str(&if port >= EPHEMERAL { "PORT".to_owned() } else { port.to_string() });
        out.push_str(rest);
    }
    out
}

/// A line of Istio's format, which begins with a time, without times and ids.
fn timeless(line: &str) -> String {
    let Some((time, rest)) = line.strip_prefix('[').and_then(|line| line.split_once("] ")) else {
        return line.to_owned();
    };
    let is_time = time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z');
    let mut fields: Vec<String> = Vec::new();
    for field in rest.split(' ') {
        match fields.last_mut() {
            Some(open) if open.starts_with('"') && (open.len() == 1 || !open.ends_with('"')) => {
                open.push(' ');
                open.push_str(field);
            }
            _ => fields.push(field.to_owned()),
        }
    }
    // How long it took, by both counts, and the id.
    for index in [8, 9] {
        if let Some(field) = fields.get_mut(index)
            && field.parse::<u64>().is_ok()
        {
            *field = "ms".to_owned();
        }
    }
    let is_id = |field: &&mut String| field.len() == 38 && field.matches('-').count() == 4;
    if let Some(field) = fields.iter_mut().find(is_id) {
        *field = "id".to_owned();
    }
    format!("[{}] {}", if is_time { "TIME" } else { time }, fields.join(" "))
}

/// Of compressed content what is in it: two compressors never agree.
fn plain(headers: &[Field], body: &str) -> String {
    let coding = headers.iter().find(|(name, _)| name == "content-encoding");
    let plain = coding.and_then(|(_, coding)| {
        let content = decoded(coding.split(',').next()?.trim(), &to_bytes(body))?;
        Some(format!("{coding} of {}", of_bytes(&content)))
    });
    plain.unwrap_or_else(|| body.to_owned())
}

fn put(parts: &mut Parts, kind: &str, fields: &[Field], client: &str) {
    for (name, value) in fields {
        let value = match name.as_str() {
            "date" => "a date".to_owned(),
            "x-envoy-upstream-service-time" if value.parse::<u64>().is_ok() => "time".to_owned(),
            // By the ports of the connection.
            "set-cookie" if value.starts_with(HASHED) => {
                let (own, rest) = value.split_once(';').unwrap_or((value, ""));
                format!("{HASHED} of {} bytes;{rest}", own.len())
            }
            // Why it is traced.
            "x-request-id" if value.len() == 36 => format!("an id {}", &value[14..15]),
            name if super::spans::PROPAGATION.contains(&name) => super::spans::unnamed(value),
            // Envoy names itself by the first address of its pod, which is a service's.
            "x-forwarded-for" | "x-envoy-external-address" | "x-told" | "x-asked" => {
                value.replace(client, "CLIENT").replace(ADDRESSES[0], "CLIENT")
            }
            _ => value.replace(client, "CLIENT"),
        };
        let part = parts.entry(format!("{kind} {name}"));
        part.and_modify(|all| *all = format!("{all} | {value}")).or_insert(value);
    }
}

/// The parts that are not the same, with both values; nothing else where statuses differ,
/// nor what upstreams saw where they saw more or fewer requests.
pub(super) fn differences<'a>(
    one: &'a Parts,
    other: &'a Parts,
) -> Vec<(&'a str, &'a str, &'a str)> {
    let value = |of: &'a Parts, part: &str| of.get(part).map_or("(none)", String::as_str);
    let parts = one.keys().chain(other.keys().filter(|part| !one.contains_key(*part)));
    let mut differing: Vec<_> = parts
        .map(|part| (part.as_str(), value(one, part), value(other, part)))
        .filter(|(_, one, other)| one != other)
        .collect();
    let differs = |of: &str| differing.iter().any(|(part, _, _)| *part == of);
    let (status, upstream) = (differs("status"), differs("upstream"));
    differing.retain(|(part, _, _)| {
        if status { *part == "status" } else { !upstream || !part.starts_with("upstream ") }
    });
    differing
}

/// What a deviation calls `part`: the same for each request and response.
pub(super) fn common_name(part: &str) -> String {
    match part.split_once(' ') {
        Some(("more", rest)) => rest.split_once(' ').map_or(rest, |(_, rest)| rest).to_owned(),
        Some(("upstream", rest)) => {
            format!("upstream {}", rest.split_once(' ').map_or(rest, |(_, rest)| rest))
        }
        _ => part.to_owned(),
    }
}

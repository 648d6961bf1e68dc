//! What settings are read as: a reason names the value.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use ipnet::IpNet;

use super::duration;
use crate::model::{agent_down::AgentDown, splice::SpliceMode};

/// More threads than CPUs of any node.
const DATA_THREADS_MAX: usize = 1024;

pub(super) fn splice_mode(s: &str) -> Result<SpliceMode, String> {
    match s {
        "auto" => Ok(SpliceMode::Auto),
        "on" => Ok(SpliceMode::On),
        "off" => Ok(SpliceMode::Off),
        other => Err(format!("`{other}` is none of auto, on, off")),
    }
}

pub(super) fn agent_down(s: &str) -> Result<AgentDown, String> {
    match s {
        "refuse" => Ok(AgentDown::Refuse),
        "keep" => Ok(AgentDown::Keep),
        other => Err(format!("`{other}` is neither refuse nor keep")),
    }
}

pub(super) fn absolute(s: &str) -> Result<PathBuf, String> {
    let path = Path::new(s);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    if s.is_empty() {
        return Err("the path is empty".to_owned());
    }
    // Taken once, at start: the agent may change directory, its settings must not.
    std::path::absolute(path).map_err(|error| format!("`{s}` can't be made absolute: {error}"))
}

pub(super) fn name(s: &str) -> Result<String, String> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    if s.is_empty() || s.len() > 63 || s.starts_with('.') || !s.bytes().all(valid) {
        return Err(format!("`{s}` must be 1 to 63 letters, digits, `.`, `-` or `_`"));
    }
    Ok(s.to_owned())
}

pub(super) fn port(s: &str) -> Result<u16, String> {
    match s.parse() {
        Ok(0) | Err(_) => Err(format!("`{s}` is not a port from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

pub(super) fn threads(s: &str) -> Result<NonZeroUsize, String> {
    match s.parse::<NonZeroUsize>() {
        Ok(threads) if threads.get() <= DATA_THREADS_MAX => Ok(threads),
        _ => Err(format!("`{s}` is not a number from 1 to {DATA_THREADS_MAX}")),
    }
}

pub(super) fn cidr(s: &str) -> Result<IpNet, String> {
    s.parse::<IpNet>()
        .or_else(|_| s.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| format!("`{s}` is neither an address nor a network such as 10.0.0.0/8"))
}

pub(super) fn choice<T: ValueEnum>(s: &str) -> Result<T, String> {
    T::from_str(s, false).map_err(|_| {
        let names = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<_> = names.map(|value| value.get_name().to_owned()).collect();
        format!("`{s}` is none of {}", names.join(", "))
    })
}

pub(super) fn boolean(s: &str) -> Result<bool, String> {
    match s {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("`{other}` is neither true nor false")),
    }
}

pub(super) fn between(s: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let given = duration::parse(s)?;
    if given < least || given > most {
        return Err(format!(
            "`{s}` is not between {} and {}",
            duration::show(least),
            duration::show(most)
        ));
    }
    Ok(given)
}

pub(super) fn log_filter(s: &str) -> Result<String, String> {
    match s.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) => Ok(s.to_owned()),
        Err(error) => Err(format!("`{s}` is not a filter such as info,mesh_agent=debug: {error}")),
    }
}

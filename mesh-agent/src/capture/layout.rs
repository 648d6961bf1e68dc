//! Whether the embedded object and the pinned maps are this agent's, before either is used.
#![forbid(unsafe_code)]

use std::path::Path;

use aya::maps::MapInfo;
use mesh_common::{
    abi::{ABI_TAG, ABI_VERSION, map},
    address::Address,
    key::{AddressKey, ConnectionKey, ListenerKey, PortKey, ServiceKey, SpliceKey, TupleKey},
    value::{
        Asked, Authorized, Config, OriginalDestination, Outside, Passed, PodEntry, Probe, Service,
        Splice,
    },
};

use super::error::CaptureError;

/// What of [`ABI_TAG`] does not tell the version.
const TAG_NAME: usize = 13;

/// Refuses an object that was built from other sources than the agent.
pub(super) fn check_object(object: &[u8]) -> Result<(), CaptureError> {
    let found = object.windows(ABI_TAG.len()).find(|at| at[..TAG_NAME] == ABI_TAG[..TAG_NAME]);
    if found == Some(&ABI_TAG[..]) {
        return Ok(());
    }
    let version = found.map(|tag| u32::from_le_bytes([tag[13], tag[14], tag[15], 0]).to_string());
    let found = version.unwrap_or_else(|| "unknown".to_owned());
    Err(CaptureError::Object { found, expected: ABI_VERSION })
}

/// Refuses maps pinned in `directory` that are not laid out as this agent's. Those that
/// are missing will be made.
pub(super) fn check_pins(directory: &Path) -> Result<(), CaptureError> {
    for name in map::PINNED {
        let path = directory.join(name);
        if !path.exists() {
            continue;
        }
        let info =
            MapInfo::from_pin(&path).map_err(|source| CaptureError::Map { map: name, source })?;
        let (found, expected) = ((info.key_size(), info.value_size()), sizes(name));
        if found != expected {
            let version = ABI_VERSION;
            return Err(CaptureError::Layout { path, found, expected, version });
        }
    }
    Ok(())
}

/// Bytes of a pinned map's keys and values.
fn sizes(name: &str) -> (u32, u32) {
    const U32: usize = size_of::<u32>();
    const U64: usize = size_of::<u64>();
    let (key, value) = match name {
        map::CONFIG => (U32, size_of::<Config>()),
        map::PODS => (U64, size_of::<PodEntry>()),
        map::ADDRESSES => (size_of::<AddressKey>(), U32),
        map::OUTBOUND_PORTS | map::INBOUND_PORTS => (size_of::<PortKey>(), U32),
        // The length of the prefix comes first.
        map::OUTBOUND_CIDRS => (U32 + size_of::<AddressKey>(), U32),
        map::ASKED => (U32, size_of::<Asked>()),
        map::VOUCHED => (U32, U32),
        map::ORIGINAL_DESTINATIONS => {
            (size_of::<ConnectionKey>(), size_of::<OriginalDestination>())
        }
        // Sockets, by descriptor.
        map::LISTENERS => (size_of::<ListenerKey>(), U32),
        map::SPLICED => (size_of::<SpliceKey>(), U32),
        map::VERDICTS | map::AUTHORIZED_COUNT | map::ALIVE_UNTIL => (U32, U64),
        map::SERVICES => (size_of::<ServiceKey>(), size_of::<Service>()),
        map::AUTHORIZED => (size_of::<TupleKey>(), size_of::<Authorized>()),
        map::PASSED => (U32, size_of::<Passed>()),
        map::PROBERS => (U64, U32),
        map::POD_ADDRESSES => (size_of::<Address>(), U64),
        map::PROBES => (size_of::<TupleKey>(), size_of::<Probe>()),
        map::OUTSIDES => (size_of::<Address>(), size_of::<Outside>()),
        map::SPLICE => (U32, size_of::<Splice>()),
        map::LEGS => (size_of::<TupleKey>(), U64),
        map::GRANTS => (size_of::<SpliceKey>(), U64),
        // A ring of bytes.
        _ => (0, 0),
    };
    (u32::try_from(key).unwrap_or(u32::MAX), u32::try_from(value).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_other_sources_is_told_from_ours() {
        let ours = [b"\x7fELF".as_slice(), &ABI_TAG, b"\0"].concat();
        check_object(&ours).unwrap();
        let mut older = ours.clone();
        older[4 + TAG_NAME] ^= 0x40;
        for (object, found) in
            [(older, (ABI_VERSION ^ 0x40).to_string()), (ours[..12].to_vec(), "unknown".into())]
        {
            let error = check_object(&object).unwrap_err().to_string();
            assert!(error.contains(&format!("version {found},")), "{error}");
            assert!(error.contains("cargo xtask ebpf"), "{error}");
        }
    }
}

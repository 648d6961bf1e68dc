//! Where a captured connection wanted to go, as `sock_ops` published it.
#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::maps::{HashMap, Map, MapData};
use mesh_common::{abi::map, key::ConnectionKey, value::OriginalDestination};

use super::{error::CaptureError, maps::is_absent};

/// One pod's view of the published original destinations.
#[derive(Debug)]
pub(super) struct OriginalDestinations {
    cookie: u64,
    map: Mutex<HashMap<MapData, ConnectionKey, OriginalDestination>>,
}

impl OriginalDestinations {
    /// Opens the pinned map anew, so that pods do not share a lock.
    pub(super) fn open(directory: &Path, cookie: u64) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError::Map { map: map::ORIGINAL_DESTINATIONS, source };
        let data = MapData::from_pin(directory.join(map::ORIGINAL_DESTINATIONS)).map_err(failed)?;
        let map = Map::from_map_data(data).and_then(HashMap::try_from).map_err(failed)?;
        Ok(Self { cookie, map: Mutex::new(map) })
    }

    /// What the client at `peer` asked for; each connection can be asked about once.
    /// `None` where nothing was published: it was not captured.
    pub(super) fn take(&self, peer: SocketAddr) -> Result<Option<SocketAddr>, CaptureError> {
        let key = ConnectionKey::new(self.cookie, peer.ip().into(), peer.port());
        let failed = |source| CaptureError::Map { map: map::ORIGINAL_DESTINATIONS, source };
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match map.get(&key, 0) {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match map.remove(&key) {
            Err(error) if !is_absent(&error) => return Err(failed(error)),
            _ => {}
        }
        let port = u16::try_from(found.port).unwrap_or_default();
        Ok(Some(SocketAddr::new(IpAddr::from(found.address), port)))
    }
}

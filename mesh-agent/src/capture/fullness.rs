//! How full the maps are, and whether they have the size that the options ask for.
#![forbid(unsafe_code)]

use std::{os::fd::AsFd, path::Path};

use aya::maps::MapInfo;
use mesh_common::abi::{capacity, map};

use super::{
    bpf::{count_keys, open_pin},
    maps::MapCapacities,
    node::Capture,
};

/// One map with its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapFill {
    pub map: &'static str,
    pub entries: u32,
    /// As the kernel has it.
    pub capacity: u32,
    /// As the options say. Another number than `capacity`: the map is an older one.
    pub wanted: u32,
}

impl MapFill {
    /// Whether an operator should know: from 80 % on.
    pub fn is_filling(&self) -> bool {
        u64::from(self.entries) * 5 >= u64::from(self.capacity) * 4
    }

    /// Whether the next time is worth another warning: below 70 %.
    pub fn has_room(&self) -> bool {
        u64::from(self.entries) * 10 < u64::from(self.capacity) * 7
    }
}

/// Every map that can be full, as it is pinned in `directory`. Those that are not there
/// are left out.
pub(super) fn fills(directory: &Path, capacities: &MapCapacities) -> Vec<MapFill> {
    let maps = capacities.by_map().into_iter().chain([(map::PROBERS, capacity::PROBERS)]);
    let fill = |(map, wanted): (&'static str, u32)| {
        let pin = directory.join(map);
        let info = MapInfo::from_pin(&pin).ok()?;
        let capacity = info.max_entries();
        let fd = open_pin(&pin).ok()?;
        let entries = count_keys(fd.as_fd(), info.key_size(), capacity);
        Some(MapFill { map, entries, capacity, wanted })
    };
    maps.filter_map(fill).collect()
}

impl Capture {
    /// How full the maps are. Asks the kernel for every key: not for every request.
    pub fn map_fills(&self) -> Vec<MapFill> {
        fills(&self.pins.maps(), &self.capacities)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_comes_at_four_fifths_and_once_until_there_is_room() {
        let told = |entries, capacity| {
            let fill = MapFill { map: "M", entries, capacity, wanted: capacity };
            (fill.is_filling(), fill.has_room())
        };
        assert_eq!(told(79, 100), (false, false));
        assert_eq!(told(80, 100), (true, false));
        assert_eq!(told(69, 100), (false, true));
        assert_eq!(told(1, 1), (true, false));
        assert_eq!(told(0, 1), (false, true));
        assert_eq!(told(u32::MAX, u32::MAX), (true, false));
    }
}

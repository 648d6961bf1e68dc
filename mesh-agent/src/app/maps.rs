//! How full the kernel's maps are: metrics, and a warning well before the end.

use std::collections::BTreeSet;

use super::Agent;
use crate::admin::MapView;

/// Remembers which maps it has warned of.
#[derive(Default)]
pub(super) struct Watch(BTreeSet<&'static str>);

impl Watch {
    /// Counts the maps' entries.
    pub(super) fn look(&mut self, agent: &Agent) {
        for fill in agent.capture.map_fills() {
            agent.dataplane.metrics.map_fill(fill.map, fill.entries, fill.capacity);
            if fill.is_filling() {
                if self.0.insert(fill.map) {
                    tracing::warn!(
                        map = fill.map,
                        entries = fill.entries,
                        capacity = fill.capacity,
                        "a map of the kernel's is nearly full: raise it by --map-size"
                    );
                }
            } else if fill.has_room() {
                self.0.remove(fill.map);
            }
        }
    }
}

impl Agent {
    pub(super) fn maps(&self) -> Vec<MapView> {
        let fills = self.capture.map_fills().into_iter();
        let view = |fill: crate::capture::MapFill| MapView {
            map: fill.map.to_owned(),
            entries: fill.entries,
            capacity: fill.capacity,
            wanted: fill.wanted,
        };
        fills.map(view).collect()
    }
}

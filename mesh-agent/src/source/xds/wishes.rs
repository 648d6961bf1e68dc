//! Names that are wanted from a control plane though no resource needs them.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::ResourceType;

/// By type and name, how many want it.
pub(super) type Wanted = BTreeMap<(ResourceType, Arc<str>), usize>;

/// What is wanted, in many hands: each [`Wishes::want`] holds until its
/// [`Wishes::unwant`]. The source asks for the names on whatever stream it has, and what
/// comes is in the snapshot, as everything else.
#[derive(Debug, Clone, Default)]
pub struct Wishes(Arc<watch::Sender<Wanted>>);

impl Wishes {
    /// Asks for a name. Who wants many bounds their number.
    pub fn want(&self, kind: ResourceType, name: Arc<str>) {
        self.0.send_if_modified(|wanted| {
            let holders = wanted.entry((kind, name)).or_default();
            *holders += 1;
            *holders == 1
        });
    }

    /// Takes one wish back.
    pub fn unwant(&self, kind: ResourceType, name: &Arc<str>) {
        let key = (kind, Arc::clone(name));
        self.0.send_if_modified(|wanted| match wanted.get_mut(&key) {
            Some(holders) if *holders > 1 => {
                *holders -= 1;
                false
            }
            Some(_) => wanted.remove(&key).is_some(),
            None => false,
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Wanted> {
        let mut receiver = self.0.subscribe();
        receiver.mark_changed();
        receiver
    }
}

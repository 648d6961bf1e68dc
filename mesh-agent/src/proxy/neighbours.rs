//! Pods of this node whose tunnels to each other need not leave the agent.
//!
//! Both ends of such a tunnel are this agent: it holds both certificates, and TLS from the
//! agent to itself would prove to it what it knows. What TLS would have asked is asked
//! without it: who the endpoint should be, whether both have certificates that those whom
//! the node trusts vouch for, and again whenever trust changes. All else, policy first, is
//! [`super::inbound`]'s as ever.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    identity::{IdentityManager, TrustBundles},
    model::{captured::Pod, identity::Identity, workload::WorkloadUid},
    transport::hbone::HboneTarget,
};

/// Who is there now. Read for each new tunnel, without a lock.
#[derive(Debug, Default)]
pub struct Neighbours {
    table: ArcSwap<Table>,
    /// What follows from the roots that are trusted now, told whenever these are others: one
    /// look at the certificates for all tunnels.
    judged: watch::Sender<Judged>,
}

#[derive(Debug, Clone, Default)]
pub struct Judged {
    /// Whom these vouch for.
    pub proven: Arc<HashSet<Identity>>,
    pub trust: Arc<TrustBundles>,
}

#[derive(Debug, Default)]
struct Table {
    by_uid: HashMap<WorkloadUid, Neighbour>,
    by_address: HashMap<IpAddr, WorkloadUid>,
    /// Which roots vouched for all of these.
    trust: Arc<TrustBundles>,
}

#[derive(Debug, Clone)]
struct Neighbour {
    pod: Arc<Pod>,
    addresses: Vec<IpAddr>,
    /// Cancelled when it is one no more: its tunnels should end when they can.
    leaving: CancellationToken,
}

impl Neighbour {
    fn is(&self, pod: &Arc<Pod>, addresses: &[IpAddr]) -> bool {
        Arc::ptr_eq(&self.pod, pod) && self.addresses == addresses
    }
}

/// A tunnel that may stay within the agent.
#[derive(Debug)]
pub(super) struct Meeting {
    pub(super) destination: Arc<Pod>,
    pub(super) standing: Standing,
}

/// What a tunnel within the agent lives by.
#[derive(Debug)]
pub(super) struct Standing {
    proven: [Identity; 2],
    judged: watch::Receiver<Judged>,
    leaving: [CancellationToken; 2],
}

impl Neighbours {
    /// Puts `pods` in the place of those that were, each with the addresses by which it may
    /// be met. All of them are among those who are proven.
    pub fn replace(&self, pods: Vec<(Arc<Pod>, Vec<IpAddr>)>, judged: Judged) {
        let before = self.table.load_full();
        let mut by_address = HashMap::new();
        let mut shared = Vec::new();
        for (pod, addresses) in &pods {
            for address in addresses {
                match by_address.entry(*address) {
                    Entry::Vacant(entry) => drop(entry.insert(pod.workload.uid.clone())),
                    Entry::Occupied(_) => shared.push(*address),
                }
            }
        }
        by_address.retain(|address, _| !shared.contains(address));
        let neighbour = |(pod, addresses): (Arc<Pod>, Vec<IpAddr>)| {
            let uid = pod.workload.uid.clone();
            let known = before.by_uid.get(&uid);
            let known = known.filter(|known| known.is(&pod, &addresses));
            let new = || Neighbour { pod, addresses, leaving: CancellationToken::new() };
            (uid, known.cloned().unwrap_or_else(new))
        };
        let by_uid: HashMap<_, _> = pods.into_iter().map(neighbour).collect();
        let left: Vec<_> = before
            .by_uid
            .iter()
            .filter(|(uid, was)| {
                by_uid.get(*uid).is_none_or(|now| !now.is(&was.pod, &was.addresses))
            })
            .map(|(_, was)| was.leaving.clone())
            .collect();
        let trust = Arc::clone(&judged.trust);
        self.table.store(Arc::new(Table { by_uid, by_address, trust }));
        left.iter().for_each(CancellationToken::cancel);
        self.judge(judged);
    }

    /// Tells all tunnels what follows from the roots that are trusted now.
    pub fn judge(&self, judged: Judged) {
        self.judged.send_if_modified(|known| {
            let differs = !Arc::ptr_eq(&known.trust, &judged.trust);
            if differs {
                *known = judged;
            }
            differs
        });
    }

    /// The tunnel from `source` to `target`, if it may stay here. `None`: by the wire.
    pub(super) fn meeting(
        &self,
        source: &Pod,
        target: &HboneTarget,
        identities: &IdentityManager,
    ) -> Option<Meeting> {
        let table = self.table.load();
        let [from, to] = table.pair(source, target)?;
        let mut judged = self.judged.subscribe();
        judged.borrow_and_update();
        // Where it has changed since, nobody has asked yet what that means.
        let as_then = Arc::ptr_eq(&table.trust, &identities.trust().borrow());
        as_then.then(|| Meeting {
            destination: Arc::clone(&to.pod),
            standing: Standing {
                proven: [from, to].map(|neighbour| neighbour.pod.workload.identity.clone()),
                judged,
                leaving: [from.leaving.clone(), to.leaving.clone()],
            },
        })
    }
}

impl Table {
    fn pair(&self, source: &Pod, target: &HboneTarget) -> Option<[&Neighbour; 2]> {
        let from = self.by_uid.get(&source.workload.uid)?;
        let to = self.by_uid.get(self.by_address.get(&target.authority.ip())?)?;
        let workload = &to.pod.workload;
        let is_meant = workload.identity == target.identity
            && target.workload.as_ref().is_none_or(|uid| *uid == workload.uid)
            && workload.uid != source.workload.uid
            && source.workload.identity == from.pod.workload.identity;
        is_meant.then_some([from, to])
    }
}

impl Standing {
    /// Whom the destination's side knows the source to be.
    pub(super) fn source(&self) -> &Identity {
        &self.proven[0]
    }

    /// Resolves when the tunnel should end as soon as it can.
    pub(super) fn leaving(&self) -> impl Future<Output = ()> + Send + 'static {
        let [from, to] = self.leaving.clone();
        async move {
            tokio::select! {
                () = from.cancelled() => {}
                () = to.cancelled() => {}
            }
        }
    }

    /// Resolves when one of the two is not vouched for any more: who it was.
    pub(super) async fn unproven(mut self) -> Identity {
        while self.judged.changed().await.is_ok() {
            let proven = Arc::clone(&self.judged.borrow_and_update().proven);
            if let Some(fallen) = self.proven.iter().find(|identity| !proven.contains(identity)) {
                return fallen.clone();
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;

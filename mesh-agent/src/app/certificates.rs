//! Where workload certificates come from, and what follows from new ones.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::sync::{broadcast::error::RecvError, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Agent, UPDATES, configuration::Source};
use crate::{
    config::{AgentConfig, SdsConfig},
    identity::{
        CertificateSource, DevelopmentCa, Renewal, SdsCertificates, SdsOptions, Secrets,
        Subscriptions,
    },
    model::{identity::Identity, secret::Secret},
    proxy::Dataplane,
    source::{AdsSource, AdsStatus, Delivery, Delta, ResourceType, Update, Wishes},
};

/// How long a secret may take before a workload is served without, which is: refused.
const SECRET_PATIENCE: Duration = Duration::from_secs(3);

/// The one source of workload certificates.
pub(super) enum Certificates {
    Builtin(Arc<DevelopmentCa>),
    Sds {
        source: Arc<SdsCertificates>,
        /// `None`: secrets come with the configuration.
        server: Option<Box<AdsSource>>,
    },
}

/// A control plane is asked for secrets that no cluster needs.
struct OnStream(Wishes);

impl Subscriptions for OnStream {
    fn want(&self, secret: &Arc<str>) {
        self.0.want(ResourceType::Secret, Arc::clone(secret));
    }

    fn unwant(&self, secret: &Arc<str>) {
        self.0.unwant(ResourceType::Secret, secret);
    }
}

/// Files say everything unasked.
struct InFiles;

impl Subscriptions for InFiles {
    fn want(&self, _: &Arc<str>) {}

    fn unwant(&self, _: &Arc<str>) {}
}

impl Certificates {
    pub(super) fn open(config: &AgentConfig, configuration: &Source) -> anyhow::Result<Self> {
        let Some(SdsConfig { server, names, validation }) = &config.identity.sds else {
            let ca_dir = &config.identity.ca_dir;
            let ca = DevelopmentCa::open_or_create(ca_dir, &config.node.trust_domain)
                .with_context(|| format!("development CA in {}", ca_dir.display()))?
                .with_ttl(config.identity.certificate_ttl);
            return Ok(Self::Builtin(Arc::new(ca)));
        };
        let server = server.as_ref();
        let server = server.map(|options| Box::new(AdsSource::new(options.as_ref().clone())));
        let wishes =
            server.as_ref().map(|server| server.wishes()).or_else(|| configuration.wishes());
        let subscriptions: Arc<dyn Subscriptions> = match wishes {
            Some(wishes) => Arc::new(OnStream(wishes)),
            None => Arc::new(InFiles),
        };
        let options = SdsOptions {
            names: names.clone(),
            validation: validation.as_str().into(),
            trust_domain: config.node.trust_domain.clone(),
            patience: SECRET_PATIENCE,
        };
        Ok(Self::Sds { source: Arc::new(SdsCertificates::new(options, subscriptions)), server })
    }

    pub(super) fn source(&self) -> Arc<dyn CertificateSource> {
        match self {
            Self::Builtin(ca) => Arc::<DevelopmentCa>::clone(ca),
            Self::Sds { source, .. } => Arc::<SdsCertificates>::clone(source),
        }
    }

    /// The connection to a server of its own.
    pub(super) fn status(&self) -> Option<watch::Receiver<Arc<AdsStatus>>> {
        match self {
            Self::Builtin(_) => None,
            Self::Sds { server, .. } => server.as_ref().map(|server| server.status()),
        }
    }

    /// Delivers secrets from now on.
    pub(super) fn spawn(self, agent: &Arc<Agent>) {
        let Self::Sds { source, server } = self else { return };
        match server {
            Some(server) => {
                let (updates, received) = mpsc::channel(UPDATES);
                tokio::spawn(server.watch(updates, agent.stop.clone()));
                tokio::spawn(deliver(source, received));
            }
            None => _ = tokio::spawn(deliver_snapshots(source, Arc::clone(agent))),
        }
    }
}

/// What comes with the configuration.
async fn deliver_snapshots(source: Arc<SdsCertificates>, agent: Arc<Agent>) {
    let snapshots = &agent.dataplane.snapshot;
    let mut changes = snapshots.changes();
    loop {
        source.deliver(&snapshots.load().secrets);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// What a server of its own says.
async fn deliver(source: Arc<SdsCertificates>, mut updates: mpsc::Receiver<Update>) {
    let mut secrets = Secrets::default();
    while let Some(update) = updates.recv().await {
        let named = |secret: Secret| (Arc::clone(&secret.name), Arc::new(secret));
        match update {
            Update::Resources(Delivery { resources, .. }) => {
                let all: HashMap<_, _> = resources.secrets.into_iter().map(named).collect();
                secrets = Arc::new(all);
            }
            Update::Changes(Delta { changes, .. }) => {
                let table = Arc::make_mut(&mut secrets);
                for name in &changes.removed.secrets {
                    table.remove(name);
                }
                table.extend(changes.updated.secrets.into_iter().map(named));
            }
            Update::Rejected(reasons) => {
                for reason in &reasons {
                    tracing::error!("secret refused: {reason}");
                }
            }
            // A name that is not to be had is no secret.
            Update::Answered(_) => {}
        }
        source.deliver(&secrets);
    }
}

/// Sees to it that what was authenticated by older certificates or roots serves nothing
/// new. What runs on it goes on.
pub(super) async fn retire(dataplane: Arc<Dataplane>, stop: CancellationToken) {
    let mut renewals = dataplane.identities.renewals();
    let mut trust = dataplane.identities.trust();
    trust.mark_unchanged();
    loop {
        let renewal = tokio::select! {
            renewal = renewals.recv() => match renewal {
                Ok(renewal) => renewal,
                // Whichever they were, all of them are covered.
                Err(RecvError::Lagged(_)) => Renewal::Trust,
                Err(RecvError::Closed) => return,
            },
            Ok(()) = trust.changed() => Renewal::Trust,
            () = stop.cancelled() => return,
        };
        let outdated = |identity: Option<&Identity>| match &renewal {
            Renewal::Certificate(renewed) => identity == Some(renewed),
            Renewal::Trust => true,
        };
        dataplane.connector.hbone.retain(|key| !outdated(Some(&key.source_identity)));
        dataplane.http.pool.retain(|key| {
            let by_hbone = key.destination_identity.is_some();
            !by_hbone || !outdated(key.source_identity.as_ref())
        });
    }
}

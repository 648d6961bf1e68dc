//! How a connection stands by the configuration in force.

use std::sync::Arc;

use http::StatusCode;

use super::{HttpConnection, Judged, reply::Reply};
use crate::{
    model::listener::{HttpConnectionManager, TerminalFilter},
    observe::flags::ResponseFlag,
    policy::Permit,
    proxy::rejudge::{self, Standing},
    snapshot::Snapshot,
};

impl HttpConnection {
    /// The connection's permit by the snapshot in force: made anew where that is
    /// another than last time.
    pub(super) fn judge(&self, snapshot: &Snapshot) -> Result<Arc<Judged>, Reply> {
        let judged = self.judged.load_full();
        if judged.version == snapshot.version {
            return Ok(judged);
        }
        let began = TerminalFilter::Http(Arc::clone(&self.http));
        let policy = self.services.outbound_policy;
        let standing = rejudge::standing(&judged.permit, Some(&began), snapshot, policy);
        if let Standing::Denied(revoked) = &standing {
            tracing::debug!(%revoked, "connection denied by a later configuration");
            let flag = Some(ResponseFlag::Denied);
            let details = format!("rbac_access_denied: {revoked}");
            let reply = Reply::new(StatusCode::FORBIDDEN, "RBAC: access denied", flag, details);
            return Err(Reply { close: true, ..reply });
        }
        self.stands(&standing, snapshot);
        Ok(self.judged.load_full())
    }

    /// Takes note of how the connection stands under `snapshot`. Requests that come where
    /// it is not served as HTTP any more are still served as they were last.
    pub(in crate::proxy) fn stands(&self, standing: &Standing, snapshot: &Snapshot) {
        let renewed = match standing {
            Standing::Holds(renewed) => Some(renewed),
            Standing::Drains(renewed) => {
                self.retiring.cancel();
                renewed.as_ref()
            }
            Standing::Denied(_) => None,
        };
        if let Some(renewed) = renewed
            && let Some(TerminalFilter::Http(http)) = renewed.flow().terminal()
        {
            let (version, permit) = (snapshot.version, renewed.clone());
            let routes = snapshot.routes(&http.routes);
            self.judged.store(Arc::new(Judged { version, permit, routes }));
        }
    }

    /// The connection manager of the permit's chain.
    pub(super) fn manager<'a>(
        &self,
        permit: &'a Permit,
    ) -> Result<&'a HttpConnectionManager, Reply> {
        match permit.flow().terminal() {
            Some(TerminalFilter::Http(http)) => Ok(http),
            Some(TerminalFilter::TcpProxy(_)) | None => {
                let details = "the listener is not HTTP";
                let flag = Some(ResponseFlag::NoRouteFound);
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Err(Reply { close: true, ..Reply::new(status, "", flag, details) })
            }
        }
    }
}

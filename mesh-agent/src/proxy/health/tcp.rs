//! By TCP: a connection, and what is said on it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Ill, Session, Verdict, connect, has_all};
use crate::{
    model::cluster::TcpProbe,
    proxy::{Origination, story},
    route::Destination,
};

/// What is expected has to be within so much.
const RESPONSE_MAX_BYTES: usize = 64 * 1024;

impl Session {
    pub(super) async fn tcp(&mut self, destination: &Destination, probe: &TcpProbe) -> Verdict {
        let mut stream = match self.kept.stream.take() {
            Some(stream) => stream,
            None => {
                let contexts = &self.dataplane.connector.tls;
                let tls = Origination::opaque(contexts, destination)
                    .map_err(|failure| Ill::unreachable(failure.detail))?;
                let (address, timeout) = (self.address(), self.check.timeout);
                let connected = connect(address, destination, tls.as_ref(), timeout).await;
                connected.map_err(Ill::unreachable)?
            }
        };
        let failed = |error: std::io::Error| Ill::unreachable(story(&error));
        if !probe.send.is_empty() {
            stream.write_all(&probe.send).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
        }
        if probe.receive.is_empty() {
            return Ok(false);
        }
        let mut came = Vec::new();
        while !has_all(&probe.receive, &came) {
            if came.len() >= RESPONSE_MAX_BYTES {
                return Err(Ill::unreachable("what is expected does not come"));
            }
            if stream.read_buf(&mut came).await.map_err(failed)? == 0 {
                return Err(Ill::unreachable("the connection was closed"));
            }
        }
        self.kept.stream = Some(stream);
        Ok(false)
    }
}

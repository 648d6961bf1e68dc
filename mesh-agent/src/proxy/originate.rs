//! TLS that the agent speaks to endpoints outside the mesh, where a cluster wants it.

use std::{io, sync::Arc, time::Duration};

use http::{HeaderMap, uri::Authority};
use tokio::net::TcpStream;

use super::{Failure, failure};
use crate::{
    identity::refused_by_peer,
    identity::upstream::{
        Alpn, Names, RefusedServer, UpstreamContext, UpstreamContexts, UpstreamTlsError,
        refused_server,
    },
    model::tls::TlsOrigination,
    observe::flags::ResponseFlag,
    route::Destination,
    transport::{
        http_pool::{HttpProtocol, TlsKey},
        tls::{self, TlsStream},
    },
};

/// The TLS of one connection to be made.
#[derive(Debug, Clone)]
pub struct Origination {
    context: Arc<UpstreamContext>,
    alpn: Alpn,
    /// Of the request, where the cluster wants it to decide.
    host: Option<Arc<str>>,
    /// What the endpoint is called, where the cluster wants that.
    endpoint: Option<Arc<str>>,
}

impl Origination {
    /// What a connection that HTTP is to speak on takes; `None`: it is in the clear, or
    /// by HBONE.
    ///
    /// # Errors
    /// A certificate or what is to be proven is not there: nothing may be dialled.
    pub(super) fn http(
        contexts: &UpstreamContexts,
        destination: &Destination,
        protocol: HttpProtocol,
        authority: &Authority,
        headers: &HeaderMap,
    ) -> Result<Option<Self>, Failure> {
        let Some(settings) = destination.tls() else { return Ok(None) };
        let by_host = &settings.settings.by_host;
        let host = by_host.any().then(|| {
            let header = by_host.header.as_ref().and_then(|name| headers.get(&**name));
            let header = header.and_then(|value| value.to_str().ok());
            let header = header.map(str::trim).filter(|value| !value.is_empty());
            // Without the port, whose place is not in a certificate.
            let header = header.and_then(|value| value.parse::<Authority>().ok());
            header.as_ref().unwrap_or(authority).host().into()
        });
        let alpn = match protocol {
            HttpProtocol::Http1 => Alpn::Http1,
            HttpProtocol::Http2 => Alpn::Http2,
        };
        Self::named(contexts, settings, destination, (alpn, host)).map(Some)
    }

    /// As [`Origination::http`], for opaque bytes.
    pub(super) fn opaque(
        contexts: &UpstreamContexts,
        destination: &Destination,
    ) -> Result<Option<Self>, Failure> {
        let Some(settings) = destination.tls() else { return Ok(None) };
        Self::named(contexts, settings, destination, (Alpn::Opaque, None)).map(Some)
    }

    fn named(
        contexts: &UpstreamContexts,
        origination: &TlsOrigination,
        destination: &Destination,
        (alpn, host): (Alpn, Option<Arc<str>>),
    ) -> Result<Self, Failure> {
        let TlsOrigination { cluster, settings, .. } = origination;
        let context = contexts.context(origination).map_err(|error| Failure::from(&error))?;
        let endpoint = destination.hostname().filter(|_| settings.sni_by_endpoint);
        let endpoint = endpoint.map(|name| match name.parse::<Authority>() {
            // Without the port, as above.
            Ok(authority) if authority.port().is_some() => authority.host().into(),
            _ => Arc::clone(name),
        });
        let names = Names { host: host.as_deref(), endpoint: endpoint.as_deref() };
        if context.sni(names).is_none() && settings.sni_by_endpoint && settings.sni_is_san {
            let (cluster, endpoint) = (cluster.clone(), destination.address());
            return Err((&UpstreamTlsError::NoName { cluster, endpoint }).into());
        }
        Ok(Self { context, alpn, host, endpoint })
    }

    /// Who may share the connection.
    pub(super) fn key(&self) -> TlsKey {
        TlsKey {
            context: self.context.id(),
            host: self.host.clone(),
            endpoint: self.endpoint.clone(),
        }
    }

    /// The handshake.
    pub(super) async fn run(
        &self,
        stream: TcpStream,
        destination: &Destination,
        timeout: Duration,
    ) -> Result<TlsStream, Failure> {
        let address = destination.address();
        let names = Names { host: self.host.as_deref(), endpoint: self.endpoint.as_deref() };
        let (config, name) = self.context.connection(self.alpn, names, address.ip());
        let failed = |error: &io::Error| {
            let cluster = destination.cluster().map_or("", |name| &name.0);
            Failure::handshake(&format!("TLS to {address} of cluster `{cluster}`"), error)
        };
        let connected = tls::connect(stream, config, name, timeout).await;
        let stream = connected.map_err(|error| failed(&error))?;
        let negotiated = stream.get_ref().1.alpn_protocol();
        let wrong = match self.alpn {
            Alpn::Http1 => negotiated == Some(b"h2"),
            Alpn::Http2 => negotiated.is_some_and(|protocol| protocol != b"h2"),
            Alpn::Opaque => false,
        };
        if wrong {
            let reason = "the server chose another protocol (ALPN) than the cluster speaks";
            return Err(failed(&io::Error::other(reason)));
        }
        Ok(stream)
    }
}

impl Failure {
    fn handshake(what: &str, error: &io::Error) -> Self {
        let (reason, why) = match (refused_server(error), refused_by_peer(error)) {
            (Some(refused), _) => (reason(&refused), refused.to_string()),
            (None, Some(alert)) => ("refused_by_peer", alert.to_string()),
            (None, None) => ("tls_handshake_failed", failure::story(error)),
        };
        let detail = format!("{what}: {why}");
        let transport = Some(format!("TLS error: {why}"));
        let flag = ResponseFlag::UpstreamConnectionFailure;
        Self { flag, reason, policy: None, detail, transport }
    }
}

const fn reason(refused: &RefusedServer) -> &'static str {
    match refused {
        RefusedServer::Malformed { .. } => "server_malformed",
        RefusedServer::Untrusted { .. } => "server_untrusted",
        RefusedServer::OtherName { .. } | RefusedServer::OtherHost { .. } => "server_other_name",
        RefusedServer::OtherHash { .. } => "server_other_hash",
    }
}

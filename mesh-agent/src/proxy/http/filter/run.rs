//! The filters' way in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    request::Parts,
    uri::Authority,
};
use http_body::Body as _;

use super::{
    super::{
        HttpConnection, Judged, RequestBody, RequestBodyError,
        call::Caller,
        descriptors::Counted,
        held::Share,
        mutations::{self, OnTheWayOut},
        record::RequestLog,
        reply::{Reply, ToGrpc},
        reset::expired_reply,
        timing::Deadline,
    },
    Next, RESOURCE_EXHAUSTED, Room, cors, csrf, ext_authz,
    fault::{Ended, Injector},
    header_mutations, jwt_authn,
};
use crate::{
    model::{
        cluster::ClusterName,
        ext_authz::ExtAuthz,
        filter::{Fault, HealthCheck, HttpFilter, Levels, LocalRateLimit, SetMetadata},
        listener::HttpConnectionManager,
        metadata::DynamicMetadata,
        rate_limit::RateLimit,
        route::{Route, RouteAction},
    },
    observe::flags::ResponseFlag,
    policy::{Place, matcher::header_matches},
    snapshot::Snapshot,
};

const HEALTH_CHECKED_CLUSTER: HeaderName =
    HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");

/// What filters know of a request beside its head.
pub(in crate::proxy::http) struct Filtering<'a> {
    pub(in crate::proxy::http) connection: &'a HttpConnection,
    pub(in crate::proxy::http) judged: &'a Arc<Judged>,
    pub(in crate::proxy::http) http: &'a HttpConnectionManager,
    pub(in crate::proxy::http) snapshot: &'a Snapshot,
    /// What the route says for filters.
    pub(in crate::proxy::http) levels: Levels<'a>,
    /// `None`, like the cluster: there is none.
    pub(in crate::proxy::http) route: Option<&'a Route>,
    pub(in crate::proxy::http) cluster: Option<&'a ClusterName>,
    pub(in crate::proxy::http) authority: &'a Authority,
    /// How long the stream may be silent.
    pub(in crate::proxy::http) idle: Option<Duration>,
}

impl Filtering<'_> {
    /// Runs one filter; those that judge, or that begin the request anew, have nothing to do
    /// here.
    ///
    /// # Errors
    /// The filter's own answer.
    pub(in crate::proxy::http) async fn run(
        &self,
        place: Place<'_>,
        filter: &HttpFilter,
        log: &mut RequestLog,
        head: &mut Parts,
        body: &mut RequestBody,
    ) -> Result<Next, Reply> {
        let Self { levels, snapshot, .. } = *self;
        let done = match filter {
            HttpFilter::HeaderMutation(filter) => {
                let mutations = header_mutations(filter, place.name, levels);
                for mutation in mutations.flat_map(|mutations| &mutations.request) {
                    mutations::mutate_head(mutation, log, self.judged.permit.flow(), head);
                }
                Ok(())
            }
            HttpFilter::Csrf(own) => {
                let policy = levels.csrf(place.name, own);
                let shadow = &mut log.record.origins.csrf;
                csrf::check(policy, &snapshot.runtime, head, self.authority.as_str(), shadow)
            }
            HttpFilter::Cors => self.cors(place, log, head),
            HttpFilter::Fault(own) => self.fault(levels.fault(place.name, own), log, head).await,
            HttpFilter::LocalRateLimit(own) => {
                self.limit(place, levels.local_rate_limit(place.name, own), log, head)
            }
            HttpFilter::GlobalRateLimit(filter) => {
                self.limit_globally(place, filter, log, head).await
            }
            HttpFilter::GrpcWeb => {
                self.grpc_web(place, log, head, body);
                Ok(())
            }
            HttpFilter::GrpcStats(config) => {
                self.grpc_stats(place, config, log, head, body);
                Ok(())
            }
            HttpFilter::HealthCheck(check) => self.health_check(place, check, log, head),
            HttpFilter::SetMetadata(all) => {
                set_metadata(all, &mut log.record.metadata);
                Ok(())
            }
            HttpFilter::Buffer(own) => match levels.buffer(place.name, *own) {
                Some(max) => self.buffer(max, log, head, body).await,
                None => Ok(()),
            },
            HttpFilter::StatefulSession(own) => {
                self.session(place, own, log, head);
                Ok(())
            }
            HttpFilter::Compressor(filter) => self.compress(place, filter, log, head, body),
            HttpFilter::Decompressor(filter) => self.expand(place, filter, log, head, body),
            HttpFilter::JwtAuthn(filter) => {
                let (caller, metadata) = (self.caller(), &mut log.record.metadata);
                return jwt_authn::run(filter, place, levels, caller, head, metadata).await;
            }
            HttpFilter::ExtAuthz(filter) => {
                return self.authorize(place, filter, log, head, body).await;
            }
            HttpFilter::OnDemand(_) | HttpFilter::Rbac(_) | HttpFilter::Discovered(_) => Ok(()),
        };
        done.map(|()| Next::Continue)
    }

    async fn authorize(
        &self,
        place: Place<'_>,
        filter: &ExtAuthz,
        log: &mut RequestLog,
        head: &mut Parts,
        body: &mut RequestBody,
    ) -> Result<Next, Reply> {
        let Some(question) =
            ext_authz::Question::of(filter, place, self.levels, self.snapshot, log)
        else {
            return Ok(Next::Continue);
        };
        if let Some(settings) = question.reads_body(body) {
            let mut deadline = Deadline::new(Arc::clone(&log.exchange), self.idle);
            let share = self.bodies();
            let read = deadline.run(body.read_ahead(settings.until(), &share)).await;
            let read = read.map_err(|expired| expired_reply(expired, log))?;
            let whole = read.map_err(|error| match error {
                RequestBodyError::NoRoom => no_room(&error),
                _ => Reply::bad_request("malformed request body"),
            })?;
            settings.check(whole, body)?;
        }
        let answer = question.ask(self.caller(), log, head, body).await;
        let passed = question.take(answer, Room::of(self.http), head, log)?;
        if !passed.for_client.is_empty() {
            log.on_the_way_out(place, OnTheWayOut::Append(passed.for_client), self.judged);
        }
        Ok(passed.next)
    }

    pub(super) fn caller(&self) -> Caller<'_> {
        let Self { connection, judged, snapshot, .. } = *self;
        Caller { services: &connection.services, permit: &judged.permit, snapshot }
    }

    /// What the request may keep of its body.
    fn bodies(&self) -> Share {
        self.connection.services.filters.bodies(self.judged.permit.flow().pod())
    }

    fn cors(&self, place: Place<'_>, log: &mut RequestLog, head: &Parts) -> Result<(), Reply> {
        let policies = cors::policies(place.name, self.levels, self.route);
        let (headers, reply) =
            policies.check(&self.snapshot.runtime, head, &mut log.record.origins.cors);
        if let Some(headers) = headers {
            log.on_the_way_out(place, OnTheWayOut::Set(headers), self.judged);
        }
        reply.map_or(Ok(()), Err)
    }

    async fn fault(&self, fault: &Fault, log: &mut RequestLog, head: &Parts) -> Result<(), Reply> {
        let runtime = &self.snapshot.runtime;
        let injector = Injector { fault, runtime, head, cluster: self.cluster };
        let pod = self.judged.permit.flow().pod();
        let memory = &self.connection.services.filters;
        let active = memory.faults(pod, &self.http.stat_prefix);
        let deadline = Deadline::new(Arc::clone(&log.exchange), self.idle);
        let injected = injector.inject(&active, deadline, &mut log.record.flags).await;
        injected.map_err(|ended| match ended {
            Ended::Aborted(reply) => reply,
            Ended::Expired(expired) => expired_reply(expired, log),
        })
    }

    fn health_check(
        &self,
        place: Place<'_>,
        check: &HealthCheck,
        log: &mut RequestLog,
        head: &Parts,
    ) -> Result<(), Reply> {
        if !check.headers.iter().all(|header| header_matches(header, head)) {
            return Ok(());
        }
        let cluster = self.connection.services.node_cluster.clone();
        let told = HeaderMap::from_iter([(HEALTH_CHECKED_CLUSTER, cluster)]);
        log.on_the_way_out(place, OnTheWayOut::Set(told), self.judged);
        match check.pass_through {
            true => Ok(()),
            false => Err(Reply::new(StatusCode::OK, "", None, "health_check_ok")),
        }
    }

    /// Reads a whole body before it goes on.
    async fn buffer(
        &self,
        max: u32,
        log: &RequestLog,
        head: &mut Parts,
        body: &mut RequestBody,
    ) -> Result<(), Reply> {
        if body.is_end_stream() {
            return Ok(());
        }
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut deadline = Deadline::new(Arc::clone(&log.exchange), self.idle);
        let share = self.bodies();
        match deadline.run(body.read_ahead(max.saturating_add(1), &share)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error @ RequestBodyError::NoRoom)) => return Err(no_room(&error)),
            Ok(Err(error)) => {
                let flag = Some(ResponseFlag::DownstreamConnectionTermination);
                let reply = Reply::new(StatusCode::BAD_REQUEST, "", flag, error.to_string());
                return Err(Reply { close: true, ..reply });
            }
            Err(expired) => return Err(expired_reply(expired, log)),
        }
        let length = body.ahead().len();
        if length > max {
            let (status, details) = (StatusCode::PAYLOAD_TOO_LARGE, "request_payload_too_large");
            let reply = Reply::new(status, "Payload Too Large", None, details);
            return Err(Reply { close: true, ..reply });
        }
        head.headers.remove(TRANSFER_ENCODING);
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        Ok(())
    }

    fn limit(
        &self,
        place: Place<'_>,
        config: &Arc<LocalRateLimit>,
        log: &mut RequestLog,
        head: &mut Parts,
    ) -> Result<(), Reply> {
        let includes = |fraction: &Option<_>| {
            let fraction = fraction.as_ref();
            fraction.is_some_and(|of| self.snapshot.runtime.includes(of, rand::random()))
        };
        if !includes(&config.enabled) {
            return Ok(());
        }
        let flow = self.judged.permit.flow();
        let counted = Counted { head, client: log.client(flow), cluster: self.cluster };
        let of_route = match self.route.map(|route| &route.action) {
            Some(RouteAction::Forward(action)) => Some(&action.rate_limits),
            _ => None,
        };
        let on = |limit: &&RateLimit| limit.disable_key.is_empty();
        let descriptors: Vec<_> = if config.descriptors.is_empty() {
            Vec::new()
        } else if !config.rate_limits.is_empty() {
            let own = config.rate_limits.iter().filter(on);
            own.filter_map(|limit| counted.under(limit)).collect()
        } else {
            let limits = of_route.into_iter().flat_map(|all| all.of(config.stage, config.host));
            limits.filter(on).filter_map(|limit| counted.under_routes(limit)).collect()
        };
        let now = Instant::now();
        let limiter = match config.per_connection {
            true => self.connection.limiter(config, now),
            false => self.connection.services.filters.limiter(flow.pod(), config, now),
        };
        let judgement = limiter.judge(&descriptors, now);
        let told = judgement.headers(config.x_ratelimit, now);
        if !told.is_empty() {
            log.on_the_way_out(place, OnTheWayOut::Append(told), self.judged);
        }
        if judgement.allowed {
            return Ok(());
        }
        if !includes(&config.enforced) {
            mutations::mutate_head(&config.request, log, flow, head);
            return Ok(());
        }
        // Only what is a status was let in.
        let status = StatusCode::from_u16(config.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        let flag = Some(ResponseFlag::RateLimited);
        let reply = Reply::new(status, "local_rate_limited", flag, "local_rate_limited");
        let headers = mutations::of_own_answer(&config.response, log, flow, head);
        let grpc = match config.resource_exhausted {
            true => ToGrpc::Code(RESOURCE_EXHAUSTED),
            false => ToGrpc::Mapped,
        };
        Err(Reply { headers: Some(Box::new(headers)), grpc, ..reply })
    }
}

/// As Envoy where its overload manager sheds load.
fn no_room(error: &RequestBodyError) -> Reply {
    let flag = Some(ResponseFlag::OverloadManager);
    let reply = Reply::new(StatusCode::SERVICE_UNAVAILABLE, "", flag, error.to_string());
    Reply { close: true, ..reply }
}

fn set_metadata(all: &[SetMetadata], metadata: &mut DynamicMetadata) {
    for SetMetadata { namespace, allow_overwrite, fields } in all {
        if *allow_overwrite || metadata.get::<&str>(namespace, &[]).is_none() {
            metadata.update(namespace, fields);
        }
    }
}

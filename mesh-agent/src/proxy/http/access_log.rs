//! The lines that a connection manager's access logs have of a request, and how it words its
//! own answers.
//!
//! What lines are made of is kept only where there are logs, and heads only where a log
//! reads them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, request::Parts};

use super::{
    Judged, grpc,
    mutations::{self, RequestValues},
    record::RequestLog,
};
use crate::{
    model::{
        access_log::{AccessLogs, Reads},
        listener::HttpConnectionManager,
        local_reply::{BodyFormat, LocalReply},
        route::HeaderMatcher,
        runtime::Runtime,
    },
    observe::{access_log::Lines, flags::ResponseFlags},
    policy::matcher::header_matches,
    proxy::log_filter::{Ended, wants},
};

/// A request that will have lines.
pub(super) struct Logging {
    logs: Arc<AccessLogs>,
    local_reply: Option<Arc<LocalReply>>,
    reads: Reads,
    judged: Arc<Judged>,
    /// As it went on, or came, where it did not.
    request: Option<Parts>,
    response: Option<(StatusCode, HeaderMap)>,
    trailers: Option<HeaderMap>,
    /// How often it was sent.
    attempts: u32,
}

impl Logging {
    /// `None` where there is nothing to do.
    pub(super) fn of(http: &HttpConnectionManager, judged: &Arc<Judged>) -> Option<Box<Self>> {
        let HttpConnectionManager { access_logs: logs, local_reply, .. } = http;
        (!logs.is_empty() || local_reply.is_some()).then(|| {
            let mut reads = logs.reads();
            reads.request |= local_reply.is_some();
            Box::new(Self {
                logs: Arc::clone(logs),
                local_reply: local_reply.clone(),
                reads,
                judged: Arc::clone(judged),
                request: None,
                response: None,
                trailers: None,
                attempts: 0,
            })
        })
    }

    /// The request as it goes on; the first that is told stays.
    pub(super) fn request(&mut self, head: &Parts) {
        if self.reads.request && self.request.is_none() {
            self.request = Some(head.clone());
        }
    }

    /// The request as it goes on, whatever was told before.
    pub(super) fn request_anew(&mut self, head: &Parts) {
        self.request = None;
        self.request(head);
    }

    pub(super) fn response(&mut self, status: StatusCode, headers: &HeaderMap) {
        let kept = if self.reads.response { headers.clone() } else { HeaderMap::new() };
        self.response = Some((status, kept));
    }

    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if self.reads.trailers {
            self.trailers = Some(trailers.clone());
        }
    }

    pub(super) fn attempts(&mut self, count: u32) {
        self.attempts = count;
    }

    /// Hands the lines over.
    pub(super) fn write(&self, log: &RequestLog, runtime: &Runtime, lines: &Lines) {
        let values = self.values(log);
        for of in self.logs.iter() {
            if of.filter.as_ref().is_none_or(|filter| wants(filter, &values, runtime)) {
                let mut line = Vec::with_capacity(256);
                of.line.append_to_log(&values, &mut line);
                lines.write(&of.sink, line);
            }
        }
    }

    fn values<'a>(&'a self, log: &'a RequestLog) -> RequestValues<'a> {
        RequestValues {
            log,
            flow: self.judged.permit.flow(),
            head: self.request.as_ref(),
            response: self.response.as_ref().map(|(status, headers)| (*status, headers)),
            trailers: self.trailers.as_ref(),
            attempts: self.attempts,
        }
    }

    /// Words an answer as the connection manager wants it.
    ///
    /// Spec: Envoy's `LocalReply::rewrite`.
    pub(super) fn word(&self, log: &mut RequestLog, runtime: &Runtime, reply: &mut Worded) {
        let Some(local_reply) = &self.local_reply else { return };
        let flow = self.judged.permit.flow();
        let mut format = local_reply.format.as_ref();
        for mapper in &local_reply.mappers {
            let response = Some((reply.status, &reply.headers));
            let values = RequestValues { response, ..self.values(log) };
            if !wants(&mapper.filter, &values, runtime) {
                continue;
            }
            if let Some(body) = &mapper.body {
                reply.body = body.clone();
            }
            if let (Some(headers), Some(head)) = (&mapper.headers, &self.request) {
                let to = (reply.status, &mut reply.headers);
                mutations::mutate_response(headers, log, flow, head, to);
            }
            reply.status = mapper.status.unwrap_or(reply.status);
            format = mapper.format.as_ref().or(format);
            break;
        }
        let Some(BodyFormat { line, content_type }) = format else { return };
        log.reply_body = Some(reply.body.clone());
        let response = Some((reply.status, &reply.headers));
        let mut body = Vec::new();
        line.append(&RequestValues { response, ..self.values(log) }, &mut body);
        log.reply_body = None;
        reply.body = body.into();
        reply.content_type = content_type.clone();
    }
}

/// What is worded.
pub(super) struct Worded {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// Of the body, unless the headers say it.
    pub(super) content_type: HeaderValue,
    pub(super) headers: HeaderMap,
}

impl Ended for RequestValues<'_> {
    fn status(&self) -> u16 {
        self.response.map_or(0, |(status, _)| status.as_u16())
    }

    fn elapsed(&self) -> Duration {
        self.log.exchange.elapsed()
    }

    fn flags(&self) -> ResponseFlags {
        self.log.record.envoy_flags()
    }

    fn has_header(&self, matcher: &HeaderMatcher) -> bool {
        self.head.is_some_and(|head| header_matches(matcher, head))
    }

    fn grpc_status(&self) -> u32 {
        // What the upstream says, or what the response's status stands for.
        let headers = self.response.map(|(_, headers)| headers);
        let told = [self.trailers, headers].into_iter().flatten();
        let mut told = told.filter_map(|from| from.get(grpc::STATUS)?.to_str().ok()?.parse().ok());
        told.next().unwrap_or_else(|| grpc::code_of(self.status()))
    }
}

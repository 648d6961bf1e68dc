//! The lines that a connection manager's access logs have of a request.
//!
//! What lines are made of is kept only where there are logs, and heads only where a log
//! reads them.

use std::sync::Arc;

use http::{HeaderMap, StatusCode, request::Parts};

use super::{Judged, grpc, mutations::RequestValues, record::RequestLog};
use crate::{
    model::{
        access_log::{AccessLog, Comparison, LineFormat, LogFilter},
        format::Operator,
        runtime::Runtime,
    },
    observe::access_log::Lines,
    policy::matcher::header_matches,
};

/// A request that will have lines.
pub(super) struct Logging {
    logs: Arc<[AccessLog]>,
    reads: Reads,
    judged: Arc<Judged>,
    /// As it went on, or came, where it did not.
    request: Option<Parts>,
    response: Option<(StatusCode, HeaderMap)>,
    trailers: Option<HeaderMap>,
    /// How often it was sent.
    attempts: u32,
}

/// What logs read.
#[derive(Debug, Clone, Copy, Default)]
struct Reads {
    request: bool,
    response: bool,
    trailers: bool,
}

impl Reads {
    fn of(logs: &[AccessLog]) -> Self {
        let mut reads = Self::default();
        for log in logs {
            let mut operator = |operator: &Operator| match operator {
                Operator::Request(_) => reads.request = true,
                Operator::Response(_) => reads.response = true,
                Operator::Trailer(_) => reads.trailers = true,
                _ => {}
            };
            match &log.line.format {
                LineFormat::Text(format) => format.operators().for_each(operator),
                LineFormat::Json(format) => format.operators(&mut operator),
            }
            log.filter.iter().for_each(|filter| reads.filter(filter));
        }
        reads
    }

    fn filter(&mut self, filter: &LogFilter) {
        match filter {
            LogFilter::Header(_) => self.request = true,
            LogFilter::Grpc { .. } => (self.response, self.trailers) = (true, true),
            LogFilter::And(all) | LogFilter::Or(all) => {
                all.iter().for_each(|filter| self.filter(filter));
            }
            LogFilter::Status(_)
            | LogFilter::Duration(_)
            | LogFilter::Flags(_)
            | LogFilter::Runtime(_) => {}
        }
    }
}

impl Logging {
    /// `None` where there are no logs.
    pub(super) fn of(logs: &Arc<[AccessLog]>, judged: &Arc<Judged>) -> Option<Box<Self>> {
        (!logs.is_empty()).then(|| {
            Box::new(Self {
                logs: Arc::clone(logs),
                reads: Reads::of(logs),
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
        let values = RequestValues {
            log,
            flow: self.judged.permit.flow(),
            head: self.request.as_ref(),
            response: self.response.as_ref().map(|(status, headers)| (*status, headers)),
            trailers: self.trailers.as_ref(),
            attempts: self.attempts,
        };
        for of in &*self.logs {
            if of.filter.as_ref().is_none_or(|filter| self.wants(filter, log, runtime)) {
                let mut line = Vec::with_capacity(256);
                of.line.append(&values, &mut line);
                lines.write(&of.sink, line);
            }
        }
    }

    fn wants(&self, filter: &LogFilter, log: &RequestLog, runtime: &Runtime) -> bool {
        let compare = |comparison: &Comparison, value: u64| {
            let Comparison { op, value: with, runtime_key } = comparison;
            let with = match runtime_key.as_str() {
                "" => u64::from(*with),
                key => runtime.integer(key, u64::from(*with)),
            };
            op.holds(value, with)
        };
        match filter {
            LogFilter::Status(comparison) => {
                let status = self.response.as_ref().map_or(0, |(status, _)| status.as_u16());
                compare(comparison, status.into())
            }
            LogFilter::Duration(comparison) => {
                let elapsed = log.exchange.elapsed().as_millis();
                compare(comparison, u64::try_from(elapsed).unwrap_or(u64::MAX))
            }
            LogFilter::Header(matcher) => {
                self.request.as_ref().is_some_and(|head| header_matches(matcher, head))
            }
            LogFilter::Flags(flags) => match flags.is_empty() {
                true => !log.record.flags.is_empty(),
                false => log
                    .record
                    .flags
                    .iter()
                    .any(|set| flags.iter().any(|flag| flag.as_str() == set.as_str())),
            },
            LogFilter::Grpc { statuses, exclude } => statuses.contains(&self.grpc()) != *exclude,
            LogFilter::Runtime(fraction) => runtime.includes(fraction, rand::random()),
            LogFilter::And(all) => all.iter().all(|filter| self.wants(filter, log, runtime)),
            LogFilter::Or(all) => all.iter().any(|filter| self.wants(filter, log, runtime)),
        }
    }

    /// What the upstream says, or what the response's status stands for.
    fn grpc(&self) -> u32 {
        let headers = self.response.as_ref().map(|(_, headers)| headers);
        let told = [self.trailers.as_ref(), headers].into_iter().flatten();
        let told =
            told.filter_map(|headers| headers.get(grpc::STATUS)?.to_str().ok()?.parse().ok());
        let status = self.response.as_ref().map_or(0, |(status, _)| status.as_u16());
        told.into_iter().next().unwrap_or_else(|| grpc::code_of(status))
    }
}

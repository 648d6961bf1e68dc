//! What became of spans.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::labels::ByResult;

/// By what became of them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct SpanCounters(Family<ByResult, Counter>);

impl SpanCounters {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Spans of sampled requests, by what became of them";
        registry.register("mesh_spans", help, self.0.clone());
    }

    fn count(&self, result: &'static str, spans: u64) {
        if spans > 0 {
            self.0.get_or_create_owned(&ByResult(result)).inc_by(spans);
        }
    }

    /// A collector has answered: it took so many, and others not.
    pub fn sent(&self, taken: u64, rejected: u64) {
        self.count("sent", taken);
        self.count("rejected", rejected);
    }

    /// No collector has answered as it should.
    pub fn not_sent(&self, spans: u64) {
        self.count("not_sent", spans);
    }

    /// There were too many.
    pub fn overflowed(&self, spans: u64) {
        self.count("overflow", spans);
    }
}

//! Which exposition a scraper gets: OpenMetrics where it asks for that, else
//! Prometheus' text format, which differs in how counters are declared.

/// A format of `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Spec: OpenMetrics 1.0.
    OpenMetrics,
    /// Spec: Prometheus text format 0.0.4.
    Text,
}

impl Exposition {
    /// What to answer to an `Accept` header: OpenMetrics to who names it.
    pub fn for_accept(accept: Option<&str>) -> Self {
        let named = accept.unwrap_or_default().split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let refused = parts.any(|parameter| {
                parameter
                    .strip_prefix("q=")
                    .is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0))
            });
            kind.eq_ignore_ascii_case("application/openmetrics-text") && !refused
        });
        if named { Self::OpenMetrics } else { Self::Text }
    }

    /// For `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Says in this format what [`super::Metrics::encode`] wrote.
    pub fn of(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => text(&open_metrics),
        }
    }
}

/// OpenMetrics declares a counter without the `_total` of its samples, has exemplars behind
/// them, and ends in `# EOF`.
fn text(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 1024);
    let mut help: Option<(&str, &str)> = None;
    let mut line_of = |parts: [&str; 4]| {
        parts.iter().for_each(|part| out.push_str(part));
        out.push('\n');
    };
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total ", kind),
                "unknown" => (" ", "untyped"),
                _ => (" ", kind),
            };
            if let Some((_, help)) = help.take().filter(|(helped, _)| *helped == name) {
                line_of(["# HELP ", name, suffix, help]);
            }
            line_of(["# TYPE ", name, suffix, kind]);
        } else if !line.starts_with('#') {
            // No label's value has that: a quote in it is escaped.
            let sample = line.split(" # {trace_id=\"").next().unwrap_or_default();
            line_of([sample, "", "", ""]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_who_names_it() {
        let check = |accept: Option<&str>, expected| {
            assert_eq!(Exposition::for_accept(accept), expected, "{accept:?}");
        };
        check(None, Exposition::Text);
        check(Some("*/*"), Exposition::Text);
        check(Some("text/plain;version=0.0.4;q=0.5,*/*;q=0.1"), Exposition::Text);
        check(Some("application/openmetrics-text;q=0,text/plain"), Exposition::Text);
        check(Some("Application/OpenMetrics-Text; version=1.0.0"), Exposition::OpenMetrics);
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        check(Some(prometheus), Exposition::OpenMetrics);
    }

    #[test]
    fn the_text_format_declares_counters_by_the_names_of_their_samples() {
        let open_metrics = "# HELP istio_requests HTTP requests.\n# TYPE istio_requests counter\n\
                            istio_requests_total{a=\"x # y\"} 3\nh_bucket{a=\"# {trace_id=\\\"\"} 2 # {trace_id=\"1f\"} 7 1.5\n# HELP up Up.\n# TYPE up gauge\n\
                            up 1\n# EOF\n";
        assert_eq!(
            Exposition::Text.of(open_metrics.to_owned()),
            "# HELP istio_requests_total HTTP requests.\n# TYPE istio_requests_total counter\n\
             istio_requests_total{a=\"x # y\"} 3\nh_bucket{a=\"# {trace_id=\\\"\"} 2\n# HELP up Up.\n# TYPE up gauge\nup 1\n"
        );
        assert_eq!(Exposition::OpenMetrics.of(open_metrics.to_owned()), open_metrics);
    }
}

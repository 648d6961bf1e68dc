//! The table kernel × feature, as Markdown.

use std::fmt::Write as _;

use super::{
    Kernel,
    guest::{Outcome, State},
};

/// A column for each kernel, a row for each feature, and the reasons below.
pub(super) fn render(outcomes: &[(Kernel, String, Outcome)]) -> String {
    let mut features: Vec<&str> = Vec::new();
    for row in outcomes.iter().flat_map(|(.., outcome)| &outcome.rows) {
        if !features.contains(&row.feature.as_str()) {
            features.push(&row.feature);
        }
    }
    let mut reasons: Vec<String> = Vec::new();
    let mut table = String::from("| feature |");
    for (_, release, _) in outcomes {
        let _ = write!(table, " {release} |");
    }
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(outcomes.len()));
    table.push('\n');
    for feature in features {
        let _ = write!(table, "| {feature} |");
        for (.., outcome) in outcomes {
            let row = outcome.rows.iter().find(|row| row.feature == feature);
            let cell = match row.map(|row| (row.state, row.why.as_str())) {
                None => "–".to_owned(),
                Some((State::Works, "")) => "works".to_owned(),
                Some((State::Works, why)) => format!("works, {why}"),
                Some((state, why)) => {
                    let word = if state == State::Off { "off" } else { "**failed**" };
                    let known = reasons.iter().position(|reason| reason == why);
                    let number = known.unwrap_or_else(|| {
                        reasons.push(why.to_owned());
                        reasons.len() - 1
                    });
                    format!("{word} ({})", number + 1)
                }
            };
            let _ = write!(table, " {cell} |");
        }
        table.push('\n');
    }
    table.push('\n');
    for (number, reason) in (1..).zip(reasons) {
        let _ = writeln!(table, "{number}. {reason}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{KERNELS, guest::Row};

    #[test]
    fn reasons_are_told_once() {
        let row = |feature: &str, state, why: &str| Row {
            feature: feature.to_owned(),
            state,
            why: why.to_owned(),
        };
        let old =
            vec![row("capture", State::Off, "needs 5.14"), row("mTLS", State::Off, "needs 5.14")];
        let new = vec![row("capture", State::Works, ""), row("mTLS", State::Failed, "refused")];
        let outcomes = [(KERNELS[0], "5.10.1", old), (KERNELS[1], "6.1.0", new)]
            .map(|(kernel, release, rows)| (kernel, release.to_owned(), Outcome::of(rows)));
        assert_eq!(
            render(&outcomes),
            "| feature | 5.10.1 | 6.1.0 |\n|---|---|---|\n\
             | capture | off (1) | works |\n| mTLS | off (1) | **failed** (2) |\n\n\
             1. needs 5.14\n2. refused\n"
        );
    }
}

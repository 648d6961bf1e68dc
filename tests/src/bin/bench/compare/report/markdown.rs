//! The report for a repository.

use std::fmt::Write as _;

use super::{Part, Report, Table, shown};

pub(super) fn page(report: &Report<'_>) -> String {
    let mut page = String::new();
    let _ = head(&mut page, report);
    for table in &report.alike.tables {
        let _ = load(&mut page, table);
    }
    let _ = figures(&mut page, report);
    if let Some(part) = &report.as_shipped {
        let _ = writeln!(page, "\n# As shipped\n");
        let _ = told(&mut page, part);
        for table in &part.tables {
            let _ = load(&mut page, table);
        }
    }
    page
}

fn head(page: &mut String, report: &Report<'_>) -> std::fmt::Result {
    let machine = report.machine;
    writeln!(page, "# Comparison\n")?;
    writeln!(
        page,
        "{}; {} × {}, {} MiB, Linux {}. {}, Envoy {}, HAProxy {}, {}.\n",
        machine.date,
        machine.cpus,
        machine.cpu,
        machine.memory_mib,
        machine.kernel,
        machine.nginx,
        machine.envoy,
        machine.haproxy,
        machine.agent
    )?;
    told(page, &report.alike)?;
    writeln!(page, "\n## Targets\n\n| | goal | seen | Envoy | |\n|---|---|---|---|---|")?;
    for target in &report.targets {
        let verdict = match target.reached {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "not measured",
        };
        let (seen, envoy) = (shown(target.seen), shown(target.envoy));
        writeln!(page, "| {} | {} | {seen} | {envoy} | {verdict} |", target.what, target.goal)?;
    }
    Ok(())
}

/// How it was measured.
fn told(page: &mut String, part: &Part) -> std::fmt::Result {
    writeln!(
        page,
        "{} samples in {} interleaved rounds, {} of them disturbed by others. Medians; × is the \
         median of the ratios to no mesh in the same place and round, with the least and the \
         most of them. CPU counts everything: load, origin, proxies, kernel; \"mesh\" is what \
         that is more than without one.\n",
        part.samples, part.rounds, part.disturbed
    )?;
    for (what, told) in part.settings_told.as_object().into_iter().flatten() {
        writeln!(page, "- {}: {}", what.replace('_', " "), told.as_str().unwrap_or_default())?;
    }
    Ok(())
}

fn load(page: &mut String, table: &Table) -> std::fmt::Result {
    let (per, plural) = (table.per, super::plural(table));
    writeln!(page, "\n## {}\n", table.title)?;
    writeln!(
        page,
        "| | {plural}/s | × | | p50 µs | p99 µs | CPU µs/{per} | mesh | proxies' own | errors |"
    )?;
    writeln!(page, "|---|---|---|---|---|---|---|---|---|---|")?;
    for row in &table.rows {
        let (least, most) = row.ratio_spread;
        writeln!(
            page,
            "| {} | {} | {:.3} | {least:.2}–{most:.2} | {} | {} | {} | {} | {} | {} |",
            row.lane,
            shown(row.rate),
            row.ratio,
            shown(row.p50_us),
            shown(row.p99_us),
            shown(row.cpu_us),
            shown(row.mesh_us),
            shown(row.proxies_us),
            row.errors
        )?;
    }
    Ok(())
}

fn figures(page: &mut String, report: &Report<'_>) -> std::fmt::Result {
    if report.figures.is_empty() {
        return Ok(());
    }
    writeln!(page, "\n## Memory, start, restart\n\n| | of | at | |\n|---|---|---|---|")?;
    for figure in report.figures {
        writeln!(
            page,
            "| {} | {} | {} | {} {} |",
            figure.figure,
            figure.lane,
            figure.at,
            shown(figure.value),
            figure.unit
        )?;
    }
    Ok(())
}

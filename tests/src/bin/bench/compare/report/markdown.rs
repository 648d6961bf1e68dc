//! The report for a repository.

use std::fmt::Write as _;

use super::{
    Part, Report, Settings, Table, figure_lanes, figure_lines, ratio_shown, shown, spread_shown,
};

pub(super) fn page(report: &Report<'_>) -> String {
    let mut page = String::new();
    let _ = head(&mut page, report);
    for part in report.parts() {
        let _ = measured(&mut page, part);
    }
    let _ = figures(&mut page, report);
    for part in report.parts() {
        let _ = programs(&mut page, part);
    }
    page
}

fn head(page: &mut String, report: &Report<'_>) -> std::fmt::Result {
    let machine = report.machine;
    writeln!(page, "# Comparison\n")?;
    writeln!(
        page,
        "{}; {} × {}, {} MiB, Linux {}. {}, Envoy {}, HAProxy {}, {} ({}).\n",
        machine.date,
        machine.cpus,
        machine.cpu,
        machine.memory_mib,
        machine.kernel,
        machine.nginx,
        machine.envoy,
        machine.haproxy,
        machine.agent,
        machine.agent_build
    )?;
    for failure in &report.failures {
        writeln!(page, "**{}**\n", failure.told().replace('\n', " "))?;
    }
    writeln!(
        page,
        "Medians; × is the median of the ratios to no mesh in the same place and round, with the \
         least and the most of them. CPU counts everything: load, origin, proxies, kernel; \
         \"mesh\" is what that is more than without one. {}\n\n## Targets\n\n\
         | | goal | seen | Envoy | | goal as mesh CPU µs, there | here | mesh CPU µs seen | Envoy |\n\
         |---|---|---|---|---|---|---|---|---|",
        super::CALM_TOLD
    )?;
    for target in &report.targets {
        let verdict = match target.reached {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "not measured",
        };
        let verdict = format!("{verdict}{}", target.doubt());
        let (seen, envoy) = (shown(target.seen), shown(target.envoy));
        write!(page, "| {} | {} | {seen} | {envoy} | {verdict} |", target.what, target.goal)?;
        for value in target.cpu_columns() {
            write!(page, " {value} |")?;
        }
        writeln!(page)?;
    }
    writeln!(page, "\n{}", super::targets::AS_CPU_TOLD)
}

fn measured(page: &mut String, part: &Part) -> std::fmt::Result {
    writeln!(
        page,
        "\n# {}\n\n{} samples in {} interleaved rounds, {} of them disturbed by others.\n",
        title(part),
        part.samples,
        part.rounds,
        part.disturbed
    )?;
    for (what, told) in part.settings_told {
        writeln!(page, "- {what}: {told}")?;
    }
    part.tables.iter().try_for_each(|table| load(page, table))
}

fn title(part: &Part) -> &'static str {
    match part.settings {
        Settings::Equal => "With equal settings",
        Settings::AsShipped => "As shipped",
    }
}

fn load(page: &mut String, table: &Table) -> std::fmt::Result {
    let (per, plural) = (table.per, table.plural());
    let (names, rule) = match table.has_latency() {
        true => (" p50 µs | p90 | p99 | p99.9 |", "---|---|---|---|"),
        false => ("", ""),
    };
    writeln!(
        page,
        "\n## {}\n\n| | {plural}/s | × | |{names} CPU µs/{per} | mesh | proxies' own | rounds | \
         pairs | errors |\n|---|---|---|---|{rule}---|---|---|---|---|---|",
        table.title
    )?;
    for row in &table.rows {
        write!(
            page,
            "| {} | {} | {} | {} |",
            row.lane,
            shown(row.rate),
            ratio_shown(row.ratio),
            spread_shown(row.ratio_spread)
        )?;
        if table.has_latency() {
            for percent in [50.0, 90.0, 99.0, 99.9] {
                let at = row.latency.iter().find(|(of, _)| *of >= percent);
                write!(page, " {} |", shown(at.map_or(f64::NAN, |(_, us)| *us)))?;
            }
        }
        let [rounds, pairs] = row.rounds_shown();
        writeln!(
            page,
            " {} | {} | {} | {rounds} | {pairs} | {} |",
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
    let lanes = figure_lanes(report.figures);
    writeln!(page, "\n# Memory, start, restart, upgrade\n\n| | at | {} | |", lanes.join(" | "))?;
    writeln!(page, "|---|---|{}---|", "---|".repeat(lanes.len()))?;
    for line in figure_lines(report.figures) {
        write!(page, "| {} | {} |", line.figure, line.at)?;
        for value in line.values {
            write!(page, " {} |", shown(value))?;
        }
        writeln!(page, " {} |", line.unit)?;
    }
    Ok(())
}

fn programs(page: &mut String, part: &Part) -> std::fmt::Result {
    writeln!(
        page,
        "\n# Programs: {}\n\nThe files that they name are in `report.html` and `report.json`.\n",
        title(part)
    )?;
    part.programs.iter().try_for_each(|of| writeln!(page, "- {}: `{}`", of.of, of.command))
}

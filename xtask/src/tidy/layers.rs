//! The agent's layer table: a room imports strictly lower rooms, siblings never.

use super::{Finding, source::Source};

/// The rooms of `mesh-agent/src` with their layers; `lib.rs` there says the same.
const ROOMS: &[(&str, u8)] = &[
    ("model", 0),
    ("snapshot", 1),
    ("observe", 1),
    ("source", 2),
    ("capture", 2),
    ("policy", 2),
    ("route", 2),
    ("codec", 2),
    ("identity", 2),
    ("transport", 2),
    ("proxy", 3),
    ("admin", 4),
    ("app", 5),
    ("cli", 5),
    ("config", 5),
];

/// What may be taken from a sibling: the tokens that one decision hands to the next,
/// and the matchers that policy and routing share.
const SIBLING_TOKENS: &[(&str, &str, &[&str])] = &[
    ("route", "policy", &["Flow", "Permit", "RequestPermit", "matcher"]),
    ("transport", "route", &["Destination"]),
];

/// Wiring: these import each other freely.
const TOP: u8 = 5;

fn layer(room: &str) -> Option<u8> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, layer)| *layer)
}

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Ok(inside) = source.path.strip_prefix("mesh-agent/src") else { return findings };
    let mut modules: Vec<String> =
        inside.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    modules.pop_if(|last| last == "mod");
    let Some(room) = modules.first().filter(|room| !["main", "lib"].contains(&&***room)) else {
        return findings;
    };
    let Some(own) = layer(room) else {
        let message = format!("`{room}` is no room: give it a layer in lib.rs and in tidy");
        return vec![source.finding(1, "layers", message)];
    };
    for (offset, path) in references(source.production_code(), modules.len()) {
        let Some((other, rest)) = path.split_first() else { continue };
        let Some(theirs) = layer(other).filter(|_| other != room) else { continue };
        let token = SIBLING_TOKENS.iter().any(|(from, to, items)| {
            from == room && to == other && rest.iter().any(|item| items.contains(&item.as_str()))
        });
        if theirs < own || own == TOP || token {
            continue;
        }
        let message = format!(
            "`{room}` (layer {own}) must not import `{}` (layer {theirs})",
            path.join("::")
        );
        findings.push(source.finding(source.line_of(offset), "layers", message));
    }
    findings
}

/// Every path that starts at the crate's root, as `crate::…` or by enough `super::`;
/// groups in braces are spelled out. `depth` is how deep the file's module is.
fn references(code: &str, depth: usize) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find("::").map(|n| from + n) {
        from = at + 2;
        let start = word_start(code, at);
        let mut rest = &code[at + 2..];
        match &code[start..at] {
            "crate" => {}
            "super" if !code[..start].ends_with("super::") => {
                let mut levels = 1;
                while let Some(next) = rest.strip_prefix("super::") {
                    (levels, rest) = (levels + 1, next);
                }
                if levels < depth {
                    continue;
                }
            }
            _ => continue,
        }
        let mut paths = Vec::new();
        tree(rest, &mut Vec::new(), &mut paths);
        found.extend(paths.into_iter().map(|path| (start, path)));
    }
    found
}

fn word_start(code: &str, end: usize) -> usize {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code[..end].char_indices().rev().take_while(|(_, c)| word(*c)).last().map_or(end, |(i, _)| i)
}

/// Reads a path or a use tree; returns what is behind it.
fn tree<'a>(text: &'a str, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(behind) = rest.strip_prefix('}') {
                return behind;
            }
            let before = rest.len();
            rest = tree(rest, prefix, out).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
            if rest.len() == before {
                // Not a use tree after all (a block behind `::`): nothing to learn here.
                return rest;
            }
        }
    }
    let length = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (word, behind) = text.split_at(length);
    if word.is_empty() {
        out.push(prefix.clone());
        return behind.strip_prefix('*').unwrap_or(behind);
    }
    prefix.push(word.to_owned());
    let rest = match behind.strip_prefix("::") {
        Some(rest) => tree(rest, prefix, out),
        None => {
            out.push(prefix.clone());
            // A renaming: `Permit as P`.
            match behind.trim_start().strip_prefix("as ") {
                Some(renamed) => renamed
                    .trim_start()
                    .trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
                None => behind,
            }
        }
    };
    prefix.pop();
    rest
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn breaches(path: &str, text: &str) -> Vec<usize> {
        let source = Source::parse(Path::new(path), text);
        check(&source).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn imports_go_strictly_down() {
        let check = |file: &str, text: &str, lines: &[usize]| {
            assert_eq!(breaches(&format!("mesh-agent/src/{file}"), text), lines, "{file}: {text}");
        };
        check("policy/flow.rs", "use crate::model::x;\nuse crate::snapshot::Snapshot;", &[]);
        check("policy/flow.rs", "use crate::model::x;\nuse crate::proxy::y;", &[2]);
        check("policy/flow.rs", "use crate::route::Destination;", &[1]);
        check("model/x.rs", "use crate::{\n    snapshot::{A, B},\n};", &[1, 1]);
        check("snapshot/mod.rs", "use crate::observe::X;", &[1]);
        check("proxy/tcp.rs", "use crate::{model::a, policy::{b, c}, transport};", &[]);
        check("app.rs", "use crate::{cli::x, config::y, admin::z};", &[]);
        check("cli/run.rs", "use crate::app::App;", &[]);
        check("admin/mod.rs", "fn f() -> crate::app::App { crate::proxy::g() }", &[1]);
        check("main.rs", "use mesh_agent::cli;", &[]);
    }

    #[test]
    fn tokens_may_be_taken_from_a_sibling() {
        let check = |file: &str, text: &str, lines: &[usize]| {
            assert_eq!(breaches(&format!("mesh-agent/src/{file}"), text), lines, "{file}: {text}");
        };
        check("route/decide.rs", "use crate::policy::{Flow, Permit as P, RequestPermit};", &[]);
        check("route/match_http.rs", "crate::policy::matcher::header_matches(a, b)", &[]);
        check("route/decide.rs", "use crate::policy::{Permit, authorize};", &[1]);
        check("transport/dial.rs", "use crate::route::Destination;", &[]);
        check("transport/dial.rs", "use crate::route::{Destination, lb::Balancers};", &[1]);
        check("policy/flow.rs", "use crate::route::Destination;", &[1]);
    }

    #[test]
    fn super_leads_out_of_a_room_too() {
        assert_eq!(breaches("mesh-agent/src/model/x.rs", "use super::super::proxy::Y;"), [1]);
        assert_eq!(breaches("mesh-agent/src/model/mod.rs", "use super::proxy::Y;"), [1]);
        assert_eq!(breaches("mesh-agent/src/model/x.rs", "use super::route::Y;"), []);
        assert_eq!(breaches("mesh-agent/src/source/xds/a.rs", "use super::super::file;"), []);
    }

    #[test]
    fn tests_strings_and_other_crates_are_free() {
        assert_eq!(
            breaches(
                "mesh-agent/src/model/x.rs",
                "#[cfg(test)]\nmod tests { use crate::proxy::A; }"
            ),
            []
        );
        assert_eq!(breaches("mesh-agent/src/model/x.rs", "// crate::proxy::A\n\"crate::cli\""), []);
        assert_eq!(breaches("tests/src/agent.rs", "use crate::proxy::A;"), []);
        assert_eq!(breaches("mesh-agent/src/helpers.rs", ""), [1]);
    }
}

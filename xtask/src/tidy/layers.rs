//! Dependencies point one way: codecs and the node know no edge, edges and engines never call the node.

use super::lines::lines;
use super::{SourceFile, Violation};

/// A layer by the start of its paths, and what it must not name.
struct Rule {
    layer: &'static [&'static str],
    forbidden: &'static [&'static str],
}

const RULES: [Rule; 5] = [
    Rule {
        layer: &["tincan/src/wire", "tincan/src/link.rs", "tincan/src/ice.rs", "tincan/src/snapshot"],
        forbidden: &[
            "crate::node",
            "crate::edge",
            "crate::dataplane",
            "crate::daemon",
            "crate::dtls",
            "crate::cleanup",
            "crate::cli",
            "crate::client",
            "crate::config",
            "crate::doctor",
            "tokio",
            "Instant::now",
            "SystemTime::now",
        ],
    },
    Rule {
        layer: &["tincan/src/node"],
        forbidden: &[
            "crate::edge",
            "crate::dataplane",
            "crate::daemon",
            "crate::dtls",
            "crate::cleanup",
            "crate::cli",
            "crate::client",
            "crate::config",
            "crate::doctor",
            "tokio",
            "Instant::now",
            "SystemTime::now",
            "HashMap",
            "HashSet",
        ],
    },
    Rule {
        layer: &["tincan/src/edge", "tincan/src/dataplane", "tincan/src/dtls"],
        forbidden: &["crate::node", "crate::daemon", "crate::cleanup", "crate::cli", "crate::client", "crate::doctor"],
    },
    // They look at the edges one by one, and have no part in what the daemon makes of them.
    Rule {
        layer: &["tincan/src/doctor", "tincan/src/cleanup.rs"],
        forbidden: &["crate::node", "crate::daemon", "crate::cli"],
    },
    Rule {
        layer: &["tincan/src/cli", "tincan/src/client.rs"],
        forbidden: &["crate::node", "crate::edge", "crate::dataplane"],
    },
];

/// Checks every file against the rules of its layer.
pub fn check(files: &[SourceFile]) -> Vec<Violation> {
    files.iter().flat_map(check_file).collect()
}

fn check_file(file: &SourceFile) -> Vec<Violation> {
    let rules = RULES.iter().filter(|rule| rule.layer.iter().any(|layer| file.path.starts_with(layer)));
    rules.flat_map(|rule| breaches(file, rule)).collect()
}

fn breaches(file: &SourceFile, rule: &Rule) -> Vec<Violation> {
    let imports = grouped_imports(&file.text);
    let mut violations = Vec::new();
    // Tests may set up what they like.
    for line in lines(file).filter(|line| !line.is_comment && !line.is_test) {
        let grouped = imports.iter().filter(|(number, _)| *number == line.number).map(|(_, path)| path.as_str());
        let texts: Vec<&str> = grouped.chain([line.text]).collect();
        for name in rule.forbidden.iter().filter(|name| texts.iter().any(|text| names(text, name))) {
            let sentence = format!("names {name}, which its layer must not know (ARCHITECTURE.md)");
            violations.push(Violation::new(&file.path, line.number, sentence));
        }
    }
    violations
}

/// The modules of `use crate::{a::B, c}` as `crate::a` and `crate::c`, each with its line.
fn grouped_imports(text: &str) -> Vec<(usize, String)> {
    const START: &str = "crate::{";
    text.match_indices(START).flat_map(|(at, _)| members(text, at + START.len())).collect()
}

fn members(text: &str, start: usize) -> Vec<(usize, String)> {
    let mut line = 1 + text[..start].matches('\n').count();
    let (mut depth, mut is_module, mut found) = (1, true, Vec::new());
    let mut module = String::new();
    for character in text[start..].chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 1 && is_module && (character.is_alphanumeric() || character == '_') {
            module.push(character);
        } else if !module.is_empty() {
            found.push((line, format!("crate::{}", std::mem::take(&mut module))));
            is_module = false;
        }
        if depth == 0 {
            break;
        }
        is_module |= depth == 1 && character == ',';
        line += usize::from(character == '\n');
    }
    found
}

/// Whether a line has this path or word, and not a longer one that ends in it.
fn names(line: &str, name: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part_of_word);
        let after = line[at + name.len()..].chars().next().is_some_and(part_of_word);
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check_file(&SourceFile { path: path.to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn each_layer_is_kept_from_what_it_must_not_know() {
        for (path, line) in [
            ("tincan/src/wire/uid.rs", "use crate::node::Node;"),
            ("tincan/src/wire/uid.rs", "fn a() { tokio::spawn(b); }"),
            ("tincan/src/snapshot/codec.rs", "use crate::node::Node;"),
            ("tincan/src/node.rs", "let now = Instant::now();"),
            ("tincan/src/node/link.rs", "use crate::edge::tap::Tap;"),
            ("tincan/src/edge/ice.rs", "use crate::node::Node;"),
            ("tincan/src/edge/ice.rs", "use crate::doctor::Report;"),
            ("tincan/src/doctor/turn.rs", "use crate::node::Node;"),
            ("tincan/src/doctor.rs", "use crate::daemon::run;"),
            ("tincan/src/client.rs", "use crate::edge::tap::Tap;"),
            ("tincan/src/dataplane/worker.rs", "crate::daemon::run()"),
            ("tincan/src/dataplane/worker.rs", "use crate::{daemon::run, link::{LinkId, Path}};"),
            ("tincan/src/dataplane/worker.rs", "use crate::{\n    link::{LinkId, Path},\n    node,\n};"),
            ("tincan/src/dataplane/worker.rs", "#[cfg(test)]\nmod tests;\n\nuse crate::node::Node;"),
        ] {
            assert_eq!(count(path, line), 1, "{path}: {line}");
        }
    }

    #[test]
    fn comments_tests_longer_names_and_the_daemon_are_free() {
        assert_eq!(count("tincan/src/node.rs", "// tokio\nuse crate::ice::IceEvent;\nlet my_tokio = 1;\n"), 0);
        assert_eq!(count("tincan/src/node.rs", "#[cfg(test)]\nmod tests { use tokio; }\n"), 0);
        assert_eq!(count("tincan/src/edge/ice.rs", "use crate::{ice::{node, Event}, link};\n"), 0);
        assert_eq!(count("tincan/src/edge/ice/tests.rs", "use crate::node::Node;\n"), 0);
        assert_eq!(count("tincan/src/daemon.rs", "use crate::node::Node;\nuse tokio::select;\n"), 0);
    }
}

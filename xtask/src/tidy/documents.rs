//! Documents name what the code has: every method of the API, every verdict.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::Violation;

const API: &str = "docs/controller-api.md";
const ARCHITECTURE: &str = "ARCHITECTURE.md";
const METHODS: &str = "tincan/src/wire/control/parse.rs";
const VERDICTS: [&str; 2] = ["tincan-common/src/verdict.rs", "tincan-common/src/kernel_verdict.rs"];

/// Checks the documents against the code.
pub fn check(workspace: &Path) -> anyhow::Result<Vec<Violation>> {
    let read = |path: &str| fs::read_to_string(workspace.join(path)).with_context(|| format!("cannot read {path}"));
    let methods = strings_of(&read(METHODS)?, "pub const METHODS");
    anyhow::ensure!(
        !methods.is_empty(),
        "{METHODS} has no list METHODS: tell xtask/src/tidy/documents.rs where it went"
    );
    let mut violations = unnamed(API, &read(API)?, "method", &methods);
    for path in VERDICTS {
        let verdicts = strings_of(&read(path)?, "pub const fn name(");
        anyhow::ensure!(!verdicts.is_empty(), "{path} has no names: tell xtask/src/tidy/documents.rs where they went");
        violations.extend(unnamed(ARCHITECTURE, &read(ARCHITECTURE)?, "verdict", &verdicts));
    }
    Ok(violations)
}

fn unnamed(path: &str, document: &str, what: &str, names: &[String]) -> Vec<Violation> {
    names
        .iter()
        .filter(|name| !document.contains(&format!("`{name}`")))
        .map(|name| Violation::new(path, 1, format!("does not name the {what} `{name}`")))
        .collect()
}

/// The string literals of the item that begins with `start`, up to the line that closes it.
fn strings_of(text: &str, start: &str) -> Vec<String> {
    let Some(at) = text.find(start) else { return Vec::new() };
    let item = &text[at..];
    let end = ["\n];", "\n    }\n}", "\n}"].iter().filter_map(|close| item.find(close)).min().unwrap_or(item.len());
    item[..end].split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_the_document_lacks_is_found() {
        let names = strings_of(
            "pub const METHODS: [&str; 2] = [\n \"a\", \"b\",\n];\nconst X: &str = \"c\";",
            "pub const METHODS",
        );
        assert_eq!(names, ["a", "b"]);
        let violations = unnamed("d.md", "has `a` and b", "method", &names);
        assert_eq!(violations, [Violation::new("d.md", 1, "does not name the method `b`")]);
    }
}

//! Rules about a source file on its own.

use super::lines::lines;
use super::{SourceFile, Violation};

/// STYLE.md: one subject a file.
const MOST_LINES: usize = 600;

/// The only files with `unsafe`, each for the reason beside it.
const UNSAFE_FILES: [&str; 8] = [
    // License section.
    "tincan-ebpf/src/main.rs",
    // Writing through a map's pointer.
    "tincan-ebpf/src/maps.rs",
    // Bounded access to a frame.
    "tincan-ebpf/src/packet.rs",
    // adjtimex(2), which nix lacks.
    "tincan/src/doctor/kernel_clock.rs",
    // BoringSSL calls without a safe wrapper.
    "tincan/src/dtls/ffi.rs",
    // SIOCETHTOOL, which nix lacks.
    "tincan/src/edge/ethtool.rs",
    // TUNSETOFFLOAD, and ownership of the TAP's descriptor.
    "tincan/src/edge/tap.rs",
    // The module that names them.
    "xtask/src/tidy/source.rs",
];

/// The only files whose tests or bench may sleep, each for the reason beside it.
const SLEEPING_FILES: [&str; 3] = [
    // The pause between two lines of live figures.
    "tests/src/lab.rs",
    // The one place that waits for conditions, each with a deadline.
    "tests/src/wait.rs",
    // How late one side comes, and how long the network is cut, is what is tested.
    "tincan/src/edge/ice/tests.rs",
];

/// Words that have no place in finished code, in parts so that this file has none of them.
const UNFINISHED: [(&str, &str); 4] = [("to", "do!("), ("unimp", "lemented!("), ("d", "bg!("), ("TO", "DO")];

/// Checks every file.
pub fn check(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations: Vec<Violation> = files.iter().flat_map(check_file).collect();
    let mut expect = |list: &[&str], uses: fn(&SourceFile) -> Option<usize>, sentence: &str| {
        let unused = |path: &&&str| !files.iter().any(|file| file.path == **path && uses(file).is_some());
        violations.extend(list.iter().filter(unused).map(|path| Violation::new(path, 1, sentence)));
    };
    expect(&UNSAFE_FILES, has_unsafe, "is on the list of files with unsafe code, but has none");
    expect(&SLEEPING_FILES, sleeps, "is on the list of tests that may sleep, but does not");
    violations
}

fn check_file(file: &SourceFile) -> Vec<Violation> {
    let SourceFile { path, text } = file;
    let mut violations = Vec::new();
    let mut add = |line: usize, sentence: String| violations.push(Violation::new(path, line, sentence));
    if !text.starts_with("//!") {
        add(1, "does not begin with `//!`: say what the file owns".to_owned());
    }
    let lines = text.lines().count();
    if lines > MOST_LINES {
        add(MOST_LINES, format!("has {lines} lines: split it, {MOST_LINES} is the most"));
    }
    if path.ends_with("/mod.rs") {
        add(1, "is a mod.rs: name it after its module, beside the directory".to_owned());
    }
    if let Some(line) = has_unsafe(file).filter(|_| !UNSAFE_FILES.contains(&path.as_str())) {
        add(line, "has unsafe code outside of the files listed in xtask/src/tidy/source.rs".to_owned());
    }
    if let Some(line) = sleeps(file).filter(|_| !SLEEPING_FILES.contains(&path.as_str())) {
        add(line, "sleeps in a test: use virtual time, or wait for a condition with a deadline".to_owned());
    }
    for word in UNFINISHED.map(|(start, end)| start.to_owned() + end) {
        for (number, _) in text.lines().enumerate().filter(|(_, line)| line.contains(&word)) {
            add(number + 1, format!("is unfinished: {word}"));
        }
    }
    violations
}

/// The first line with the keyword in code.
fn has_unsafe(file: &SourceFile) -> Option<usize> {
    let keyword = |line: &str| line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe");
    lines(file).find(|line| !line.is_comment && keyword(line.text)).map(|line| line.number)
}

/// The first line of a test that sleeps. The call is written in parts so that this file has none.
fn sleeps(file: &SourceFile) -> Option<usize> {
    let call = ["sle", "ep("].concat();
    lines(file).find(|line| line.is_test && !line.is_comment && line.text.contains(&call)).map(|line| line.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations_of(path: &str, text: &str) -> Vec<String> {
        let file = SourceFile { path: path.to_owned(), text: text.to_owned() };
        check_file(&file).into_iter().map(|violation| violation.sentence).collect()
    }

    #[test]
    fn a_good_file_has_no_violation() {
        assert_eq!(violations_of("tincan/src/a.rs", "//! A.\nfn a() {}\n// unsafe is a word here\n"), [""; 0]);
    }

    #[test]
    fn each_rule_finds_its_breach() {
        assert_eq!(violations_of("tincan/src/a.rs", "fn a() {}\n").len(), 1);
        assert_eq!(violations_of("tincan/src/a/mod.rs", "//! A.\n").len(), 1);
        assert_eq!(violations_of("tincan/src/a.rs", "//! A.\nlet a = unsafe { b() };\n").len(), 1);
        assert_eq!(violations_of("tincan/src/a.rs", &format!("//! A.\n{}", "\n".repeat(600))).len(), 1);
        let sleep = ["thread::sle", "ep(SECOND)"].concat();
        assert_eq!(violations_of("tests/tests/a.rs", &format!("//! A.\n{sleep}\n")).len(), 1);
        assert_eq!(violations_of("tincan/src/a.rs", &format!("//! A.\n{sleep}\n")).len(), 0);
        for (start, end) in UNFINISHED {
            assert_eq!(violations_of("tincan/src/a.rs", &format!("//! A.\n{start}{end}\n")).len(), 1, "{start}");
        }
    }

    #[test]
    fn the_lists_of_exceptions_are_no_longer_than_needed() {
        assert_eq!(check(&[]).len(), UNSAFE_FILES.len() + SLEEPING_FILES.len());
    }
}

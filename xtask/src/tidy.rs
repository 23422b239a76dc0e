//! `tidy`: what lints cannot check. Every violation is one line, `path:line: sentence`.

mod documents;
mod layers;
mod lines;
mod source;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Directories with source of our own.
const ROOTS: [&str; 5] = ["tincan", "tincan-common", "tincan-ebpf", "tests", "xtask"];

/// One source file.
pub struct SourceFile {
    /// From the workspace's root, with `/`.
    pub path: String,
    pub text: String,
}

/// Something that is not as STYLE.md wants it.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub path: String,
    /// 1 for the file as a whole.
    pub line: usize,
    pub sentence: String,
}

impl Violation {
    pub fn new(path: &str, line: usize, sentence: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, sentence: sentence.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.sentence)
    }
}

/// Checks the whole workspace.
pub fn tidy(workspace: &Path) -> anyhow::Result<()> {
    let files = source_files(workspace)?;
    let mut violations = source::check(&files);
    violations.extend(layers::check(&files));
    violations.extend(documents::check(workspace)?);
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} places are not tidy", violations.len());
    }
    println!("tidy: {} files in order", files.len());
    Ok(())
}

fn source_files(workspace: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let mut paths = Vec::new();
    for root in ROOTS {
        collect(&workspace.join(root), &mut paths)?;
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let path = path.strip_prefix(workspace).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            Ok(SourceFile { path, text })
        })
        .collect()
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}

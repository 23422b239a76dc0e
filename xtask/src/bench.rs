//! `bench`: comparisons that live in the tests' crate.

use std::path::Path;

use crate::run;

/// Sets up, builds, then becomes the comparison of plain links.
pub fn plain(workspace: &Path, arguments: &[String]) -> anyhow::Result<()> {
    run::become_bin(workspace, "plain-bench", arguments)
}

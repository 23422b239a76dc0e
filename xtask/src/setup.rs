//! `setup`: what building and testing need, found or installed. It speaks on standard error only: `run --json` owns the
//! standard output.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::object::{RECORD, Toolchain};
use crate::toolchain::Step;
use crate::{packages, shell, toolchain};

/// What the packages are looked for by where there is no dpkg.
const PROGRAMS: [&str; 13] = [
    "cc",
    "c++",
    "cmake",
    "clang",
    "git",
    "ip",
    "nft",
    "turnserver",
    "iperf3",
    "sysctl",
    "ethtool",
    "prosodyctl",
    "openssl",
];

/// Finds or installs everything; with `dry_run`, only tells. What cannot be had of the kernel programs' toolchain is told
/// loudly and is no error: the daemon then works without its kernel engine.
pub fn setup(workspace: &Path, dry_run: bool) -> anyhow::Result<()> {
    if dry_run {
        plan(workspace);
        return Ok(());
    }
    if packages::has_apt() {
        install(&missing_packages())?;
    } else {
        check_programs()?;
    }
    if Toolchain::recorded(workspace).is_some_and(|recorded| toolchain::is_sound(&recorded)) {
        return Ok(());
    }
    match find_or_obtain() {
        Ok(toolchain) => record(workspace, &toolchain),
        Err(error) => {
            forget(workspace)?;
            shell::say(&format!("NO TOOLCHAIN FOR THE KERNEL PROGRAMS: {error:#}"));
            shell::say("tincan is built without its kernel engine; everything else works");
            Ok(())
        }
    }
}

/// Tells what `setup` would do and changes nothing.
fn plan(workspace: &Path) {
    if packages::has_apt() {
        let missing = missing_packages();
        match (missing.is_empty(), shell::is_root()) {
            (true, _) => shell::say("packages: all installed"),
            (false, true) => shell::say(&format!("packages: would install {}", missing.join(" "))),
            (false, false) => shell::say(&format!("packages: someone who may has to {}", packages::by_hand(&missing))),
        }
    } else if let Err(error) = check_programs() {
        shell::say(&format!("{error:#}"));
    }
    if let Some(toolchain) = Toolchain::recorded(workspace).filter(toolchain::is_sound) {
        shell::say(&format!("the kernel programs' toolchain: {}", Step::Use(toolchain)));
        return;
    }
    if packages::may_install() {
        shell::say("the lists of packages would be fetched; what follows is from those of today");
    }
    match toolchain::next_step() {
        Ok(step) => shell::say(&format!("the kernel programs' toolchain: {step}")),
        Err(error) => shell::say(&format!("the kernel programs' toolchain is missing: {error:#}")),
    }
}

fn missing_packages() -> Vec<String> {
    packages::missing(packages::BUILD.into_iter().chain(packages::TEST))
}

/// Installs packages, or says how.
fn install(missing: &[String]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = packages::by_hand(missing);
    if !shell::is_root() {
        let toolchain = toolchain::next_step().err();
        let toolchain = toolchain.map(|error| format!("\nand, for the kernel programs: {error}")).unwrap_or_default();
        bail!("packages are missing; run this as root, or let someone who may run\n    {by_hand}{toolchain}");
    }
    packages::install(missing).with_context(|| format!("try it by hand: {by_hand}"))
}

/// On other distributions: looks for the programs and tells the packages by Debian's names.
fn check_programs() -> anyhow::Result<()> {
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|program| shell::find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = packages::BUILD.into_iter().chain(packages::TEST).collect();
    bail!(
        "programs are missing: {}\nThis is neither Debian nor Ubuntu: install what Debian calls\n    {}\nand, for the \
         kernel programs, {}",
        missing.join(" "),
        packages.join(" "),
        toolchain::by_hand()
    )
}

fn find_or_obtain() -> anyhow::Result<Toolchain> {
    if let Ok(Step::Use(toolchain)) = toolchain::next_step() {
        return Ok(toolchain);
    }
    if packages::may_install() {
        packages::update();
    }
    toolchain::obtain()
}

fn record(workspace: &Path, toolchain: &Toolchain) -> anyhow::Result<()> {
    let Toolchain { cargo, rustc, linker } = toolchain;
    let text = format!("cargo={}\nrustc={}\nlinker={}\n", cargo.display(), rustc.display(), linker.display());
    write_record(workspace, &text)?;
    shell::say("ready");
    Ok(())
}

/// Unsets a toolchain that no longer works, so that the build says what is missing instead of failing.
fn forget(workspace: &Path) -> anyhow::Result<()> {
    if Toolchain::recorded(workspace).is_some() { write_record(workspace, "none\n") } else { Ok(()) }
}

fn write_record(workspace: &Path, text: &str) -> anyhow::Result<()> {
    let path = workspace.join(RECORD);
    fs::create_dir_all(path.parent().unwrap_or(workspace))
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}

//! Compiles the kernel programs and hands the object to `dataplane::kernel`.
//!
//! Without a recorded eBPF toolchain the crate still builds: the daemon then has no kernel engine and says so.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../xtask/src/object.rs"]
mod object;

use object::{RECORD, Toolchain};

fn main() {
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let workspace = crate_dir.parent().expect("the crate stands in the workspace");
    println!("cargo::rustc-check-cfg=cfg(kernel_object)");
    watch(workspace);
    let Some(toolchain) = Toolchain::recorded(workspace) else {
        println!("cargo::warning=built without the kernel engine: run `cargo xtask setup` and build again");
        return;
    };
    match toolchain.build(workspace) {
        Ok(object) => embed(&object, &out_dir.join("tincan-ebpf.o")),
        Err(output) => {
            for line in output.lines() {
                println!("cargo::error={line}");
            }
            println!(
                "cargo::error=the kernel programs did not compile; if the eBPF toolchain changed: cargo xtask setup"
            );
        }
    }
}

/// Runs this script again when the programs change or setup records a toolchain.
fn watch(workspace: &Path) {
    let record = workspace.join(RECORD);
    if !record.exists() {
        // Cargo reruns the script in every build while a watched file is missing. Failing to write costs only that.
        let _ = fs::create_dir_all(workspace.join("target")).and_then(|()| fs::write(&record, "none\n"));
    }
    for path in ["tincan-ebpf/src", "tincan-ebpf/Cargo.toml", "tincan-ebpf/Cargo.lock", "tincan-common/src", RECORD] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
}

fn embed(object: &Path, to: &Path) {
    fs::copy(object, to).expect("cargo reported success, so the object exists, and OUT_DIR is writable");
    println!("cargo::rustc-cfg=kernel_object");
}

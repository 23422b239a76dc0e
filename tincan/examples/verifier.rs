//! Loads the kernel programs and prints what the verifier says about each; `cargo xtask ebpf` runs it.

use tincan::dataplane::kernel::KernelEngine;

fn main() -> anyhow::Result<()> {
    println!("{:<20} {:>22} {:>19}", "program", "verified instructions", "machine code bytes");
    let mut engine = KernelEngine::load()?;
    engine.work_in_driver()?;
    for report in engine.reports()? {
        let verified = report.verified_instructions.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        println!("{:<20} {verified:>22} {:>19}", report.name, report.machine_code_bytes);
    }
    Ok(())
}

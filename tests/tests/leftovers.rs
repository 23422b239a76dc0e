//! Nothing stays behind: not after a daemon's orderly end, not after a test's.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::netns::{abandoned, existing};
use tincan_tests::topology::{Pair, Underlay};

/// Where something is mounted.
fn mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).collect())
}

#[test]
fn a_stopped_daemon_leaves_no_device_no_socket_and_no_file_but_its_state() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    connect(&mut alice, &mut bob, &LinkPlan::secured())?;
    ensure!(!pair.alice.pinned()?.is_empty(), "no pins to begin with");
    ensure!(pair.alice.interfaces()?.contains(&"ipop".to_owned()), "no TAP to begin with");
    let socket = alice.daemon.socket();
    ensure!(socket.exists(), "no Unix socket to begin with");
    let pid = alice.daemon.pid();
    ensure!(alice.daemon.stop()?, "the daemon did not stop at SIGTERM");
    ensure!(pair.alice.interfaces()? == ["eth0"], "devices are left: {:?}", pair.alice.interfaces()?);
    ensure!(!socket.exists(), "the socket's file is left");
    // The controller's own socket is this test's.
    for (table, mine) in [("udp", 1), ("udp6", 0), ("tcp", 0), ("tcp6", 0)] {
        let ports = pair.alice.ports(table)?;
        ensure!(ports.len() <= mine, "sockets are left in {table}: {ports:?}");
    }
    let state: Vec<PathBuf> =
        fs::read_dir(alice.daemon.state_dir())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    ensure!(!state.is_empty(), "the certificate is gone");
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "the process is left");
    ensure!(pair.alice.pinned()?.is_empty(), "pins are left: {:?}", pair.alice.pinned()?);
    bob.door.status(Duration::from_secs(5), &alice.uid, "offline").context("bob was not told at once")?;
    Ok(())
}

#[test]
fn a_dropped_bench_leaves_no_namespace_no_process_and_no_directory() -> Result<()> {
    let names = {
        let pair = Pair::new(Underlay::Ipv4)?;
        let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
        connect(&mut alice, &mut bob, &LinkPlan::plain())?;
        // One dies as in a crash: its namespace takes the rest along.
        bob.daemon.kill9()?;
        let pids = [alice.daemon.pid(), bob.daemon.pid()];
        let directories = [alice.daemon.state_dir(), bob.daemon.state_dir()];
        let bpffs = [pair.alice.pins()?.to_owned(), pair.bob.pins()?.to_owned()];
        ensure!(mounts()?.contains(&bpffs[0]) && !pair.bob.pinned()?.is_empty(), "no pins to begin with");
        let names = [pair.alice.name().to_owned(), pair.bob.name().to_owned()];
        drop((alice, bob, pair));
        for pid in pids {
            ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
        }
        for directory in directories {
            ensure!(!directory.exists(), "{} is left", directory.display());
        }
        for directory in bpffs {
            ensure!(!directory.exists() && !mounts()?.contains(&directory), "{} is left", directory.display());
        }
        names
    };
    let left = existing();
    ensure!(names.iter().all(|name| !left.contains(name)), "namespaces are left: {left:?}");
    ensure!(abandoned().is_empty(), "namespaces of earlier runs are left: {:?}", abandoned());
    Ok(())
}

#[test]
fn the_next_bench_removes_the_pins_of_one_that_was_killed() -> Result<()> {
    let mut dead = Command::new("true").spawn().context("a process to be dead")?;
    dead.wait()?;
    let directory = std::env::temp_dir().join(format!("tct-{}-0-bpf", dead.id()));
    fs::create_dir(&directory)?;
    mount(Some("bpf"), &directory, Some("bpf"), MsFlags::empty(), None::<&str>).context("mounting bpffs")?;
    fs::create_dir_all(directory.join("tincan/4026531840-ipop/v1"))?;
    // It sweeps before it notices that there is no daemon to be started.
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.args(["--json", "--for", "1"]).env("TINCAN_BIN", "/nonexistent/tincan").output().context("running the lab")?;
    ensure!(!directory.exists() && !mounts()?.contains(&directory), "{} is left", directory.display());
    Ok(())
}

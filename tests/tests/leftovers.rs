//! Nothing stays behind: not after a daemon's orderly end, not after a test's.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::netns::{abandoned, existing};
use tincan_tests::topology::{Pair, Underlay};

#[test]
fn a_stopped_daemon_leaves_no_device_no_socket_and_no_file_but_its_state() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    connect(&mut alice, &mut bob, &LinkPlan::secured())?;
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
    // Programs and maps are held by descriptors of the process alone: nothing is pinned.
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "the process is left");
    ensure!(!Path::new("/sys/fs/bpf/tincan").exists(), "pins are left");
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
        let names = [pair.alice.name().to_owned(), pair.bob.name().to_owned()];
        drop((alice, bob, pair));
        for pid in pids {
            ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
        }
        for directory in directories {
            ensure!(!directory.exists(), "{} is left", directory.display());
        }
        names
    };
    let left = existing();
    ensure!(names.iter().all(|name| !left.contains(name)), "namespaces are left: {left:?}");
    ensure!(abandoned().is_empty(), "namespaces of earlier runs are left: {:?}", abandoned());
    ensure!(!Path::new("/sys/fs/bpf/tincan").exists(), "pins are left");
    Ok(())
}

//! Traffic between two namespaces: TCP throughput by iperf3, and payloads that are compared.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::panic;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::netns::Namespace;
use crate::ping::any_address;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait;

/// A port nothing else in a namespace uses.
const PORT: u16 = 5201;
/// How long one payload may be under way.
const PAYLOAD_DEADLINE: Duration = Duration::from_secs(10);

/// TCP throughput from `client` to `target`, which is an address of `server`, in Gb/s as the receiver saw it.
pub fn tcp_gbps(client: &Namespace, server: &Namespace, target: IpAddr, seconds: u32) -> Result<f64> {
    let scratch = Scratch::new("iperf")?;
    let log = scratch.path().join("server");
    let options = format!("-s -1 -p {PORT} -B {target}").split(' ').map(str::to_owned).collect::<Vec<_>>();
    let table = if target.is_ipv4() { "tcp" } else { "tcp6" };
    let listener = Process::start(server, Path::new("iperf3"), &options, &log)?;
    let listens = || server.ports(table).is_ok_and(|ports| ports.contains(&PORT));
    wait::until(Duration::from_secs(5), "iperf3 to listen", listens).with_context(|| listener.output())?;
    let report = client.exec(&format!("iperf3 -J -c {target} -p {PORT} -t {seconds}"))?;
    let report: Value = serde_json::from_str(&report).context("reading iperf3's report")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 reports no throughput")?;
    Ok(bits / 1e9)
}

/// Bytes of a long transfer: 64 MiB, or as many as `TINCAN_TRANSFER_MIB` says.
pub fn transfer_bytes() -> Result<usize> {
    let mebibytes = match std::env::var("TINCAN_TRANSFER_MIB") {
        Ok(text) => text.parse::<usize>().context("TINCAN_TRANSFER_MIB is no number of MiB")?,
        Err(_) => 64,
    };
    ensure!((1..=4096).contains(&mebibytes), "TINCAN_TRANSFER_MIB must be from 1 to 4096");
    Ok(mebibytes << 20)
}

/// Sends `payload` over a TCP connection to `target` and compares what comes back from an echo there.
pub fn tcp_echo(client: &Namespace, server: &Namespace, target: IpAddr, payload: &[u8]) -> Result<()> {
    let listener = server.enter(|| TcpListener::bind((target, 0)).context("listening"))?;
    let address = listener.local_addr().context("the listener's address")?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept().context("accepting")?;
            stream.set_read_timeout(Some(PAYLOAD_DEADLINE)).context("setting a deadline")?;
            let mut received = Vec::new();
            stream.read_to_end(&mut received).context("reading at the far end")?;
            stream.write_all(&received).context("echoing")
        });
        let outcome = tcp_send_and_compare(client, address, payload);
        // Where the connection itself failed, the echo still waits in accept: a connection of its own ends that.
        if outcome.is_err() {
            drop(server.enter(|| TcpStream::connect(address).context("ending the echo")));
        }
        outcome.and(echo.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

fn tcp_send_and_compare(client: &Namespace, address: SocketAddr, payload: &[u8]) -> Result<()> {
    let connect =
        || TcpStream::connect_timeout(&address, PAYLOAD_DEADLINE).with_context(|| format!("TCP to {address}"));
    let mut stream = client.enter(connect)?;
    stream.set_read_timeout(Some(PAYLOAD_DEADLINE)).context("setting a deadline")?;
    stream.set_write_timeout(Some(PAYLOAD_DEADLINE)).context("setting a deadline")?;
    stream.write_all(payload).context("sending")?;
    stream.shutdown(Shutdown::Write).context("ending the sending")?;
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).context("reading the echo")?;
    ensure!(echoed == payload, "{} bytes came back, not the {} sent", echoed.len(), payload.len());
    Ok(())
}

/// A TCP connection whose one end sends all the time, but for pauses, until it is dropped.
#[derive(Debug)]
pub struct TcpStreaming {
    received: Arc<AtomicU64>,
    paused: Arc<AtomicBool>,
    ends: [TcpStream; 2],
    /// The sender first.
    threads: [Option<JoinHandle<()>>; 2],
}

impl TcpStreaming {
    /// Begins to send from `client` to `target`, which is an address of `server`.
    pub fn start(client: &Namespace, server: &Namespace, target: IpAddr) -> Result<Self> {
        let listener = server.enter(|| TcpListener::bind((target, 0)).context("listening"))?;
        let address = listener.local_addr().context("the listener's address")?;
        let connect =
            || TcpStream::connect_timeout(&address, PAYLOAD_DEADLINE).with_context(|| format!("TCP to {address}"));
        let mut near = client.enter(connect)?;
        let (mut far, _) = listener.accept().context("accepting")?;
        let again = |end: &TcpStream| end.try_clone().context("a second handle of a connection");
        let ends = [again(&near)?, again(&far)?];
        let (received, paused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, waits) = (received.clone(), paused.clone());
        let sending = thread::spawn(move || {
            let chunk = noise(1 << 16, 1);
            while near.write_all(&chunk).is_ok() {
                while waits.load(Ordering::Relaxed) {
                    thread::park();
                }
            }
        });
        let receiving = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = wait::uninterrupted(|| far.read(&mut buffer)) {
                counter.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        Ok(Self { received, paused, ends, threads: [Some(sending), Some(receiving)] })
    }

    /// Bytes that arrived.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Sends no more than is under way, until told to resume.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// Sends again.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
        if let [Some(sender), _] = &self.threads {
            sender.thread().unpark();
        }
    }

    /// Waits until `more` bytes than by now have arrived.
    ///
    /// # Errors
    /// When they have not in time.
    pub fn wait_received(&self, more: u64, deadline: Duration) -> Result<()> {
        let wanted = self.received() + more;
        wait::until(deadline, &format!("{more} more bytes of a TCP connection"), || self.received() >= wanted)
    }
}

impl Drop for TcpStreaming {
    fn drop(&mut self) {
        for end in &self.ends {
            // Fails where the other end closed it already.
            let _ = end.shutdown(Shutdown::Both);
        }
        self.resume();
        for thread in self.threads.iter_mut().filter_map(Option::take) {
            thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        }
    }
}

/// A datagram socket to `target` in `client` and one bound to it in `server`.
#[derive(Debug)]
pub struct UdpFlow {
    near: UdpSocket,
    far: UdpSocket,
    to: SocketAddr,
}

impl UdpFlow {
    /// Opens both ends.
    pub fn open(client: &Namespace, server: &Namespace, target: IpAddr) -> Result<Self> {
        let far = server.enter(|| UdpSocket::bind((target, 0)).context("binding the far end"))?;
        let near = client.enter(|| UdpSocket::bind((any_address(target), 0)).context("binding the near end"))?;
        let to = far.local_addr().context("the far end's address")?;
        far.set_read_timeout(Some(PAYLOAD_DEADLINE)).context("setting a deadline")?;
        near.set_read_timeout(Some(PAYLOAD_DEADLINE)).context("setting a deadline")?;
        Ok(Self { near, far, to })
    }

    /// Sends one datagram there and back and compares it at both ends.
    pub fn round_trip(&self, payload: &[u8]) -> Result<()> {
        self.near.send_to(payload, self.to).context("sending")?;
        let mut buffer = vec![0; 1 << 16];
        let (length, from) =
            wait::uninterrupted(|| self.far.recv_from(&mut buffer)).context("receiving at the far end")?;
        ensure!(&buffer[..length] == payload, "other bytes arrived at {}", self.to);
        self.far.send_to(payload, from).context("sending back")?;
        let length = wait::uninterrupted(|| self.near.recv(&mut buffer)).context("receiving the answer")?;
        ensure!(&buffer[..length] == payload, "other bytes came back from {}", self.to);
        Ok(())
    }
}

/// Bytes without a pattern that merging or padding could hide: a linear congruential sequence from `seed`.
pub fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

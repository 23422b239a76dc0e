//! One round of figures for one design.

use std::fmt;
use std::fs;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use super::designs::Path;
use crate::ping::any_address;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait;

const PORT: u16 = 5201;
/// Bytes of each datagram in the packet rate and the round trips.
const SMALL: usize = 64;
/// Loss that still counts as delivered, and how often a lower rate is tried.
const TOLERATED_LOSS: f64 = 0.01;
const RATES: u32 = 8;
/// How much lower each try is than what the one before delivered.
const STEP: f64 = 0.92;
/// Datagrams sent between two looks at the clock.
const BURST: u32 = 16;
/// Bytes: a receiver that has to wait for its CPU a moment loses nothing.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Silence after which the receiver takes it that all is there.
const LAST_DATAGRAMS: Duration = Duration::from_millis(500);
/// Round trips that are not counted, until everything is warm.
const WARM_UP: usize = 50;
/// A clock tick of `/proc/stat` (`USER_HZ`), seconds.
const TICK: f64 = 0.01;

/// What one design showed in one round.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// TCP over one and over four connections, Gb/s at the receiver.
    pub tcp1_gbps: f64,
    pub tcp4_gbps: f64,
    /// Datagrams of 64 bytes delivered per second with at most 1 % lost, and without a limit.
    pub pps: f64,
    pub flood_pps: f64,
    /// Round trip of a 64-byte datagram: median and 99th percentile, microseconds.
    pub rtt_us: f64,
    pub rtt_p99_us: f64,
    /// Busy time of all CPUs per gigabit, one connection, seconds.
    pub cpu_s_per_gbit: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tcp1_gbps, tcp4_gbps, pps, flood_pps, rtt_us, rtt_p99_us, cpu_s_per_gbit } = self;
        write!(
            f,
            "TCP {tcp1_gbps:.2} and {tcp4_gbps:.2} Gb/s, {:.0} kpps ({:.0} flooded), round trip {rtt_us:.0} us \
             (p99 {rtt_p99_us:.0}), {cpu_s_per_gbit:.3} CPU s/Gbit",
            pps / 1e3,
            flood_pps / 1e3
        )
    }
}

/// Measures a design, about seven times as long as `length`.
pub fn measure(path: &Path<'_>, length: Duration) -> Result<Figures> {
    let scratch = Scratch::new("iperf")?;
    let server = serve(path, &scratch)?;
    let busy = busy_seconds()?;
    let tcp1_gbps = tcp(path, length, 1)?;
    let cpu_s_per_gbit = (busy_seconds()? - busy) / (tcp1_gbps * length.as_secs_f64());
    let tcp4_gbps = tcp(path, length, 4)?;
    drop(server);
    let flood = udp(path, length, None)?;
    let mut kept = flood;
    for _ in 0..RATES {
        if kept.loss <= TOLERATED_LOSS {
            break;
        }
        kept = udp(path, length, Some(kept.delivered * STEP))?;
    }
    let pps = if kept.loss <= TOLERATED_LOSS { kept.delivered } else { 0.0 };
    let (rtt_us, rtt_p99_us) = round_trips(path, length)?;
    Ok(Figures { tcp1_gbps, tcp4_gbps, pps, flood_pps: flood.delivered, rtt_us, rtt_p99_us, cpu_s_per_gbit })
}

fn serve(path: &Path<'_>, scratch: &Scratch) -> Result<Process> {
    let options = format!("-s -p {PORT} -B {}", path.target).split(' ').map(str::to_owned).collect::<Vec<_>>();
    let server = Process::start(path.far, std::path::Path::new("iperf3"), &options, &scratch.path().join("server"))?;
    let listens = || path.far.ports("tcp").is_ok_and(|ports| ports.contains(&PORT));
    wait::until(Duration::from_secs(5), "iperf3 to listen", listens).with_context(|| server.output())?;
    Ok(server)
}

fn iperf(path: &Path<'_>, length: Duration, more: &str) -> Result<Value> {
    let command = format!("iperf3 -J -c {} -p {PORT} -t {} {more}", path.target, length.as_secs());
    let report = path.near.exec(command.trim_end())?;
    let report: Value = serde_json::from_str(&report).context("reading iperf3's report")?;
    Ok(report["end"].clone())
}

fn tcp(path: &Path<'_>, length: Duration, connections: u32) -> Result<f64> {
    let end = iperf(path, length, &format!("-P {connections}"))?;
    let bits = end["sum_received"]["bits_per_second"].as_f64().context("iperf3 reports no throughput")?;
    ensure!(bits > 0.0, "nothing arrived over TCP");
    Ok(bits / 1e9)
}

#[derive(Clone, Copy)]
struct Delivery {
    /// Datagrams per second.
    delivered: f64,
    /// Share of what was sent.
    loss: f64,
}

/// `rate` is in datagrams per second; without one the sender sends what it can.
fn udp(path: &Path<'_>, length: Duration, rate: Option<f64>) -> Result<Delivery> {
    let far = path.far.enter(|| UdpSocket::bind((path.target, 0)).context("binding the receiver"))?;
    setsockopt(&far, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("enlarging the receiver's buffer")?;
    far.set_read_timeout(Some(LAST_DATAGRAMS))?;
    let near = path.near.enter(|| UdpSocket::bind((any_address(path.target), 0)).context("binding the sender"))?;
    near.connect(far.local_addr()?)?;
    let (sent, received) = thread::scope(|scope| {
        let counting = scope.spawn(|| count(&far));
        let sent = send(&near, length, rate);
        let received = counting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (sent, received)
    });
    ensure!(sent > 0 && received > 0, "{received} of {sent} datagrams arrived");
    let (sent, received) = (f64::from(sent), f64::from(received));
    Ok(Delivery { delivered: received / length.as_secs_f64(), loss: 1.0 - received / sent })
}

/// Sends in small bursts, as many as `rate` asks for by now; returns how many.
fn send(socket: &UdpSocket, length: Duration, rate: Option<f64>) -> u32 {
    let (start, mut sent) = (Instant::now(), 0_u32);
    loop {
        let passed = start.elapsed();
        if passed >= length {
            return sent;
        }
        let is_ahead = rate.is_some_and(|rate| f64::from(sent) > rate * passed.as_secs_f64());
        if is_ahead {
            std::hint::spin_loop();
            continue;
        }
        for _ in 0..BURST {
            // A full buffer is no loss on the way.
            sent += u32::from(socket.send(&[7; SMALL]).is_ok());
        }
    }
}

/// Counts until nothing comes for a moment.
fn count(socket: &UdpSocket) -> u32 {
    let (mut buffer, mut received) = ([0; SMALL], 0);
    while socket.recv(&mut buffer).is_ok() {
        received += 1;
    }
    received
}

/// Median and 99th percentile, microseconds.
fn round_trips(path: &Path<'_>, length: Duration) -> Result<(f64, f64)> {
    let patience = Some(Duration::from_secs(1));
    let far = path.far.enter(|| UdpSocket::bind((path.target, 0)).context("binding the echo"))?;
    let near = path.near.enter(|| UdpSocket::bind((any_address(path.target), 0)).context("binding the sender"))?;
    near.connect(far.local_addr()?)?;
    near.set_read_timeout(patience)?;
    far.set_read_timeout(Some(Duration::from_millis(100)))?;
    let end = Instant::now() + length;
    let mut seen = thread::scope(|scope| {
        let echo = scope.spawn(|| echo(&far, end));
        let seen = exchange(&near, end);
        echo.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        seen
    })?;
    seen.drain(..WARM_UP.min(seen.len() / 2));
    seen.sort_unstable();
    ensure!(!seen.is_empty(), "no round trip was completed");
    let at = |share: usize| seen[(seen.len() - 1) * share / 100].as_secs_f64() * 1e6;
    Ok((at(50), at(99)))
}

fn echo(socket: &UdpSocket, end: Instant) -> Result<()> {
    let mut buffer = [0; SMALL];
    while Instant::now() < end {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).context("echoing")?;
        }
    }
    Ok(())
}

fn exchange(socket: &UdpSocket, end: Instant) -> Result<Vec<Duration>> {
    let (mut buffer, mut seen) = ([0; SMALL], Vec::new());
    while Instant::now() < end {
        let start = Instant::now();
        socket.send(&[7; SMALL]).context("sending")?;
        // One that is lost, or whose echo has ended, is not counted.
        if socket.recv(&mut buffer).is_ok() {
            seen.push(start.elapsed());
        }
    }
    Ok(seen)
}

/// Time that all CPUs together were not idle (`proc(5)`).
fn busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    ensure!(ticks.len() > 4, "/proc/stat has another form: {line}");
    let idle = ticks[3] + ticks[4];
    Ok((ticks.iter().sum::<f64>() - idle) * TICK)
}

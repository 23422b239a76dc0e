//! `tincan doctor`: is this host fit for a node, and do the servers do what a node asks of them?
//!
//! Every check does what the daemon would do, with the daemon's own code, once, and takes it back. The checks of servers
//! run at the same time, so that silent ones together take no longer than one.

mod addresses;
mod clock;
mod daemon;
mod device;
mod kernel_clock;
mod mtu;
mod nat;
mod options;
mod permissions;
mod place;
mod report;
mod stun;
mod turn;
mod xmpp;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::config::DaemonConfig;
use crate::doctor::mtu::Listener;
pub use crate::doctor::options::DoctorOptions;
use crate::doctor::options::Plan;
use crate::doctor::report::Check;
pub use crate::doctor::report::{Report, State};

/// For each check: all of them end by themselves before, unless a disk or a resolver hangs.
const DEADLINE: Duration = Duration::from_millis(14_500);

/// Any port will do for a look at the path; one nobody listens at tells most (traceroute's first).
const CLOSED_PORT: u16 = 33_434;

/// Looks at everything; takes less than 15 s. The error is one of this program, not of the host.
pub fn run(options: DoctorOptions) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let report = runtime.block_on(examine(options));
    // A look-up of a name may hang in the resolver for longer than anybody waits here.
    runtime.shutdown_background();
    Ok(report)
}

async fn examine(options: DoctorOptions) -> Report {
    let Plan { config, xmpp, stun, turn, peers } = match options.resolve() {
        Ok(plan) => plan,
        Err(error) => {
            let advice = "correct the option, the file or its permissions";
            return Report(vec![Check::problem("configuration", format!("{error:#}"), advice)]);
        }
    };
    let own = config.clone();
    let targets = [
        stun.clone().map(|name| (name, Listener::Stun)),
        turn.as_ref().map(|target| (target.address.clone(), Listener::Stun)),
        xmpp.as_ref().map(|target| (format!("{}:{}", target.host, target.port), Listener::Other)),
    ];
    let targets = targets.into_iter().flatten().chain(peers.into_iter().map(|peer| (with_port(peer), Listener::Other)));
    let (mut host, own_addresses, servers, relay, (login, server_clock), paths) = tokio::join!(
        within("host", spawn_blocking(move || host(&own)), |host| host.unwrap_or_else(|failed| vec![broken(&failed)])),
        within("addresses", addresses::check(&config.tap), |check| vec![check]),
        within("stun", stun::check(stun.as_deref()), Vec::from),
        within("turn", turn::check(turn.as_ref()), |check| vec![check]),
        login(xmpp.as_ref(), &config),
        within("path-mtu", paths(targets.collect(), config.mtu), |checks| checks),
    );
    host.push(clock::check(&config.state_dir, server_clock));
    Report([host, own_addresses, servers, relay, vec![login], paths].concat())
}

async fn within<T>(
    name: &'static str,
    check: impl Future<Output = T>,
    into: impl FnOnce(T) -> Vec<Check>,
) -> Vec<Check> {
    match timeout(DEADLINE, check).await {
        Ok(done) => into(done),
        Err(_) => vec![overdue(name)],
    }
}

async fn login(target: Option<&options::XmppTarget>, config: &DaemonConfig) -> (Check, Option<i64>) {
    timeout(DEADLINE, xmpp::check(target, config)).await.unwrap_or_else(|_| (overdue("xmpp"), None))
}

fn overdue(name: &'static str) -> Check {
    Check::problem(name, format!("no result in {} s", DEADLINE.as_secs_f32()), "look at this host's disks and resolver")
}

fn broken(failed: &tokio::task::JoinError) -> Check {
    Check::problem("host", format!("the checks of this host broke off: {failed}"), "report this as a bug of tincan")
}

/// Everything that takes no server.
fn host(config: &DaemonConfig) -> Vec<Check> {
    let (socket, running) = daemon::find(&config.socket);
    let mut checks = vec![permissions::check(config.fast_path)];
    checks.extend(device::checks(config, running.as_ref()));
    checks.extend([
        permissions::state_dir(&config.state_dir),
        socket,
        daemon::rpc_port(config, running.as_ref()),
        daemon::uplink_ports(config, running.as_ref()),
    ]);
    checks
}

fn with_port(peer: String) -> String {
    match peer.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, CLOSED_PORT).to_string(),
        Err(_) if peer.contains(':') => peer,
        Err(_) => format!("{peer}:{CLOSED_PORT}"),
    }
}

/// One look for each address, however many names it has.
async fn paths(targets: Vec<(String, Listener)>, tap_mtu: u16) -> Vec<Check> {
    if targets.is_empty() {
        return vec![Check::skipped("path-mtu", "no server and no peer named", "add --peer ADDRESS")];
    }
    let found = futures_util::future::join_all(targets.iter().map(|(name, _)| place::find("the", name))).await;
    let mut addresses: Vec<(SocketAddr, Listener)> = Vec::new();
    let mut checks = Vec::new();
    for (found, (_, listener)) in found.into_iter().zip(&targets) {
        match found {
            Ok(address) if addresses.iter().any(|(known, _)| known.ip() == address.ip()) => {}
            Ok(address) => addresses.push((address, *listener)),
            Err(problem) => checks.push(Check::skipped("path-mtu", problem, "correct the name")),
        }
    }
    let looks = addresses.into_iter().map(|(address, listener)| mtu::check(address, listener, tap_mtu));
    checks.extend(futures_util::future::join_all(looks).await);
    checks
}

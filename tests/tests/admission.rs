//! Who may use the UDP door: the users of one host, on its loopback.
//!
//! ```text
//!   root, nobody --- lo --- daemon :5800
//! ```

use std::io::{ErrorKind, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use nix::unistd::{Pid, Uid, User, setfsuid};
use serde_json::{Value, json};
use tincan_tests::controller::Node;
use tincan_tests::daemon::{Daemon, DaemonOptions};
use tincan_tests::netns::Namespace;
use tincan_tests::udp_door::{CONTROL, PACKET, VERSION};
use tincan_tests::wait;

const ROOT: u32 = 0;
const NOBODY: u32 = 65_534;

const DOOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5800);
const DOOR_V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 5800);

const DEADLINE: Duration = Duration::from_secs(5);

/// A socket that belongs to `uid`: the owner of a socket is who its maker is to file systems, of one thread here.
fn socket_of(namespace: &Namespace, uid: u32, local: &str) -> Result<UdpSocket> {
    namespace.enter(|| {
        setfsuid(Uid::from_raw(uid));
        let socket = UdpSocket::bind(local).with_context(|| format!("binding {local} for user {uid}"))?;
        socket.set_read_timeout(Some(DEADLINE)).context("setting a deadline")?;
        Ok(socket)
    })
}

fn control(call: &Value) -> Vec<u8> {
    [&[VERSION, CONTROL], call.to_string().as_bytes()].concat()
}

fn echo() -> Vec<u8> {
    control(&json!({"m": "echo_request", "msg": "hello"}))
}

/// One datagram for every method, one of an unknown name, a frame, and text that is not JSON.
fn everything() -> Vec<Vec<u8>> {
    let peer = "02".repeat(20);
    let fingerprint = ["AB"; 32].join(":");
    let calls = [
        json!({"m": "set_local_ip", "uid": peer, "ip4": "172.16.0.9", "ip6": "fd00::9", "ip4_mask": 24, "ip6_mask": 64}),
        json!({"m": "register_svc", "username": "a@b.c", "password": "secret", "host": "b.c"}),
        json!({"m": "get_state", "uid": "", "stats": true}),
        json!({"m": "create_link", "uid": peer, "fpr": fingerprint, "overlay_id": 0, "sec": true}),
        json!({"m": "set_remote_ip", "uid": peer, "ip4": "172.16.0.2", "ip6": "fd00::2"}),
        json!({"m": "trim_link", "uid": peer}),
        json!({"m": "set_cb_endpoint", "ip": "::", "port": 1}),
        json!({"m": "set_logging", "logging": 0}),
        json!({"m": "set_switchmode", "switchmode": 1}),
        json!({"m": "set_translation", "translate": 1}),
        json!({"m": "set_trimpolicy", "trim_enabled": true}),
        json!({"m": "set_network_ignore_list", "network_ignore_list": ["eth0"]}),
        json!({"m": "echo_request", "msg": "hello"}),
        json!({"m": "echo_reply", "msg": "hello"}),
        json!({"m": "con_req", "uid": peer, "data": fingerprint, "overlay_id": 1}),
        json!({"m": "send_msg", "uid": peer, "data": "hello", "overlay_id": 1}),
        json!({"m": "any_other", "uid": peer, "data": "hello", "overlay_id": 1}),
    ];
    let frame = [&[VERSION, PACKET][..], &[0; 40], &[0xff; 60]].concat();
    calls.iter().map(control).chain([frame, [&[VERSION, CONTROL], &b"not JSON"[..]].concat()]).collect()
}

fn counter(daemon: &Daemon, name: &str) -> Result<u64> {
    daemon.call("counters", &json!({}))?[name].as_u64().with_context(|| format!("no counter {name}"))
}

fn await_counter(daemon: &Daemon, name: &str, value: u64) -> Result<()> {
    wait::until(DEADLINE, &format!("{name} to be {value}"), || counter(daemon, name).is_ok_and(|now| now == value))
}

/// What calls change; the counters apart.
fn state(daemon: &Daemon) -> Result<Value> {
    let mut status = daemon.call("status", &json!({}))?;
    status.as_object_mut().context("a status that is no object")?.remove("counters");
    Ok(status)
}

fn is_answered(socket: &UdpSocket, door: SocketAddr) -> Result<()> {
    socket.send_to(&echo(), door).context("sending an echo")?;
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).context("no answer to an echo")?;
    ensure!(from.port() == door.port() && from.ip().to_canonical() == door.ip().to_canonical(), "{from} answers");
    ensure!(String::from_utf8_lossy(&buffer[..length]).contains("hello"), "another answer");
    Ok(())
}

fn heard_nothing(socket: &UdpSocket) -> Result<()> {
    socket.set_nonblocking(true)?;
    let heard = socket.recv(&mut [0; 2048]);
    ensure!(heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{heard:?}");
    Ok(())
}

/// The ways a socket can reach the door: bound to the address or to none, over either family, or over both.
fn ways() -> [(&'static str, SocketAddr); 5] {
    let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 5800));
    [("127.0.0.1:0", DOOR), ("0.0.0.0:0", DOOR), ("[::1]:0", DOOR_V6), ("[::]:0", DOOR_V6), ("[::]:0", mapped)]
}

#[test]
fn root_is_answered_over_every_kind_of_socket() -> Result<()> {
    let host = Namespace::new("host")?;
    let daemon = Daemon::start(&host, &DaemonOptions::default())?;
    for (local, door) in ways() {
        let socket = socket_of(&host, ROOT, local)?;
        is_answered(&socket, door).with_context(|| format!("unconnected, {local} to {door}"))?;
        socket.connect(door)?;
        is_answered(&socket, door).with_context(|| format!("connected, {local} to {door}"))?;
    }
    for name in ["rpc_foreign_users", "rpc_closed_senders", "rpc_failed_lookups"] {
        ensure!(counter(&daemon, name)? == 0, "{name} counts");
    }
    Ok(())
}

#[test]
fn another_user_is_refused_every_call_and_frame_over_every_kind_of_socket() -> Result<()> {
    let host = Namespace::new("host")?;
    let mut node = Node::start(&host, 1)?;
    let names = ["rpc_calls", "rpc_frames", "rpc_malformed"];
    let counters = |node: &Node| names.map(|name| counter(&node.daemon, name).ok());
    let (state_before, counters_before) = (state(&node.daemon)?, counters(&node));
    let mut refused = 0;
    for (local, door) in ways() {
        for connected in [false, true] {
            let socket = socket_of(&host, NOBODY, local)?;
            if connected {
                socket.connect(door)?;
            }
            for datagram in everything() {
                socket.send_to(&datagram, door)?;
                refused += 1;
            }
            await_counter(&node.daemon, "rpc_foreign_users", refused)?;
            heard_nothing(&socket)?;
        }
    }
    ensure!(counters(&node) == counters_before, "{names:?}: {counters_before:?} became {:?}", counters(&node));
    let state_after = state(&node.daemon)?;
    ensure!(state_after == state_before, "{state_before} became {state_after}");
    let lines = node.daemon.log().matches("controller datagram refused").count();
    ensure!(lines == 1, "{refused} refusals within a minute made {lines} lines in the log");
    node.door.send(&json!({"m": "echo_request", "msg": "still here"}))?;
    node.door.take(DEADLINE, "an echo", |received| received.json().is_some_and(|json| json["msg"] == "still here"))?;
    Ok(())
}

#[test]
fn a_process_of_another_user_is_refused() -> Result<()> {
    let host = Namespace::new("host")?;
    let daemon = Daemon::start(&host, &DaemonOptions::default())?;
    let script = r#"exec 3<>/dev/udp/127.0.0.1/5800; printf '\x02\x01{"m":"set_logging","logging":0}' >&3; read -r"#;
    for (uid, counted) in [(NOBODY, "rpc_foreign_users"), (ROOT, "rpc_calls")] {
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).uid(uid).current_dir("/").stdin(Stdio::piped());
        let mut child = host.enter(|| bash.spawn().context("starting bash"))?;
        let seen = await_counter(&daemon, counted, 1);
        drop(child.stdin.take());
        child.wait().context("waiting for bash")?;
        seen.with_context(|| format!("as user {uid}"))?;
    }
    ensure!(counter(&daemon, "rpc_foreign_users")? == 1, "root is refused");
    Ok(())
}

#[test]
fn another_user_cannot_pass_for_root_by_the_address_of_a_socket_of_root() -> Result<()> {
    let host = Namespace::new("host")?;
    let daemon = Daemon::start(&host, &DaemonOptions::default())?;
    let controller = socket_of(&host, ROOT, "127.0.0.1:0")?;
    is_answered(&controller, DOOR)?;
    let forger = socket_of(&host, NOBODY, &format!("127.0.0.5:{}", controller.local_addr()?.port()))?;
    let loopback = in_addr { s_addr: u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()) };
    let source = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: loopback, ipi_addr: in_addr { s_addr: 0 } };
    let door = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, DOOR.port()));
    let (payload, control) = (echo(), [ControlMessage::Ipv4PacketInfo(&source)]);
    sendmsg(forger.as_raw_fd(), &[IoSlice::new(&payload)], &control, MsgFlags::empty(), Some(&door))
        .context("sending from an address of choice")?;
    await_counter(&daemon, "rpc_foreign_users", 1)?;
    heard_nothing(&controller)?;
    controller.set_nonblocking(false)?;
    let log = daemon.log();
    let sender = format!("sender={}", controller.local_addr()?);
    ensure!(log.contains(&sender), "the forged source is not in the log");
    drop(forger);
    is_answered(&controller, DOOR).context("after the forger left")
}

#[test]
fn a_sender_that_closed_its_socket_is_refused() -> Result<()> {
    let host = Namespace::new("host")?;
    let daemon = Daemon::start(&host, &DaemonOptions::default())?;
    let pid = Pid::from_raw(i32::try_from(daemon.pid())?);
    kill(pid, Signal::SIGSTOP).context("stopping the daemon for a moment")?;
    let sent = socket_of(&host, ROOT, "127.0.0.1:0").map(|socket| socket.send_to(&echo(), DOOR));
    kill(pid, Signal::SIGCONT).context("letting the daemon go on")?;
    sent?.context("sending an echo")?;
    await_counter(&daemon, "rpc_closed_senders", 1)?;
    ensure!(counter(&daemon, "rpc_calls")? == 0, "it was carried out");
    Ok(())
}

#[test]
fn who_takes_a_controllers_port_over_is_told_nothing() -> Result<()> {
    const PORT: &str = "127.0.0.1:6001";
    let host = Namespace::new("host")?;
    let alice = Node::start(&host, 1)?;
    let create = |peer: u8| {
        let params =
            json!({"uid": format!("{peer:02x}").repeat(20), "fpr": alice.fingerprint, "overlay_id": 0, "sec": true});
        alice.daemon.call("create_link", &params)
    };
    let hears = |controller: &UdpSocket, peer: u8| -> Result<()> {
        let mut buffer = [0; 4096];
        let length = controller.recv(&mut buffer).context("no con_resp")?;
        let json: Value = serde_json::from_slice(&buffer[2..length])?;
        ensure!(json["type"] == "con_resp" && json["uid"] == format!("{peer:02x}").repeat(20), "{json}");
        Ok(())
    };
    let controller = socket_of(&host, ROOT, PORT)?;
    alice.daemon.call("set_cb_endpoint", &json!({"ip": "127.0.0.1", "port": 6001}))?;
    create(2)?;
    hears(&controller, 2)?;
    drop(controller);
    // Nobody is there; then somebody else is.
    create(3)?;
    await_counter(&alice.daemon, "rpc_unheard", 1)?;
    let thief = socket_of(&host, NOBODY, PORT)?;
    create(4)?;
    await_counter(&alice.daemon, "rpc_unheard", 2)?;
    heard_nothing(&thief)?;
    drop(thief);
    let controller = socket_of(&host, ROOT, PORT)?;
    create(5)?;
    hears(&controller, 5)
}

#[test]
fn a_user_of_the_configured_group_is_answered() -> Result<()> {
    let host = Namespace::new("host")?;
    let account = User::from_uid(Uid::from_raw(NOBODY))?.context("no user 65534")?;
    let more = vec!["--rpc-group".to_owned(), account.gid.to_string()];
    let _daemon = Daemon::start(&host, &DaemonOptions { more, ..DaemonOptions::default() })?;
    for (local, door) in ways() {
        is_answered(&socket_of(&host, NOBODY, local)?, door).with_context(|| format!("{local} to {door}"))?;
    }
    Ok(())
}

#[test]
fn a_group_that_does_not_exist_is_named_at_the_start() -> Result<()> {
    let host = Namespace::new("host")?;
    let more = vec!["--rpc-group".to_owned(), "no-such-group".to_owned()];
    let said = Daemon::start_refused(&host, &DaemonOptions { more, ..DaemonOptions::default() })?;
    ensure!(said.contains("no-such-group") && said.contains("groupadd"), "{said}");
    Ok(())
}

#[test]
fn an_endpoint_off_the_host_needs_the_option() -> Result<()> {
    let endpoint = json!({"ip": "192.0.2.9", "port": 5000});
    let host = Namespace::new("host")?;
    let refusing = Daemon::start(&host, &DaemonOptions::default())?;
    let error = refusing.call("set_cb_endpoint", &endpoint).err().context("it is accepted")?.to_string();
    ensure!(error.contains("--allow-remote-controller"), "{error}");
    drop(refusing);
    let more = vec!["--allow-remote-controller".to_owned()];
    let allowing = Daemon::start(&host, &DaemonOptions { more, ..DaemonOptions::default() })?;
    allowing.call("set_cb_endpoint", &endpoint)?;
    Ok(())
}

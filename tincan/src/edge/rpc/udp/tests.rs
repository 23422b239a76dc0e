//! The door over loopback, with a controller's socket at the other end.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::wire::notification::LinkStatus;
use crate::wire::state::{LocalState, PeerState};
use crate::wire::uid::UID_LEN;

const PATIENCE: Duration = Duration::from_secs(5);

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A door on IPv4 loopback and a controller that is connected to it, so it hears only what comes from that address.
async fn door_and_controller() -> (UdpDoor, UdpSocket) {
    let door = UdpDoor::bind(&LOOPBACK[..1], 0, Admission::new(None)).unwrap();
    let controller = controller_of(door.local_addrs()[0]).await;
    (door, controller)
}

async fn controller_of(door: SocketAddr) -> UdpSocket {
    let any: IpAddr = if door.is_ipv4() { LOOPBACK[0] } else { LOOPBACK[1] };
    let controller = UdpSocket::bind((any, 0)).await.unwrap();
    controller.connect(door).await.unwrap();
    controller
}

async fn next(door: &mut UdpDoor) -> UdpInput {
    timeout(PATIENCE, door.recv()).await.expect("the door hears it")
}

async fn next_call(door: &mut UdpDoor) -> (SocketAddr, Request) {
    match next(door).await {
        UdpInput::Call { from, request } => (from, request),
        UdpInput::Frame { packet } => panic!("a call was expected, not {packet:?}"),
    }
}

async fn heard(controller: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; LONGEST];
    let len = timeout(PATIENCE, controller.recv(&mut buffer)).await.expect("the door answers").unwrap();
    buffer.truncate(len);
    buffer
}

async fn heard_json(controller: &UdpSocket) -> Value {
    match decode_datagram(&heard(controller).await) {
        Ok(Datagram::Control(json)) => json,
        other => panic!("JSON was expected, not {other:?}"),
    }
}

fn counter(door: &UdpDoor, name: &str) -> u64 {
    door.counters().iter().find(|(counter, _)| *counter == name).expect("such a counter").1
}

fn echo(message: &str) -> Vec<u8> {
    encode_json(&json!({"m": "echo_request", "msg": message}))
}

#[tokio::test]
async fn a_call_comes_with_its_caller_and_is_answered_from_the_address_that_was_called() {
    let mut door = UdpDoor::bind(&LOOPBACK, 0, Admission::new(None)).unwrap();
    assert_eq!(door.local_addrs().len(), 2);
    for address in door.local_addrs() {
        let controller = controller_of(address).await;
        controller.send(&echo("hello")).await.unwrap();
        let (from, request) = next_call(&mut door).await;
        assert_eq!(
            (from, request),
            (controller.local_addr().unwrap(), Request::EchoRequest { message: "hello".into() })
        );
        door.answer(from, &Answer::Echo("hello".into()));
        assert_eq!(heard_json(&controller).await, json!({"type": "echo_reply", "msg": "hello"}));
    }
    assert_eq!(counter(&door, "calls"), 2);
}

#[tokio::test]
async fn an_answer_sent_before_anything_was_received_arrives() {
    let (mut door, controller) = door_and_controller().await;
    let uid = Uid::new([7; UID_LEN]);
    door.notify(controller.local_addr().unwrap(), &Notification::ConnectionStatus { uid, status: LinkStatus::Online });
    assert_eq!(heard_json(&controller).await, json!({"type": "con_stat", "uid": uid.to_string(), "data": "online"}));
}

#[tokio::test]
async fn only_text_that_is_not_json_is_answered_and_everything_malformed_is_counted() {
    let (mut door, controller) = door_and_controller().await;
    for malformed in [&b""[..], b"\x02", b"\x01\x01{}", b"\x02\x03{}", b"\x02\x02short", b"\x02\x01{\"m\":"] {
        controller.send(malformed).await.unwrap();
    }
    controller.send(&encode_json(&json!({"m": "trim_link", "uid": "nobody"}))).await.unwrap();
    controller.send(&echo("after")).await.unwrap();
    let (from, _) = next_call(&mut door).await;
    door.answer(from, &Answer::Echo("after".into()));
    assert_eq!(heard(&controller).await, PARSE_ERROR);
    assert_eq!(heard_json(&controller).await["msg"], "after");
    assert_eq!((counter(&door, "malformed"), counter(&door, "refused_parameters"), counter(&door, "calls")), (6, 1, 1));
}

#[tokio::test]
async fn a_state_is_one_local_state_and_then_a_peer_state_for_each_peer() {
    let (door, controller) = door_and_controller().await;
    let uids = [1, 2, 3].map(|byte| Uid::new([byte; UID_LEN]));
    let peers = uids.map(|uid| PeerState { uid, addresses: None, presence_age: Duration::ZERO, link: None }).to_vec();
    let local = LocalState {
        uid: Some(Uid::new([9; UID_LEN])),
        ip4: "172.31.0.100".into(),
        ip6: "fd50::1".into(),
        fingerprint: "00:00".into(),
        mac: [2, 0, 0, 0, 0, 1],
    };
    let state = State { local, peers, with_stats: false };
    door.answer(controller.local_addr().unwrap(), &Answer::State(Box::new(state)));
    assert_eq!(heard_json(&controller).await["type"], "local_state");
    for uid in uids {
        assert_eq!(heard_json(&controller).await["uid"], uid.to_string());
    }
}

#[tokio::test]
async fn done_kept_and_refused_calls_are_not_answered_as_in_2014() {
    let (door, controller) = door_and_controller().await;
    let to = controller.local_addr().unwrap();
    for answer in [Answer::Done, Answer::Kept("the first"), Answer::Refused("no".into()), Answer::Echo("last".into())] {
        door.answer(to, &answer);
    }
    assert_eq!(heard_json(&controller).await["msg"], "last");
}

#[tokio::test]
async fn frames_pass_both_ways_with_their_uids_up_to_the_longest_datagram() {
    let (mut door, controller) = door_and_controller().await;
    let (source, destination) = (Uid::new([1; UID_LEN]), Uid::new([2; UID_LEN]));
    let frame = vec![0xab; 65_507 - crate::wire::control::PACKET_HEADER_LEN];
    controller.send(&encode_packet(source, destination, &frame)).await.unwrap();
    match next(&mut door).await {
        UdpInput::Frame { packet } => {
            assert!(packet == ControlPacket { source, destination, frame: frame.clone() });
        }
        UdpInput::Call { request, .. } => panic!("a frame was expected, not {request:?}"),
    }
    assert_eq!(counter(&door, "frames"), 1);
    door.forward(controller.local_addr().unwrap(), source, Uid::ZERO, &frame);
    assert!(heard(&controller).await == encode_packet(source, Uid::ZERO, &frame));
}

#[tokio::test]
async fn what_is_too_long_for_a_datagram_is_counted() {
    let (mut door, controller) = door_and_controller().await;
    door.forward(controller.local_addr().unwrap(), Uid::ZERO, Uid::ZERO, &vec![0; LONGEST]);
    assert_eq!(counter(&door, "unsent"), 1);
}

#[tokio::test]
async fn a_call_from_another_host_is_counted_and_no_more() {
    let (mut door, _) = door_and_controller().await;
    assert!(!door.admits("192.0.2.1:4000".parse().unwrap()));
    assert_eq!((counter(&door, "foreign_sources"), counter(&door, "calls")), (1, 0));
}

#[tokio::test]
async fn a_flood_at_one_address_does_not_hold_up_the_other() {
    let mut door = UdpDoor::bind(&LOOPBACK, 0, Admission::new(None)).unwrap();
    let [flooded, quiet] = door.local_addrs()[..] else { panic!("two addresses") };
    let (noisy, controller) = (controller_of(flooded).await, controller_of(quiet).await);
    for _ in 0..20 {
        noisy.send(&echo("flood")).await.unwrap();
    }
    controller.send(&echo("hello")).await.unwrap();
    let mut callers = Vec::new();
    for _ in 0..21 {
        callers.push(next_call(&mut door).await.0);
    }
    let place = callers.iter().position(|caller| *caller == controller.local_addr().unwrap());
    assert!(place.is_some_and(|place| place < 20), "served at {place:?}");
}

#[tokio::test]
async fn an_address_in_use_is_an_error_and_one_the_host_lacks_is_left_out() {
    let lacking: IpAddr = "192.0.2.1".parse().unwrap();
    let door = UdpDoor::bind(&[lacking, LOOPBACK[0]], 0, Admission::new(None)).unwrap();
    let [address] = door.local_addrs()[..] else { panic!("one address") };
    let error =
        UdpDoor::bind(&[LOOPBACK[1], LOOPBACK[0]], address.port(), Admission::new(None)).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("--rpc-port"), "{error}");
    assert!(UdpDoor::bind(&[lacking], 0, Admission::new(None)).unwrap_err().to_string().contains("--rpc-address"));
    drop(door);
    UdpDoor::bind(&LOOPBACK[..1], address.port(), Admission::new(None)).expect("a dropped door frees its port");
}

#[tokio::test]
async fn a_callback_endpoint_off_loopback_is_sent_to_by_an_unbound_socket() {
    let (_, controller) = door_and_controller().await;
    let endpoint = UdpSocket::bind((LOOPBACK[0], 0)).await.unwrap();
    drop(controller);
    send_off_loopback(endpoint.local_addr().unwrap(), b"hello").unwrap();
    assert_eq!(heard(&endpoint).await, b"hello");
}

//! A STUN server's answers, sound and damaged, and what is made of silence.

use stun::attributes::{ATTR_ERROR_CODE, ATTR_OTHER_ADDRESS};
use stun::message::{BINDING_ERROR, BINDING_SUCCESS};
use stun::xoraddr::XorMappedAddress;

use super::*;
use crate::doctor::report::State;

const OTHER: [u8; 8] = [0, 1, 0x0d, 0x97, 198, 51, 100, 11];

fn answer(id: TransactionId) -> Vec<u8> {
    let mapped = XorMappedAddress { ip: [203, 0, 113, 1].into(), port: 4000 };
    build(BINDING_SUCCESS, id, vec![Box::new(mapped), raw(ATTR_OTHER_ADDRESS, OTHER)], None)
}

fn server() -> SocketAddr {
    "198.51.100.10:3478".parse().unwrap()
}

#[test]
fn an_answer_to_any_of_our_requests_counts_and_no_other() {
    let sent = [(TransactionId::new(), Instant::now()), (TransactionId::new(), Instant::now())];
    for (id, _) in sent {
        let read = read(&answer(id), server(), &sent).unwrap().unwrap();
        assert_eq!(read.mapped, "203.0.113.1:4000".parse().unwrap());
        assert_eq!(read.other, Some("198.51.100.11:3479".parse().unwrap()));
    }
    assert!(read(&answer(TransactionId::new()), server(), &sent).is_none());
}

#[test]
fn damaged_answers_are_ignored_or_rejected_but_never_believed_wrongly() {
    let sent = [(TransactionId::new(), Instant::now())];
    let good = answer(sent[0].0);
    for length in 0..good.len() {
        assert!(read(&good[..length], server(), &sent).is_none(), "{length} bytes");
    }
    for index in 0..good.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[index] ^= flip;
            // FINGERPRINT covers all; without its own type it is an attribute nobody knows.
            if let Some(Ok(answer)) = read(&bad, server(), &sent) {
                assert_eq!(answer.mapped.port(), 4000, "byte {index}");
            }
        }
    }
}

#[test]
fn an_error_is_told_in_the_servers_words_and_a_missing_address_is_named() {
    let sent = [(TransactionId::new(), Instant::now())];
    let code = [&[0, 0, 4, 20][..], b"Unknown Attribute"].concat();
    let error = build(BINDING_ERROR, sent[0].0, vec![raw(ATTR_ERROR_CODE, code)], None);
    let Some(Err(Failure::Rejected(words))) = read(&error, server(), &sent) else { panic!("an error") };
    assert_eq!(words, "420 Unknown Attribute");
    let bare = build(BINDING_SUCCESS, sent[0].0, Vec::new(), None);
    let Some(Err(Failure::Rejected(words))) = read(&bare, server(), &sent) else { panic!("an error") };
    assert!(words.contains("XOR-MAPPED-ADDRESS"), "{words}");
}

#[test]
fn only_a_true_second_address_is_asked() {
    for (other, expected) in [
        ("198.51.100.11:3479", true),
        ("198.51.100.10:3479", false),
        ("198.51.100.11:3478", false),
        ("198.51.100.11:0", false),
        ("0.0.0.0:3479", false),
        ("127.0.0.1:3479", false),
        ("224.0.0.1:3479", false),
        ("255.255.255.255:3479", false),
        ("[2001:db8::1]:3479", false),
    ] {
        assert_eq!(is_other(server(), other.parse().unwrap()), expected, "{other}");
    }
}

#[test]
fn an_answer_from_where_it_was_not_asked_for_is_ignored() {
    let answer = |from: &str| {
        let from = from.parse().unwrap();
        Ok(Answer { from, mapped: server(), other: None, rtt: Duration::ZERO })
    };
    let other = |from: SocketAddr| from.port() == 3479;
    assert_eq!(came(&answer("198.51.100.11:3479"), other), Came::Through);
    assert_eq!(came(&answer("198.51.100.10:3478"), other), Came::Ignored);
    assert_eq!(came(&Err(Failure::Silent), other), Came::NotThrough);
    assert_eq!(came(&Err(Failure::Rejected(String::new())), other), Came::Ignored);
}

#[tokio::test]
async fn a_closed_port_is_named_at_once_and_not_taken_for_silence() {
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = look(closed).await.unwrap_err();
    let check = refused("here", closed, &failure);
    assert_eq!(check.state, State::Problem);
    assert!(check.found.contains("ICMP port unreachable"), "{}", check.found);
    assert!(refused("x", closed, &Failure::Silent).found.contains("is silent"));
}

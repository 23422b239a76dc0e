//! Who counts as a peer, over sessions, rivals and floods.

use super::*;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn jid(text: &str) -> FullJid {
    FullJid::new(text).unwrap()
}

fn node(account: &str, uid: &str) -> FullJid {
    jid(&format!("{account}@x.test/tincan{uid}"))
}

fn bare(account: &str) -> BareJid {
    BareJid::new(&format!("{account}@x.test")).unwrap()
}

fn uid(text: &str) -> Uid {
    text.parse().unwrap()
}

fn appear(peers: &mut Peers, from: &FullJid) -> Result<Uid, Refusal> {
    peers.appeared(from, Instant::now())
}

/// We are a@x.test; bob and mallory are in the roster.
fn peers() -> Peers {
    let mut peers = Peers::new(node("a", A), uid(A));
    peers.begin_session(node("a", A));
    peers.set_accounts([bare("bob"), bare("mallory")]);
    peers
}

#[test]
fn roster_accounts_and_our_own_other_nodes_count_and_nobody_else() {
    let mut peers = peers();
    assert_eq!(appear(&mut peers, &node("bob", B)), Ok(uid(B)));
    let c = "c".repeat(40);
    assert_eq!(appear(&mut peers, &node("a", &c)), Ok(uid(&c)));
    assert_eq!(appear(&mut peers, &node("eve", &"d".repeat(40))), Err(Refusal::Stranger));
    assert_eq!(peers.spoke(&node("eve", &"d".repeat(40)), Instant::now()), Err(Refusal::Stranger));
    assert_eq!(appear(&mut peers, &jid("bob@x.test/phone")), Err(Refusal::NoNode));
    assert_eq!(appear(&mut peers, &node("a", A)), Err(Refusal::NoNode), "ourselves");
    assert_eq!(appear(&mut peers, &node("bob", &"0".repeat(40))), Err(Refusal::NoNode), "the uid of nobody");
    assert_eq!(peers.address(uid(B)), Some(&node("bob", B)));
    assert_eq!(peers.address(uid(&"d".repeat(40))), None);
}

#[test]
fn a_uid_belongs_to_the_first_account_that_is_present_under_it() {
    let mut peers = peers();
    assert_eq!(appear(&mut peers, &node("bob", B)), Ok(uid(B)));
    assert_eq!(appear(&mut peers, &node("mallory", B)), Err(Refusal::Claimed { fresh: true }));
    assert_eq!(peers.spoke(&node("mallory", B), Instant::now()), Err(Refusal::Claimed { fresh: false }));
    assert_eq!(peers.left(&node("mallory", B), Instant::now()), None, "and cannot be declared gone by the other");
    assert_eq!(peers.address(uid(B)), Some(&node("bob", B)));
    assert_eq!(peers.left(&node("bob", B), Instant::now()), Some(uid(B)));
    let refusal = Err(Refusal::Claimed { fresh: false });
    assert_eq!(appear(&mut peers, &node("mallory", B)), refusal, "he may have blinked");
    assert_eq!(peers.address(uid(B)), None, "but is not there");
    let later = Instant::now() + RESERVED + Duration::from_secs(1);
    assert_eq!(peers.appeared(&node("mallory", B), later), Ok(uid(B)), "free again");
}

#[test]
fn our_own_uid_is_nobody_elses() {
    let mut peers = peers();
    assert_eq!(appear(&mut peers, &node("mallory", A)), Err(Refusal::Claimed { fresh: true }));
    assert_eq!(appear(&mut peers, &node("a", &format!("{A}-2"))), Err(Refusal::Claimed { fresh: false }));
}

#[test]
fn a_message_gives_an_address_that_presence_overrules() {
    let mut peers = peers();
    assert_eq!(peers.spoke(&node("mallory", B), Instant::now()), Ok(uid(B)));
    assert_eq!(peers.spoke(&node("bob", B), Instant::now()), Err(Refusal::Claimed { fresh: true }));
    assert_eq!(appear(&mut peers, &node("bob", B)), Ok(uid(B)));
    assert_eq!(peers.address(uid(B)), Some(&node("bob", B)));
    assert_eq!(peers.spoke(&node("mallory", B), Instant::now()), Err(Refusal::Claimed { fresh: true }));
}

#[test]
fn a_peer_moves_between_resources_of_its_account() {
    let mut peers = peers();
    let (first, second) = (node("bob", B), node("bob", &format!("{B}-2")));
    assert_eq!((appear(&mut peers, &first), appear(&mut peers, &second)), (Ok(uid(B)), Ok(uid(B))));
    assert_eq!(peers.left(&first, Instant::now()), None, "it had moved on");
    assert_eq!(peers.left(&second, Instant::now()), Some(uid(B)));
}

#[test]
fn whoever_does_not_come_back_with_a_new_session_is_gone_and_keeps_the_claim_until_then() {
    let mut peers = peers();
    let c = "c".repeat(40);
    appear(&mut peers, &node("bob", B)).unwrap();
    appear(&mut peers, &node("bob", &c)).unwrap();
    peers.begin_session(node("a", A));
    assert_eq!(appear(&mut peers, &node("mallory", B)), Err(Refusal::Claimed { fresh: true }));
    appear(&mut peers, &node("bob", &c)).unwrap();
    assert_eq!(peers.forget_unseen(), [uid(B)]);
    assert_eq!(peers.forget_unseen(), []);
    assert_eq!(appear(&mut peers, &node("mallory", B)), Ok(uid(B)));
}

#[test]
fn peers_leave_with_their_account() {
    let mut peers = peers();
    appear(&mut peers, &node("bob", B)).unwrap();
    assert_eq!(peers.remove_account(&bare("bob")), [uid(B)]);
    assert_eq!(appear(&mut peers, &node("bob", B)), Err(Refusal::Stranger));
    assert!(peers.add_account(bare("bob")));
    appear(&mut peers, &node("bob", B)).unwrap();
    assert_eq!(peers.set_accounts([]), (vec![uid(B)], 0));
    assert_eq!(peers.remove_account(&bare("a")), []);
    assert!(peers.admits(&bare("a")), "our own account always counts");
}

#[test]
fn the_tables_are_capped() {
    let mut peers = peers();
    // Our own account may be the account of every node.
    for number in 1..MAX_PEERS {
        appear(&mut peers, &node("a", &format!("{number:040x}"))).unwrap();
    }
    assert_eq!(appear(&mut peers, &node("bob", B)), Ok(uid(B)));
    assert_eq!(appear(&mut peers, &node("mallory", &"c".repeat(40))), Err(Refusal::Full));
    assert_eq!(appear(&mut peers, &node("a", &format!("{:040x}", 7))), Ok(uid(&format!("{:040x}", 7))));
    let many = (0..MAX_PEERS + 9).map(|number| bare(&format!("user{number}")));
    assert_eq!(peers.set_accounts(many).1, 10, "our own account has a place");
}

#[test]
fn one_account_fills_its_own_share_and_no_more() {
    let mut peers = peers();
    for number in 1..=MAX_UIDS {
        appear(&mut peers, &node("mallory", &format!("{number:040x}"))).unwrap();
    }
    assert_eq!(appear(&mut peers, &node("mallory", B)), Err(Refusal::Full));
    assert_eq!(appear(&mut peers, &node("bob", B)), Ok(uid(B)));
    // Who binds one uid after the other loses his own old ones.
    for number in 1..=MAX_UIDS {
        peers.left(&node("mallory", &format!("{number:040x}")), Instant::now());
    }
    for number in 1..=10 * MAX_UIDS {
        let one = node("mallory", &format!("f{number:039x}"));
        appear(&mut peers, &one).unwrap();
        peers.left(&one, Instant::now());
    }
    assert_eq!(peers.known.len(), MAX_UIDS + 1);
    assert_eq!(peers.address(uid(B)), Some(&node("bob", B)));
    peers.remove_account(&bare("mallory"));
    assert_eq!(peers.known.len(), 1);
}

#[test]
fn a_peer_may_send_a_burst_and_then_twenty_messages_a_second() {
    let mut peers = peers();
    let start = Instant::now();
    let mut sent = |after: Duration, tries: u32| {
        (0..tries).filter(|_| peers.spoke(&node("bob", B), start + after).is_ok()).count()
    };
    assert_eq!(sent(Duration::ZERO, 1000), 100);
    assert_eq!(sent(Duration::from_millis(49), 10), 0);
    assert_eq!(sent(Duration::from_secs(1), 1000), 20);
    assert_eq!(sent(Duration::from_millis(1075), 1000), 1, "parts of the time to the next one are kept");
    assert_eq!(sent(Duration::from_millis(1100), 1000), 1);
    assert_eq!(sent(Duration::from_secs(3600), 1000), 100);
}

#[test]
fn a_peer_that_repeats_its_presence_without_end_is_not_heard_but_stays() {
    let mut peers = peers();
    let now = Instant::now();
    let heard = (0..1000).filter(|_| peers.appeared(&node("bob", B), now).is_ok()).count();
    assert_eq!(heard, 100);
    assert_eq!(peers.forget_unseen(), []);
    assert_eq!(peers.left(&node("bob", B), Instant::now()), Some(uid(B)));
}

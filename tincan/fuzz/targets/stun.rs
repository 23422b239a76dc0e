//! A STUN or TURN message: no sound one, or one whose every attribute can be asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tincan::edge::ice::message::{Incoming, looks_like_stun, short_term_key};

fuzz_target!(|datagram: &[u8]| {
    let Some(mut incoming) = Incoming::parse(datagram) else { return };
    assert!(looks_like_stun(datagram));
    assert_eq!(incoming.bytes(), datagram);
    let _ = (incoming.class(), incoming.method(), incoming.is_binding(), incoming.transaction());
    let _ = (incoming.username(), incoming.nominates(), incoming.mapped(), incoming.error());
    let _ = incoming.other_address();
    assert!(!incoming.is_signed(&short_term_key("a password nobody has")));
});

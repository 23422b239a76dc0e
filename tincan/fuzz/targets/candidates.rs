//! A `cas` string: what is taken of it is a sound target and reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tincan::wire::candidate::{MAX_CANDIDATES, parse_cas, write_cas};

fuzz_target!(|text: &str| {
    let cas = parse_cas(text);
    assert!(cas.candidates.len() <= MAX_CANDIDATES);
    for candidate in &cas.candidates {
        let ip = candidate.addr.ip().to_canonical();
        assert!(candidate.addr.port() != 0 && !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified());
    }
    let again = parse_cas(&write_cas(&cas.candidates, cas.extension));
    assert_eq!((&again.candidates, again.extension, again.skipped), (&cas.candidates, cas.extension, 0));
});

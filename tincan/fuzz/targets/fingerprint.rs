//! A fingerprint's text: refused, or written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tincan::wire::fingerprint::Fingerprint;

fuzz_target!(|text: &str| {
    if let Ok(fingerprint) = text.parse::<Fingerprint>() {
        assert_eq!(fingerprint.to_string(), text.to_uppercase());
    }
});

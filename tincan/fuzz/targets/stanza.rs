//! The payload of an iq: refused, or a message that survives being written and read as XML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minidom::Element;
use tincan::wire::stanza::{read_query, uid_of, write_query};

fuzz_target!(|text: &str| {
    if let Some(uid) = uid_of(text) {
        assert!(text.to_ascii_lowercase().contains(&uid.to_string()));
    }
    let Ok(element) = text.parse::<Element>() else { return };
    let Ok(message) = read_query(&element) else { return };
    let written = String::from(&write_query(&message).expect("what was read can be written"));
    let again = written.parse::<Element>().expect("what was written is XML");
    assert_eq!(read_query(&again), Ok(message));
});

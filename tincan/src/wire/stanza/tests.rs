//! Bytes of the 2014 stanzas, and damaged ones.

use super::*;

const UID: &str = "27bfb1be555a4d5026464af41794985a046965ff";

fn stanza(text: &str) -> Element {
    text.parse().unwrap()
}

fn xml(element: &Element) -> String {
    String::from(element).replace('\'', "\"")
}

#[test]
fn a_recorded_message_reads_and_writes_as_the_same_bytes() {
    let text = format!(
        "<iq xmlns=\"jabber:client\" id=\"5\" to=\"user@domain/tincan{UID}\" type=\"get\">\
         <query xmlns=\"jabber:iq:tincan\"><data>00:11 a&lt;b&amp;c</data><type>con_resp</type></query></iq>"
    );
    let Ok(Iq::Get { payload, to: Some(to), .. }) = Iq::try_from(stanza(&text)) else { panic!("no iq of type get") };
    let message = read_query(&payload).unwrap();
    assert_eq!(message, PeerMessage { kind: "con_resp".to_owned(), data: "00:11 a<b&c".to_owned() });
    let written = message_iq(to.try_into_full().unwrap(), "5".to_owned(), &message).unwrap();
    let query = "<query xmlns=\"jabber:iq:tincan\"><data>00:11 a&lt;b&amp;c</data><type>con_resp</type></query>";
    assert_eq!(xml(&write_query(&message).unwrap()), query);
    let Iq::Get { id, to, payload, from: None } = written else { panic!("not of type get") };
    assert_eq!((id.as_str(), to.unwrap().as_str()), ("5", format!("user@domain/tincan{UID}").as_str()));
    assert_eq!(xml(&payload), query);
}

#[test]
fn presence_has_status_priority_and_the_legacy_stamp() {
    let element = Element::from(presence(Duration::from_secs(1_405_692_623)));
    let expected = "<presence xmlns=\"jabber:client\"><status/><priority>0</priority>\
                    <x xmlns=\"jabber:x:delay\" stamp=\"20140718T14:10:23\"/></presence>";
    assert_eq!(xml(&element).replace("<status></status>", "<status/>"), expected);
}

#[test]
fn stamps_know_leap_years() {
    for (seconds, stamp) in [
        (0, "19700101T00:00:00"),
        (951_827_696, "20000229T12:34:56"),
        (1_709_251_199, "20240229T23:59:59"),
        (4_107_542_400, "21000301T00:00:00"),
    ] {
        assert_eq!(legacy_stamp(Duration::from_secs(seconds)), stamp);
    }
    assert_eq!(legacy_stamp(Duration::MAX).chars().filter(|c| *c == ':').count(), 2);
}

#[test]
fn a_uid_stands_behind_the_word_tincan_in_a_resource() {
    let uid: Uid = UID.parse().unwrap();
    assert_eq!(resource_of(uid), format!("tincan{UID}"));
    assert_eq!(uid_of(&resource_of(uid)), Some(uid));
    assert_eq!(uid_of(&format!("tincan{UID}-7")), Some(uid), "as the 2014 nodes read it");
    for resource in ["", "tincan", UID, &format!("Tincan{UID}"), &format!("tincan{}", &UID[1..]), "tincané"] {
        assert_eq!(uid_of(resource), None, "{resource}");
    }
    assert_eq!(uid_of(&format!("tincan{}", "é".repeat(40))), None);
}

#[test]
fn payloads_that_are_no_message_are_told_why() {
    let long = |size: usize| "x".repeat(size);
    let of = |members: &str| read_query(&stanza(&format!("<query xmlns='{NAMESPACE}'>{members}</query>")));
    assert_eq!(read_query(&stanza("<query xmlns='jabber:iq:roster'/>")), Err(StanzaError::OtherPayload));
    assert_eq!(read_query(&stanza(&format!("<ping xmlns='{NAMESPACE}'/>"))), Err(StanzaError::OtherPayload));
    assert_eq!(of("<data>x</data>"), Err(StanzaError::MissingMember));
    assert_eq!(of("<type>x</type>"), Err(StanzaError::MissingMember));
    assert_eq!(of("<data>x</data><type/>"), Err(StanzaError::KindLength));
    assert_eq!(of(&format!("<data>x</data><type>{}</type>", long(65))), Err(StanzaError::KindLength));
    assert_eq!(of(&format!("<data>{}</data><type>x</type>", long(65_537))), Err(StanzaError::DataLength));
    let read = of(&format!("<type>a</type><other/><data>{}</data><data>2</data>", long(65_536))).unwrap();
    assert_eq!((read.kind.as_str(), read.data.len()), ("a", 65_536));
    assert_eq!(of("<data/><type>send_msg</type>").unwrap().data, "");
}

#[test]
fn what_xml_cannot_carry_is_not_written() {
    let write = |kind: &str, data: &str| write_query(&PeerMessage { kind: kind.to_owned(), data: data.to_owned() });
    assert_eq!(write("send_msg", "a\u{0}b"), Err(StanzaError::ForbiddenCharacter));
    assert_eq!(write("send\u{ffff}", "a"), Err(StanzaError::ForbiddenCharacter));
    assert_eq!(write("send_msg", &"<".repeat(MAX_DATA / 5 + 1)), Err(StanzaError::DataLength));
    assert_eq!(write("", "a"), Err(StanzaError::KindLength));
    let text = "tab\t line\n return\r quote\"' ]]> \u{1f600}";
    let query = write("send_msg", text).unwrap();
    assert_eq!(read_query(&stanza(&String::from(&query))).unwrap().data, text);
}

#[test]
fn damaged_stanzas_never_panic_and_what_is_read_can_be_written() {
    let original = format!(
        "<iq xmlns='jabber:client' from='user@domain/tincan{UID}' to='b@c/d' type='get' id='1'>\
         <query xmlns='jabber:iq:tincan'><data>14:15 0:1:udp:10.0.0.1:5:x:y:local:0:eth0:1:1 é</data>\
         <type>con_req</type></query></iq>"
    );
    let mut state = 0x2014_0718_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut messages = 0;
    for _ in 0..100_000 {
        let mut bytes = original.clone().into_bytes();
        for _ in 0..=random(3) {
            let (start, length) = (random(bytes.len()), random(20));
            let end = (start + length).min(bytes.len());
            match random(3) {
                0 => bytes[start] = u8::try_from(random(256)).unwrap(),
                1 => drop(bytes.drain(start..end)),
                _ => {
                    let stretch = bytes[start..end].to_vec();
                    bytes.splice(start..start, stretch);
                }
            }
            bytes.push(b' ');
        }
        let Ok(element) = String::from_utf8_lossy(&bytes).trim().parse::<Element>() else { continue };
        let Ok(Iq::Get { payload, .. }) = Iq::try_from(element) else { continue };
        let Ok(message) = read_query(&payload) else { continue };
        assert_eq!(read_query(&write_query(&message).unwrap()), Ok(message));
        messages += 1;
    }
    assert!(messages > 1000, "only {messages} were whole enough to read");
}

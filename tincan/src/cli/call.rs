//! `tincan call METHOD key=value ...`; `key@FILE` takes the value from a file, so that no password is seen among processes.

use std::fs;
use std::io::Read as _;

use anyhow::Context;
use serde_json::{Map, Value};

use crate::client::Client;
use crate::wire::control::METHODS;

/// Parameters that are texts even when they look like a number.
const TEXTS: [&str; 15] = [
    "uid",
    "fpr",
    "ip4",
    "ip6",
    "ip",
    "cas",
    "data",
    "msg",
    "username",
    "password",
    "host",
    "stun",
    "turn",
    "turn_user",
    "turn_pass",
];

/// Makes the call and prints its result as JSON.
pub(super) fn print(client: anyhow::Result<Client>, method: &str, parameters: &[String]) -> anyhow::Result<()> {
    let known = METHODS.contains(&method) || ["status", "counters"].contains(&method);
    anyhow::ensure!(known, "there is no method {method:?}; known are: {}, status, counters", METHODS.join(", "));
    let parameters = parse(parameters)?;
    let result = client?.call(method, &parameters)?;
    super::print(&format!("{result:#}\n"))
}

fn parse(parameters: &[String]) -> anyhow::Result<Map<String, Value>> {
    parameters
        .iter()
        .map(|parameter| {
            let (key, text) = match (parameter.split_once('='), parameter.split_once('@')) {
                (Some((key, text)), _) => (key, text.to_owned()),
                (None, Some((key, file))) => (key, read(file)?),
                (None, None) => anyhow::bail!("{parameter:?} is no parameter: give key=value, or key@FILE"),
            };
            let value = if TEXTS.contains(&key) { None } else { serde_json::from_str(&text).ok() };
            Ok((key.to_owned(), value.unwrap_or_else(|| Value::from(text))))
        })
        .collect()
}

/// A file's text without the end of its last line; `-` is standard input.
fn read(file: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    if file == "-" {
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
    } else {
        text = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    }
    let trimmed = text.strip_suffix('\n').unwrap_or(&text);
    Ok(trimmed.strip_suffix('\r').unwrap_or(trimmed).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_stay_texts_and_the_rest_is_json_where_it_can_be() {
        let given = ["uid=12", "port=12", "sec=true", "network_ignore_list=[\"eth1\"]", "cas=a=b c", "kind=x"];
        let parsed = parse(&given.map(str::to_owned)).unwrap();
        let expected = json!({"uid": "12", "port": 12, "sec": true, "network_ignore_list": ["eth1"], "cas": "a=b c",
                              "kind": "x"});
        assert_eq!(Value::Object(parsed), expected);
    }

    #[test]
    fn a_value_may_come_from_a_file() {
        let file = std::env::temp_dir().join(format!("tincan-call-{}", std::process::id()));
        fs::write(&file, "it's @=secret\n").unwrap();
        let parsed = parse(&[format!("password@{}", file.display()), "msg=a@b".to_owned()]);
        fs::remove_file(&file).unwrap();
        assert_eq!(Value::Object(parsed.unwrap()), json!({"password": "it's @=secret", "msg": "a@b"}));
        let missing = parse(&[format!("password@{}", file.display())]).unwrap_err();
        assert!(format!("{missing:#}").contains("tincan-call-"), "{missing:#}");
    }

    #[test]
    fn a_word_without_a_value_is_refused() {
        assert!(parse(&["uid".to_owned()]).is_err());
    }
}

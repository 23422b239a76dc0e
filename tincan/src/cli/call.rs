//! `tincan call METHOD key=value ...`.

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
            let (key, text) = parameter
                .split_once('=')
                .ok_or_else(|| anyhow::anyhow!("{parameter:?} is no parameter: give key=value"))?;
            let value = if TEXTS.contains(&key) { None } else { serde_json::from_str(text).ok() };
            Ok((key.to_owned(), value.unwrap_or_else(|| Value::from(text))))
        })
        .collect()
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
    fn a_word_without_a_value_is_refused() {
        assert!(parse(&["uid".to_owned()]).is_err());
    }
}

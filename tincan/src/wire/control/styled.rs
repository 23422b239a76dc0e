//! JSON text as the 2014 daemon wrote it (jsoncpp's "styled" form): sorted keys, three spaces, " : ", a final newline.

use std::fmt::Write as _;

use serde_json::Value;

const INDENT: &str = "   ";
/// Arrays whose one-line form reaches this column are written one element per line.
const RIGHT_MARGIN: usize = 74;

/// The styled text of `json`.
pub(super) fn text(json: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, json, 0);
    text.push('\n');
    text
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(flag) => text.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::String(string) => write_string(text, string),
        Value::Array(elements) => write_array(text, elements, depth),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            write_block(text, ['{', '}'], members, depth, |text, (key, value)| {
                write_string(text, key);
                text.push_str(" : ");
                write_value(text, value, depth + 1);
            });
        }
    }
}

fn write_array(text: &mut String, elements: &[Value], depth: usize) {
    if let Some(line) = one_line(elements) {
        text.push_str(&line);
    } else {
        write_block(text, ['[', ']'], elements, depth, |text, value| write_value(text, value, depth + 1));
    }
}

/// `[ 1, 2 ]`, if nothing in it has members and it ends before the margin.
fn one_line(elements: &[Value]) -> Option<String> {
    let nested = |element: &Value| match element {
        Value::Array(inner) => !inner.is_empty(),
        Value::Object(inner) => !inner.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    if elements.is_empty() || elements.iter().any(nested) {
        return None;
    }
    let mut line = String::from("[ ");
    for (position, element) in elements.iter().enumerate() {
        line.push_str(if position == 0 { "" } else { ", " });
        write_value(&mut line, element, 0);
    }
    line.push_str(" ]");
    (line.len() < RIGHT_MARGIN).then_some(line)
}

/// Items one per line between brackets; just the brackets when there are none.
fn write_block<T>(
    text: &mut String,
    [open, close]: [char; 2],
    items: impl IntoIterator<Item = T>,
    depth: usize,
    mut write_item: impl FnMut(&mut String, T),
) {
    text.push(open);
    let mut empty = true;
    for item in items {
        text.push_str(if empty { "\n" } else { ",\n" });
        text.push_str(&INDENT.repeat(depth + 1));
        write_item(text, item);
        empty = false;
    }
    if !empty {
        text.push('\n');
        text.push_str(&INDENT.repeat(depth));
    }
    text.push(close);
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            control if control < ' ' => {
                let _ = write!(text, "\\u{:04X}", u32::from(control));
            }
            plain => text.push(plain),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_sorted_by_byte_order_with_three_spaces() {
        let json = json!({"type": "x", "_fpr": "00", "a": {}, "B": {"c": 1, "b": true}, "n": null, "f": false});
        let expected = r#"{
   "B" : {
      "b" : true,
      "c" : 1
   },
   "_fpr" : "00",
   "a" : {},
   "f" : false,
   "n" : null,
   "type" : "x"
}
"#;
        assert_eq!(text(&json), expected);
    }

    #[test]
    fn arrays_of_scalars_share_a_line_until_the_margin() {
        assert_eq!(text(&json!([])), "[]\n");
        assert_eq!(text(&json!([1, "two", {}, []])), "[ 1, \"two\", {}, [] ]\n");
        // `[ "` + text + `" ]` is 6 characters more than the text; 74 is too long.
        assert_eq!(text(&json!(["x".repeat(67)])), format!("[ \"{}\" ]\n", "x".repeat(67)));
        assert_eq!(text(&json!(["x".repeat(68)])), format!("[\n   \"{}\"\n]\n", "x".repeat(68)));
        assert_eq!(text(&json!(vec![1; 23])).lines().count(), 1);
        assert_eq!(text(&json!(vec![1; 24])).lines().count(), 26);
    }

    #[test]
    fn arrays_of_objects_have_a_line_per_member() {
        let expected = r#"{
   "stats" : [
      {
         "rtt" : 1
      },
      {
         "rtt" : 2
      }
   ]
}
"#;
        assert_eq!(text(&json!({"stats": [{"rtt": 1}, {"rtt": 2}]})), expected);
    }

    #[test]
    fn strings_are_escaped_and_read_back() {
        let odd = "\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é\u{1f600}";
        let written = text(&json!(odd));
        assert_eq!(written, "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001F\u{7f}é\u{1f600}\"\n");
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), json!(odd));
    }
}

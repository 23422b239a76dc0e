//! What was looked at and what came of it, for people and as JSON.

use std::fmt;

use serde_json::{Value, json};

/// Widths of the first two columns: the longest state and the longest name.
const STATE_WIDTH: usize = 7;
const NAME_WIDTH: usize = 13;

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ok,
    /// It works, but less well than it could.
    Warning,
    /// It does not work.
    Problem,
    /// Not looked at, or not to be told from here.
    Skipped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::Skipped => "skipped",
        })
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do next; empty where there is nothing to do.
    pub advice: String,
}

impl Check {
    pub fn ok(name: &'static str, found: impl AsRef<str>) -> Self {
        Self::new(name, State::Ok, found, "")
    }

    pub fn warning(name: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self::new(name, State::Warning, found, advice)
    }

    pub fn problem(name: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self::new(name, State::Problem, found, advice)
    }

    pub fn skipped(name: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self::new(name, State::Skipped, found, advice)
    }

    /// Texts of servers are among the findings: a terminal gets no control characters of theirs.
    pub fn new(name: &'static str, state: State, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        let printable = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self { name, state, found: printable(found.as_ref()), advice: printable(advice.as_ref()) }
    }
}

/// All lines, in the order in which they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report(pub Vec<Check>);

impl Report {
    /// Whether nothing is a problem.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.0.iter().all(|check| check.state != State::Problem)
    }

    /// `{"ok": bool, "checks": [{"name", "state", "found", "do"}]}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let check = |Check { name, state, found, advice }: &Check| json!({"name": name, "state": state.to_string(), "found": found, "do": advice});
        json!({"ok": self.is_ok(), "checks": self.0.iter().map(check).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, state, found, advice } in &self.0 {
            write!(f, "{state:STATE_WIDTH$}  {name:NAME_WIDTH$}  {found}")?;
            if !advice.is_empty() {
                write!(f, "; {advice}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_problem_makes_a_report_not_ok() {
        let fine = [Check::ok("a", ""), Check::warning("b", "", ""), Check::skipped("c", "", "")];
        assert!(Report(fine.to_vec()).is_ok());
        assert!(!Report([fine.to_vec(), vec![Check::problem("d", "", "")]].concat()).is_ok());
    }

    #[test]
    fn a_line_says_state_name_finding_and_next_step() {
        let report = Report(vec![Check::ok("tap", "free"), Check::problem("stun", "silent", "look at the firewall")]);
        assert_eq!(
            report.to_string(),
            "ok       tap            free\nproblem  stun           silent; look at the firewall\n"
        );
        let json = report.to_json();
        assert_eq!((&json["ok"], &json["checks"][0]["do"]), (&json!(false), &json!("")));
        assert_eq!(json["checks"][1]["state"], "problem");
    }

    #[test]
    fn a_servers_words_cannot_steer_the_terminal() {
        let check = Check::problem("xmpp", "\u{1b}[2J\nok  all", "\u{7}");
        assert!(!format!("{}{}", check.found, check.advice).contains(char::is_control), "{check:?}");
    }
}

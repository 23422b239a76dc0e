//! The lines of a source file, told apart: code, comments, tests. It relies on rustfmt's layout, which `ci` checks first.

use super::SourceFile;

/// One line and what it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// From 1.
    pub number: usize,
    pub text: &'a str,
    pub is_comment: bool,
    /// In a file of tests, or in an item behind `#[cfg(test)]`.
    pub is_test: bool,
}

/// Where the reader stands while it looks for the end of an item behind `#[cfg(test)]`.
#[derive(Clone, Copy)]
enum Place {
    Outside,
    /// Behind the attribute; the item has this indentation.
    BeforeItem(usize),
    /// In an item of several lines, which ends with a closing bracket at this indentation.
    InItem(usize),
}

/// Every line in order.
pub fn lines(file: &SourceFile) -> impl Iterator<Item = Line<'_>> {
    let all_tests = is_test_file(&file.path);
    let mut place = Place::Outside;
    file.text.lines().enumerate().map(move |(index, text)| {
        let before = place;
        place = next(place, text);
        let is_test = all_tests || !matches!((before, place), (Place::Outside, Place::Outside));
        Line { number: index + 1, text, is_comment: text.trim_start().starts_with("//"), is_test }
    })
}

/// Tests of their own, the bench they stand on, and the `tests.rs` of a module.
fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

fn next(place: Place, text: &str) -> Place {
    let code = text.trim_start();
    let indentation = text.len() - code.len();
    match place {
        Place::Outside if code.starts_with("#[cfg(test)]") => Place::BeforeItem(indentation),
        Place::Outside => Place::Outside,
        Place::BeforeItem(_) if code.starts_with("#[") || code.starts_with("//") => place,
        Place::BeforeItem(_) if code.ends_with(';') || code.ends_with('}') || code.ends_with(',') => Place::Outside,
        Place::BeforeItem(item) => Place::InItem(item),
        Place::InItem(item) if indentation == item && code.starts_with(['}', ']', ')']) && !code.ends_with('{') => {
            Place::Outside
        }
        Place::InItem(_) => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_lines(path: &str, text: &str) -> Vec<usize> {
        let file = SourceFile { path: path.to_owned(), text: text.to_owned() };
        lines(&file).filter(|line| line.is_test).map(|line| line.number).collect()
    }

    #[test]
    fn an_item_behind_the_attribute_is_a_test_up_to_its_end() {
        assert_eq!(test_lines("a/src/a.rs", "#[cfg(test)]\nmod tests;\n\nmod b;\n"), [1, 2]);
        assert_eq!(
            test_lines("a/src/a.rs", "mod b;\n#[cfg(test)]\n// Why.\n#[path = \"c\"]\nmod c;\nd();\n"),
            [2, 3, 4, 5]
        );
        assert_eq!(
            test_lines("a/src/a.rs", "#[cfg(test)]\nmod tests {\n    fn a() {\n    }\n}\nfn b() {}\n"),
            [1, 2, 3, 4, 5]
        );
        assert_eq!(
            test_lines(
                "a/src/a.rs",
                "impl A {\n    #[cfg(test)]\n    fn a(\n        b: C,\n    ) {\n    }\n    d();\n}\n"
            ),
            [2, 3, 4, 5, 6]
        );
    }

    #[test]
    fn files_of_tests_are_tests_from_the_first_line() {
        for path in ["tests/tests/nat.rs", "tests/src/wait.rs", "tincan/tests/a/world.rs", "tincan/src/dtls/tests.rs"] {
            assert_eq!(test_lines(path, "use a;\n"), [1], "{path}");
        }
        assert_eq!(test_lines("tincan/src/dtls.rs", "use a;\n"), [0; 0]);
    }
}

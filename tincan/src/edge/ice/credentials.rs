//! ICE credentials: random ones for a link, and those of its later generations.
//!
//! Generation 0 is signalled. Generation n > 0 uses the same password and the name with two letters behind it, so
//! neither side needs to signal anything for a restart.

use stun::integrity::MessageIntegrity;

use crate::edge::ice::message::short_term_key;
use crate::ice::UFRAG_LENGTH;

/// Length of our passwords: 24 of 62 letters are 142 bits (RFC 8445 section 5.3 asks for 128).
const PWD_LENGTH: usize = 24;
/// Generations are told apart by two letters, so this many have names of their own; then the names come round again.
const SUFFIXES: u32 = 26 * 26;

/// Name and password of one end.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub ufrag: String,
    pub pwd: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("ufrag", &self.ufrag).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Fresh ones from the operating system's randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        Ok(Self { ufrag: alphanumeric(UFRAG_LENGTH)?, pwd: alphanumeric(PWD_LENGTH)? })
    }

    /// Those of a later generation.
    pub fn of_generation(&self, generation: u32) -> Self {
        Self { ufrag: generation_name(&self.ufrag, generation), pwd: self.pwd.clone() }
    }

    pub fn key(&self) -> MessageIntegrity {
        short_term_key(&self.pwd)
    }
}

/// The name fragment of a generation.
pub fn generation_name(base: &str, generation: u32) -> String {
    if generation == 0 {
        return base.to_owned();
    }
    let value = generation % SUFFIXES;
    let letter = |index: u32| char::from(b'a' + u8::try_from(index).expect("a remainder of 26 fits"));
    format!("{base}{}{}", letter(value / 26), letter(value % 26))
}

fn alphanumeric(length: usize) -> Result<String, getrandom::Error> {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(length);
    let mut pool = [0u8; 64];
    while text.len() < length {
        getrandom::fill(&mut pool)?;
        // Values from 248 on would favour the first letters.
        let fair = pool.iter().filter(|byte| **byte < 248).map(|byte| char::from(LETTERS[usize::from(byte % 62)]));
        text.extend(fair.take(length - text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_credentials_have_the_promised_length_and_letters_and_differ() {
        let (one, two) = (Credentials::random().unwrap(), Credentials::random().unwrap());
        assert_eq!((one.ufrag.len(), one.pwd.len()), (16, 24));
        assert!(one.ufrag.chars().chain(one.pwd.chars()).all(|c| c.is_ascii_alphanumeric()));
        assert_ne!(one.ufrag, two.ufrag);
        assert_ne!(one.pwd, two.pwd);
    }

    #[test]
    fn each_generation_has_its_own_name() {
        assert_eq!(generation_name("base", 0), "base");
        assert_eq!(generation_name("base", 1), "baseab");
        assert_eq!(generation_name("base", 27), "basebb");
        assert_eq!(generation_name("base", 676), "baseaa");
    }

    #[test]
    fn the_password_is_not_printed() {
        let credentials = Credentials { ufrag: "name".into(), pwd: "hidden".into() };
        assert!(!format!("{credentials:?}").contains("hidden"));
    }
}

//! Which programs may tell terminals something: a file with a line for each token, which has the token's SHA-256 and not the
//! token. A token is 256 bits by lot, so there is nothing to guess, and no reason for a slow hash.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use wakala::id::AgentId;
use zeroize::Zeroizing;

/// Who comes with which token.
#[derive(Debug, Default)]
pub struct Tokens(BTreeMap<[u8; 32], String>);

/// What tokens begin with, so that whoever finds one in a file knows what it is.
const MARK: &str = "wakala-";

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, with its line.
    pub fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut tokens = BTreeMap::new();
        for (nth, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (digest, name) = entry(line).ok_or_else(|| {
                format!("{}:{nth}: right would be a name and 64 hexadecimal digits, as `wakala told token NAME` prints them", file.display())
            })?;
            tokens.insert(digest, name);
        }
        Ok(Self(tokens))
    }

    /// Whose token this is.
    #[must_use]
    pub fn whose(&self, token: &str) -> Option<&str> {
        self.0.get(&digest(token)).map(String::as_str)
    }
}

/// A new token for a program of this name, and the line that lets it in.
///
/// # Errors
/// When there is no randomness.
pub fn draw(name: &AgentId) -> Result<(Zeroizing<String>, String), String> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret).map_err(|error| error.to_string())?;
    let token = Zeroizing::new(format!("{MARK}{}", hex::encode(*secret)));
    let line = format!("{name} {}", hex::encode(digest(&token)));
    Ok((token, line))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn entry(line: &str) -> Option<([u8; 32], String)> {
    let (name, digits) = line.split_once(char::is_whitespace)?;
    let name: AgentId = name.parse().ok()?;
    let mut digest = [0; 32];
    hex::decode_to_slice(digits.trim(), &mut digest).ok()?;
    Some((digest, name.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    #[test]
    fn a_program_is_known_by_its_token_and_the_file_has_no_token_in_it() {
        let name = |text: &str| text.parse::<AgentId>().expect("a name");
        let ((portal, first), (_, second)) =
            (draw(&name("portal")).expect("drawn"), draw(&name("portal")).expect("drawn"));
        let (school, third) = draw(&name("school")).expect("drawn");
        assert!(!first.contains(&portal[MARK.len()..]), "{first}");
        let known = Tokens::read(file(&format!("# who\n\n{first}\n  {second}\n{third} \n")).path()).expect("right");
        assert_eq!((known.whose(&portal), known.whose(&school)), (Some("portal"), Some("school")));
        assert_eq!((known.whose(&portal[1..]), known.whose("")), (None, None));
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said_with_its_line() {
        for wrong in ["portal", "portal 12ab", "two words 12ab"] {
            let file = file(&format!("# who\n{wrong}\n"));
            let said = Tokens::read(file.path()).expect_err(wrong);
            assert!(said.starts_with(&format!("{}:2: right would be", file.path().display())), "{said}");
        }
        let said = Tokens::read(Path::new("/nowhere")).expect_err("there is none");
        assert!(said.starts_with("/nowhere: No such file"), "{said}");
    }
}

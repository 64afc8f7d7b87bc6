//! The format of one data element, in the standard's own notation: `n 6`, `n..19`, `ans...999`, `b 64`.

use std::fmt;

/// What characters a data element may have (ISO 8583:1987 §4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Digits.
    N,
    /// Letters and digits, padded with spaces.
    An,
    /// Letters, digits and special characters: all that prints.
    Ans,
    /// Track 2 and 3 code set: digits, `=` and `D` as separators, `:;<>?`.
    Z,
    /// Bits; their number is given, their bytes are meant.
    B,
}

/// How long a data element is, in characters, or in bytes for binary ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Fixed(usize),
    /// A length of this many digits (2: LLVAR, 3: LLLVAR) goes before.
    Variable {
        digits: usize,
        max: usize,
    },
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Body {
    /// A character a byte.
    Ascii,
    /// Two digits a byte; an odd number of them has a zero before the first.
    Bcd,
    /// The bytes themselves.
    Binary,
    /// Two hexadecimal digits a byte.
    Hex,
}

/// How a variable length is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefix {
    Ascii,
    /// LL in one byte, LLL in two.
    Bcd,
    /// LL in one byte, LLL in two, most significant first.
    Binary,
}

/// One data element's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub class: Class,
    pub length: Length,
    pub body: Body,
    pub prefix: Prefix,
}

impl Class {
    /// Whether a byte of a value may be this one.
    #[must_use]
    pub fn allows(self, byte: u8) -> bool {
        match self {
            Self::N => byte.is_ascii_digit(),
            Self::An => byte.is_ascii_alphanumeric() || byte == b' ',
            Self::Ans => (b' '..=b'~').contains(&byte),
            Self::Z => byte.is_ascii_digit() || matches!(byte, b'=' | b'D' | b':' | b';' | b'<' | b'>' | b'?'),
            Self::B => true,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "n" => Self::N,
            "an" => Self::An,
            "ans" => Self::Ans,
            "z" => Self::Z,
            "b" => Self::B,
            _ => return None,
        })
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::N => "n",
            Self::An => "an",
            Self::Ans => "ans",
            Self::Z => "z",
            Self::B => "b",
        })
    }
}

/// The class and length of a notation such as `n..19`; says what is wrong with it otherwise.
pub(super) fn notation(text: &str) -> Result<(Class, Length), String> {
    let wrong =
        || format!("{text:?} is no format; right would be such as \"n 6\", \"n..19\", \"ans...999\" or \"b 64\"");
    let letters = text.find(|c: char| !c.is_ascii_lowercase()).ok_or_else(wrong)?;
    let (class, rest) = text.split_at(letters);
    let class = Class::parse(class).ok_or_else(wrong)?;
    let number = rest.trim_start_matches([' ', '.']);
    let dots = rest.chars().filter(|&c| c == '.').count();
    let count: usize = number.parse().map_err(|_| wrong())?;
    if count == 0 || rest.len() - number.len() != dots.max(1) {
        return Err(wrong());
    }
    let length = match dots {
        0 if class == Class::B && !count.is_multiple_of(8) => {
            return Err(format!("{text:?}: binary elements are given in bits, a multiple of 8"));
        }
        0 if class == Class::B => Length::Fixed(count / 8),
        0 => Length::Fixed(count),
        2 | 3 if count >= 10_usize.pow(u32::try_from(dots).unwrap_or(0)) => {
            return Err(format!("{text:?}: {count} does not fit {dots} digits of length"));
        }
        2 | 3 => Length::Variable { digits: dots, max: count },
        _ => return Err(wrong()),
    };
    if matches!(length, Length::Fixed(count) if count > 999) {
        return Err(format!("{text:?}: no data element is longer than 999"));
    }
    Ok((class, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_notation_is_read() {
        for (text, expected) in [
            ("n 6", (Class::N, Length::Fixed(6))),
            ("n..19", (Class::N, Length::Variable { digits: 2, max: 19 })),
            ("ans...999", (Class::Ans, Length::Variable { digits: 3, max: 999 })),
            ("z..37", (Class::Z, Length::Variable { digits: 2, max: 37 })),
            ("an 12", (Class::An, Length::Fixed(12))),
            ("b 64", (Class::B, Length::Fixed(8))),
            ("b...255", (Class::B, Length::Variable { digits: 3, max: 255 })),
        ] {
            assert_eq!(notation(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_notation_is_refused_with_what_would_be_right() {
        for text in [
            "",
            "n",
            "n 0",
            "6",
            "x 4",
            "n.19",
            "n....19",
            "n..100",
            "ans...1000",
            "b 63",
            "n -1",
            "n  6",
            "N 6",
            "n6",
            "n 1000",
        ] {
            let why = notation(text).expect_err(text);
            assert!(why.starts_with(&format!("{text:?}")), "{why}");
        }
    }
}

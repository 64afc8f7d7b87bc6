//! The master key: 32 bytes from outside, under which all other keys are sealed. It is in no file of ours and no row.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// Where the master key comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "Ways")]
pub enum Source {
    /// The name of a systemd credential (`LoadCredential=` or `LoadCredentialEncrypted=` of the unit).
    Credential(String),
    /// A file: 32 bytes, or 64 hexadecimal digits. Others must not be able to read it.
    File(PathBuf),
    /// The name of an environment variable with 64 hexadecimal digits. A process' environment is easily seen: for trying
    /// things out.
    Environment(String),
}

/// What a configuration says: of the ways one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ways {
    credential: Option<String>,
    file: Option<PathBuf>,
    environment: Option<String>,
}

impl TryFrom<Ways> for Source {
    type Error = &'static str;

    fn try_from(ways: Ways) -> Result<Self, Self::Error> {
        match (ways.credential, ways.file, ways.environment) {
            (Some(name), None, None) => Ok(Self::Credential(name)),
            (None, Some(path), None) => Ok(Self::File(path)),
            (None, None, Some(name)) => Ok(Self::Environment(name)),
            _ => Err("name one way: { credential = \"NAME\" }, { file = \"PATH\" } or { environment = \"NAME\" }"),
        }
    }
}

impl Default for Source {
    fn default() -> Self {
        Self::Credential("wakala-master".to_owned())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "systemd credential {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// The longest content: 64 digits and room for a line's end.
const CONTENT_MAX: u64 = 128;

/// Why there is no master key. It does not say what was found.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    #[error("no master key: {place}: {error}")]
    Unreadable { place: String, error: std::io::Error },
    #[error("no master key: the {0} is not set")]
    NotSet(String),
    #[error(
        "no master key: there are no systemd credentials here (CREDENTIALS_DIRECTORY is not set); \
         start it by systemd, or name a file: keys.master = {{ file = \"…\" }}"
    )]
    NoCredentials,
    #[error("the master key in {place} must be 32 bytes or 64 hexadecimal digits; found {found} bytes")]
    Length { place: String, found: usize },
    #[error("the master key in {place} has 64 characters that are not all hexadecimal digits")]
    NotHex { place: String },
    #[error("the master key in {place} is the same byte 32 times: not one drawn at random")]
    Trivial { place: String },
    #[error("the master key in {place} can be read by others (mode {mode:03o}): chmod o-rwx it, and draw a new one")]
    Exposed { place: String, mode: u32 },
}

/// The master key.
#[derive(ZeroizeOnDrop)]
pub struct Master([u8; 32]);

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Master")
    }
}

impl Master {
    /// Reads it.
    ///
    /// # Errors
    /// When it is missing, of another length, or open to others.
    pub fn read(source: &Source) -> Result<Self, MasterError> {
        match source {
            Source::Credential(name) => {
                let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or(MasterError::NoCredentials)?;
                Self::of_file(&Path::new(&folder).join(name))
            }
            Source::File(path) => Self::of_file(path),
            Source::Environment(name) => {
                let place = source.to_string();
                let text = std::env::var(name).map_err(|_| MasterError::NotSet(place.clone()))?;
                Self::of_bytes(Zeroizing::new(text.into_bytes()), place)
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of_file(path: &Path) -> Result<Self, MasterError> {
        let place = path.display().to_string();
        let unreadable = |error| MasterError::Unreadable { place: place.clone(), error };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(MasterError::Exposed { place, mode });
        }
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(CONTENT_MAX).unwrap_or(0)));
        file.take(CONTENT_MAX).read_to_end(&mut content).map_err(unreadable)?;
        Self::of_bytes(content, place)
    }

    fn of_bytes(content: Zeroizing<Vec<u8>>, place: String) -> Result<Self, MasterError> {
        let mut key = Self([0; 32]);
        let digits = content.trim_ascii_end();
        match (content.len(), digits.len()) {
            (32, _) => key.0.copy_from_slice(&content),
            (_, 64) => {
                if hex::decode_to_slice(digits, &mut key.0).is_err() {
                    key.0.zeroize();
                    return Err(MasterError::NotHex { place });
                }
            }
            (found, _) => return Err(MasterError::Length { place, found }),
        }
        if key.0.iter().all(|&byte| byte == key.0[0]) { Err(MasterError::Trivial { place }) } else { Ok(key) }
    }
}

#[cfg(test)]
pub(super) mod tests_support {
    /// Some master key.
    pub(in super::super) fn of(bytes: [u8; 31]) -> super::Master {
        let mut key = [0; 32];
        key[..31].copy_from_slice(&bytes);
        super::Master(key)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn written(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("master.key");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
        (folder, path)
    }

    fn read(content: &[u8], mode: u32) -> Result<Master, MasterError> {
        let (_folder, path) = written(content, mode);
        Master::read(&Source::File(path))
    }

    #[test]
    fn bytes_and_digits_are_both_a_master_key() {
        let bytes: Vec<u8> = (0..32).collect();
        let digits = hex::encode(&bytes);
        for content in [bytes.clone(), digits.clone().into_bytes(), format!("{}\n", digits.to_uppercase()).into_bytes()]
        {
            for mode in [0o400, 0o600, 0o640] {
                assert_eq!(read(&content, mode).expect("a master key").0, *bytes);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_showing_it() {
        let secret = b"0123456789abcdef";
        let missing = Master::read(&Source::File("/nonexistent/master.key".into())).expect_err("missing");
        assert!(missing.to_string().contains("/nonexistent/master.key"), "{missing}");
        let short = read(secret, 0o600).expect_err("short");
        assert!(short.to_string().contains("found 16 bytes") && !short.to_string().contains("0123"), "{short}");
        assert!(matches!(read(&[b'g'; 64], 0o600), Err(MasterError::NotHex { .. })));
        assert!(matches!(read(&[0; 32], 0o600), Err(MasterError::Trivial { .. })));
        assert!(matches!(read(&[0; 500], 0o600), Err(MasterError::Length { .. })));
        let bytes: Vec<u8> = (0..32).collect();
        for mode in [0o604, 0o644, 0o602] {
            let exposed = read(&bytes, mode).expect_err("open to others");
            assert!(exposed.to_string().contains(&format!("mode {mode:03o}")), "{exposed}");
        }
        let unset = Master::read(&Source::Environment("WAKALA_NO_SUCH_VARIABLE".into())).expect_err("unset");
        assert!(unset.to_string().contains("WAKALA_NO_SUCH_VARIABLE"), "{unset}");
    }

    #[test]
    fn the_source_is_one_of_three_in_the_configuration() {
        #[derive(Deserialize)]
        struct Keys {
            master: Source,
        }
        let parsed = |text: &str| toml::from_str::<Keys>(text).map(|keys| keys.master);
        assert_eq!(parsed(r#"master = { file = "/a" }"#), Ok(Source::File("/a".into())));
        assert_eq!(parsed(r#"master = { credential = "a" }"#), Ok(Source::Credential("a".into())));
        assert_eq!(parsed(r#"master = { environment = "A" }"#), Ok(Source::Environment("A".into())));
        assert!(parsed(r#"master = { vault = "a" }"#).is_err());
    }
}

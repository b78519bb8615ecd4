//! Reading of keys from files, environment variables and text.

use std::fmt;
use std::ops::Deref;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::error::{EventError, Result};
use crate::private_file::{self, Owner};
use crate::text::shorten;

/// Maximum size of a key file in bytes: more than any form of a key with white space around it.
const MAX_FILE_LEN: u64 = 1024;
const KEY_LEN: usize = 32;

/// A key of 256 bits. It is wiped from memory on drop and never printed.
///
/// A file or a variable holds it as text, in standard base64 (44 characters) or hexadecimal (64). White space around it
/// is ignored. `openssl rand -base64 32` creates one.
///
/// ```
/// use a3s_event::Aes256GcmEncryptor;
/// use a3s_event::crypto::EncryptionKey;
///
/// # fn main() -> a3s_event::Result<()> {
/// let key = EncryptionKey::from_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")?;
/// let encryptor = Aes256GcmEncryptor::new("2026", &key);
/// assert_eq!(format!("{key:?}"), "EncryptionKey(..)");
/// # let _ = encryptor;
/// # Ok(())
/// # }
/// ```
pub struct EncryptionKey(
    /// The bytes are on the heap, so that moving the key leaves no copy behind.
    Box<Zeroizing<[u8; KEY_LEN]>>,
);

impl EncryptionKey {
    /// Reads a key from a file that only this process's user can access.
    ///
    /// On Unix, the mode must be 0600 or less: no permission for the group or for others. On Linux, the owner must be
    /// the user of this process or root. A symbolic link is followed, and the file behind it is checked.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] with the path and the rule, never the content.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |rule: String| EventError::Config(format!("key file {path:?}: {rule}"));
        let (content, _, metadata) =
            private_file::read(path, MAX_FILE_LEN).map_err(|error| refuse(error.to_string()))?;
        let content = Zeroizing::new(content);
        if let Some(mode) = private_file::mode(&metadata).filter(|mode| mode & 0o077 != 0) {
            return Err(refuse(format!(
                "mode {mode:04o} grants access to other users; it must be 0600 or less"
            )));
        }
        if matches!(private_file::owner(&metadata), Owner::Other { .. }) {
            return Err(refuse("it belongs to another user".to_owned()));
        }
        Self::decode(&content).ok_or_else(|| refuse(RULE.to_owned()))
    }

    /// Reads a key from an environment variable. Prefer a file: child processes inherit the environment, and debuggers
    /// show it.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] with the variable and the rule, never the content.
    pub fn from_env(variable: &str) -> Result<Self> {
        let refuse =
            |rule: &str| EventError::Config(format!("environment variable '{}': {rule}", shorten(variable)));
        // The standard library may panic on an invalid name.
        if variable.is_empty() || variable.contains(['=', '\0']) {
            return Err(refuse("is not a valid name"));
        }
        let text = std::env::var_os(variable).ok_or_else(|| refuse("is not set"))?;
        let text = Zeroizing::new(text.into_encoded_bytes());
        Self::decode(&text).ok_or_else(|| refuse(RULE))
    }

    /// Reads a key from text in standard base64 or hexadecimal.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] with the rule, never the text.
    pub fn from_text(text: &str) -> Result<Self> {
        Self::decode(text.as_bytes()).ok_or_else(|| EventError::Config(format!("encryption key: {RULE}")))
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let mut key = Box::new(Zeroizing::new([0; KEY_LEN]));
        match text.len() {
            // Decoding needs room for bytes that the padding may stand for.
            44 => {
                let mut bytes = Zeroizing::new([0; KEY_LEN + 1]);
                let len = STANDARD.decode_slice(text, bytes.as_mut_slice()).ok()?;
                key.copy_from_slice(bytes.get(..len).filter(|bytes| bytes.len() == KEY_LEN)?);
            }
            64 => {
                for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
                    let &[high, low] = pair else { return None };
                    *byte = (hex_digit(high)? << 4) | hex_digit(low)?;
                }
            }
            _ => return None,
        }
        Some(Self(key))
    }
}

const RULE: &str = "must be 32 bytes in standard base64 (44 characters) or hexadecimal (64 characters)";

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

impl From<&[u8; KEY_LEN]> for EncryptionKey {
    fn from(bytes: &[u8; KEY_LEN]) -> Self {
        let mut key = Box::new(Zeroizing::new([0; KEY_LEN]));
        key.copy_from_slice(bytes);
        Self(key)
    }
}

/// Returns the bytes, so that a key can be passed as 32 bytes.
impl Deref for EncryptionKey {
    type Target = [u8; KEY_LEN];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn refused(result: Result<EncryptionKey>) -> String {
        match result.unwrap_err() {
            EventError::Config(text) => text,
            other => panic!("unexpected error {other}"),
        }
    }

    #[test]
    fn both_forms_are_the_same_key() {
        let bytes: Vec<u8> = (0..32).collect();
        for text in [HEX, BASE64, &format!(" {HEX}\r\n"), &format!("{BASE64}\n")] {
            assert_eq!(EncryptionKey::from_text(text).unwrap().as_slice(), bytes);
        }
    }

    #[test]
    fn other_texts_are_refused_without_showing_them() {
        let short_base64 = STANDARD.encode([7; 31]);
        let long_base64 = STANDARD.encode([7; 33]);
        for text in
            ["", "canary", &HEX[1..], &HEX.replace('0', "x"), &short_base64, &long_base64, &"é".repeat(32)]
        {
            let shown = refused(EncryptionKey::from_text(text));
            assert!(shown.contains("32 bytes"), "{text}: {shown}");
            assert!(text.len() < 5 || !shown.contains(text), "{shown}");
        }
    }

    #[test]
    fn a_variable_that_is_absent_or_no_key_is_named() {
        assert!(
            refused(EncryptionKey::from_env("A3S_EVENT_NO_SUCH_KEY"))
                .contains("'A3S_EVENT_NO_SUCH_KEY': is not set")
        );
        for name in ["", "A=B", "A\0B"] {
            assert!(refused(EncryptionKey::from_env(name)).contains("not a valid name"));
        }
        // Cargo sets this one for every test.
        let shown = refused(EncryptionKey::from_env("CARGO_PKG_DESCRIPTION"));
        assert!(shown.contains("32 bytes") && !shown.contains("One event API"), "{shown}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_must_be_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        private_file::write_new(&path, BASE64.as_bytes()).unwrap();
        assert_eq!(EncryptionKey::from_file(&path).unwrap()[31], 31);

        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        EncryptionKey::from_file(&link).unwrap();

        for mode in [0o640, 0o604, 0o666, 0o610] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let shown = refused(EncryptionKey::from_file(&path));
            assert!(shown.contains("key") && shown.contains(&format!("{mode:04o}")), "{shown}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        EncryptionKey::from_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_holds_no_key_is_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content, rule) in [
            ("text", b"canary".to_vec(), "32 bytes"),
            ("empty", Vec::new(), "32 bytes"),
            ("binary", vec![0xff; 32], "32 bytes"),
            ("large", vec![b'a'; 2000], "larger than"),
        ] {
            let path = folder.path().join(name);
            private_file::write_new(&path, &content).unwrap();
            let shown = refused(EncryptionKey::from_file(&path));
            assert!(shown.contains(name) && shown.contains(rule) && !shown.contains("canary"), "{shown}");
        }
        assert!(refused(EncryptionKey::from_file(folder.path())).contains("not a file"));
        refused(EncryptionKey::from_file(folder.path().join("absent")));
    }
}

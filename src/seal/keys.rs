//! The keys, and the algorithm by which they seal.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::{NONCE_BYTES, TAG_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::token::is_token;

const KEY_BYTES: usize = 32;

/// The most keys that are held, and the most text that is read for them.
const MAX_KEYS: usize = 64;
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// One key to seal with, under the id by which sealed jobs name it. `Debug` does not show it.
pub struct SealKey {
    id: String,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl SealKey {
    /// A key of 256 random bits under an id of your choice.
    ///
    /// # Errors
    /// `is_invalid` for an id that is no token.
    pub fn new(id: impl AsRef<str>, key: [u8; KEY_BYTES]) -> Result<Self> {
        let (id, bytes) = (id.as_ref(), Zeroizing::new(key));
        // What is no id may be the key itself, in the wrong place.
        if !is_token(id) {
            return Err(Error::invalid(
                "the id of a seal key is not a valid token: use 1 to 64 characters of A-Z a-z 0-9 _ -",
            ));
        }
        Ok(Self { id: id.to_owned(), bytes })
    }

    /// A fresh key from the system's randomness.
    ///
    /// # Errors
    /// `is_invalid` for an id that is no token; another where the system gives no randomness.
    pub fn generate(id: impl AsRef<str>) -> Result<Self> {
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        fill(&mut *key)?;
        Self::new(id, *key)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The line that stands for it in a file of keys: its id and, in base64, itself. A secret.
    pub fn reveal(&self) -> Zeroizing<String> {
        let key = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.bytes.as_slice()));
        Zeroizing::new(format!("{} {}", self.id, *key))
    }

    fn parse(line: &str) -> Option<Self> {
        let (id, key) = line.split_once(char::is_whitespace)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(key.trim()).ok()?);
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        if bytes.len() != KEY_BYTES {
            return None;
        }
        key.copy_from_slice(&bytes);
        Self::new(id, *key).ok()
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys of a producer or a worker: the current one seals, and all of them open. Cheap to clone;
/// `Debug` shows ids alone.
///
/// To change keys, first give all workers the new one as an older one, then make it the current one
/// everywhere, and drop the old one when no job is left that was sealed with it. Do so before a key has
/// sealed 4 billion (2^32) payloads and results: nonces are random, and beyond that two may be the same.
///
/// ```
/// # fn main() -> tidemill::Result<()> {
/// use tidemill::{SealKey, SealKeys};
///
/// let last_year = SealKey::generate("2025")?;
/// let keys = SealKeys::new(SealKey::generate("2026")?).older(last_year)?;
/// assert_eq!(keys.current(), "2026");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SealKeys(Arc<Vec<Held>>);

/// A key made ready for use.
#[derive(Clone)]
struct Held {
    id: String,
    key: LessSafeKey,
}

impl Held {
    fn new(key: &SealKey) -> Result<Self> {
        let unbound = UnboundKey::new(&AES_256_GCM, &*key.bytes).map_err(|_| {
            Error::invalid(format!("seal key {} cannot be used: it must have 32 bytes", key.id))
        })?;
        Ok(Self { id: key.id.clone(), key: LessSafeKey::new(unbound) })
    }
}

impl SealKeys {
    /// One key, which seals and opens.
    pub fn new(current: SealKey) -> Self {
        Self(Arc::new(vec![Held::new(&current).expect("its length is right by its type")]))
    }

    /// One more, which only opens.
    ///
    /// # Errors
    /// `is_invalid` where there is one of its id already, or more than 64.
    pub fn older(mut self, key: SealKey) -> Result<Self> {
        if self.has(&key.id) {
            return Err(Error::invalid(format!("there are two seal keys of the id {}", key.id)));
        }
        if self.0.len() == MAX_KEYS {
            return Err(Error::invalid(format!(
                "there are more than {MAX_KEYS} seal keys: drop those that no job is sealed with"
            )));
        }
        Arc::make_mut(&mut self.0).push(Held::new(&key)?);
        Ok(self)
    }

    /// Reads a file's text: a key a line, as [`SealKey::reveal`] writes it, the current one first.
    /// Empty lines and those that begin `#` are passed over.
    ///
    /// # Errors
    /// `is_invalid`, naming the line and never what it says.
    pub fn from_text(text: &str) -> Result<Self> {
        if text.len() > MAX_TEXT_BYTES {
            let size = text.len();
            return Err(Error::invalid(format!(
                "the text of the seal keys has {size} bytes: use at most {MAX_TEXT_BYTES}"
            )));
        }
        let mut keys: Option<Self> = None;
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = SealKey::parse(line).ok_or_else(|| {
                Error::invalid(format!(
                    "line {} of the seal keys is none: use <id> <43 characters of base64url>, as \
                     `tidemill seal keygen` prints it",
                    index + 1
                ))
            })?;
            keys = Some(match keys {
                None => Self::new(key),
                Some(keys) => keys.older(key)?,
            });
        }
        keys.ok_or_else(|| {
            Error::invalid("there is no seal key: make one by `tidemill seal keygen`")
        })
    }

    /// The id of the key that seals.
    pub fn current(&self) -> &str {
        &self.0[0].id
    }

    /// The ids of all keys, the current one first.
    pub fn ids(&self) -> Vec<&str> {
        self.0.iter().map(|held| held.id.as_str()).collect()
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|held| held.id == id)
    }

    /// Nonce, ciphertext and tag, under the current key.
    pub(super) fn seal(&self, bound: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        fill(&mut nonce)?;
        self.seal_with(nonce, bound, plain)
    }

    pub(super) fn seal_with(
        &self,
        nonce: [u8; NONCE_BYTES],
        bound: &[u8],
        plain: &[u8],
    ) -> Result<Vec<u8>> {
        let mut sealed = Vec::with_capacity(NONCE_BYTES + plain.len() + TAG_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let tag = self.0[0]
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound),
                &mut sealed[NONCE_BYTES..],
            )
            .map_err(|_| Error::invalid("the payload is too large to be sealed"))?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// What was sealed under a key of this id; `None` where it is not that.
    pub(super) fn open(&self, id: &str, bound: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let held = self.0.iter().find(|held| held.id == id)?;
        let (nonce, rest) = sealed.split_at_checked(NONCE_BYTES)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plain = rest.to_vec();
        let length = held.key.open_in_place(nonce, Aad::from(bound), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKeys").field("ids", &self.ids()).finish_non_exhaustive()
    }
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    SystemRandom::new().fill(bytes).map_err(|_| {
        Error::new(ErrorKind::Unavailable, "the system gives no randomness: nothing is sealed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_keys_is_read_as_it_is_written() {
        let keys = [SealKey::generate("new"), SealKey::generate("old")].map(|key| key.expect("ok"));
        let text = format!("# mine\n\n{}\r\n {} \n", *keys[0].reveal(), *keys[1].reveal());
        let read = SealKeys::from_text(&text).expect("keys");
        assert_eq!((read.current(), read.ids()), ("new", vec!["new", "old"]));
        let sealed = SealKeys::new(SealKey::parse(&keys[1].reveal()).expect("a key"))
            .seal(b"bound", b"plain")
            .expect("sealed");
        assert_eq!(read.open("old", b"bound", &sealed).expect("opens"), b"plain");
    }

    #[test]
    fn what_is_no_file_of_keys_is_refused_without_being_shown() {
        let good = SealKey::generate("k1").expect("a key");
        let good = good.reveal();
        let key = good.split_once(' ').expect("two words").1;
        let short = &key[1..];
        for (text, why) in [
            (String::new(), "no seal key"),
            (key.to_owned(), "line 1"),
            (format!("{}\nk2 {short}", *good), "line 2"),
            (format!("k 1 {key}"), "line 1"),
            (format!("{key} k1"), "line 1"),
            (format!("{}\n{}", *good, *good), "two seal keys of the id k1"),
            ("#".repeat(MAX_TEXT_BYTES + 1), "at most 65536"),
        ] {
            let error = SealKeys::from_text(&text).expect_err(why);
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(why), "{shown}");
            assert!(!shown.contains(short), "{shown}");
        }
        let error = SealKey::new(format!("{key}.{key}"), [0; 32]).expect_err("no token");
        assert!(!error.to_string().contains(short), "{error}");
    }

    #[test]
    fn debug_shows_ids_alone() {
        let key = SealKey::new("k1", [0x41; 32]).expect("a key");
        let shown =
            format!("{key:?} {:?}", SealKeys::new(SealKey::new("k2", [0x41; 32]).expect("ok")));
        assert!(shown.contains("k1") && shown.contains("k2"));
        for secret in ["AAAA", "41", "65", &key.reveal()[3..]] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

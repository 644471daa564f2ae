//! Signed jobs: an ed25519 signature by an nkey, so that a worker runs what a trusted producer has asked
//! for and nothing else, whoever may publish. Bytes in, bytes out.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use nkeys::{KeyPair, KeyPairType};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::wire::{Headers, RecordKey, Scope, SignatureHeader, signed_bytes};

/// The most keys that a queue can trust.
const MAX_TRUSTED: usize = 1024;

/// The private half of an nkey, with which a producer signs its jobs. `Debug` shows the public half.
///
/// Make one for this alone: a key that also connects to a server signs whatever nonce that asks for.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<KeyPair>,
    public: Arc<str>,
}

impl SigningKey {
    /// Reads a user's seed, `SU…`, as `tidemill sign keygen` and `nk -gen user` print it.
    ///
    /// # Errors
    /// `is_invalid` where it is none; it is not shown.
    pub fn from_seed(seed: impl AsRef<str>) -> Result<Self> {
        KeyPair::from_seed(seed.as_ref().trim())
            .ok()
            .filter(|pair| pair.key_pair_type() == KeyPairType::User)
            .map(Self::new)
            .ok_or_else(|| Error::invalid("the signing key is no user's seed (SU…)"))
    }

    /// A fresh key from the system's randomness.
    pub fn generate() -> Self {
        Self::new(KeyPair::new_user())
    }

    fn new(pair: KeyPair) -> Self {
        Self { public: pair.public_key().into(), pair: Arc::new(pair) }
    }

    /// The public half, `U…`, for those who are to trust it.
    pub fn public_key(&self) -> &str {
        &self.public
    }

    /// The seed. A secret.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.seed().unwrap_or_default())
    }

    /// Signs a job; `None` where it is none of the scope's.
    pub(crate) fn sign(
        &self,
        scope: Scope,
        job: &RecordKey,
        headers: &Headers,
        body: &[u8],
    ) -> Option<SignatureHeader> {
        let bytes = signed_bytes(&scope, job, headers, body)?;
        let signature = self.pair.sign(&bytes).ok()?;
        Some(SignatureHeader { signer: self.public.to_string(), signature, scope })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// The public nkeys whose jobs a queue takes: one for each producer, and two of one that is changing its
/// key.
#[derive(Clone)]
pub struct TrustedKeys(Arc<HashMap<String, KeyPair>>);

impl TrustedKeys {
    /// Public nkeys of users, `U…`.
    ///
    /// # Errors
    /// `is_invalid` where one is none, or there is none at all, or more than 1024.
    pub fn new(keys: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        let mut trusted = HashMap::new();
        for key in keys {
            let key = key.as_ref().trim();
            let pair = KeyPair::from_public_key(key)
                .ok()
                .filter(|pair| pair.key_pair_type() == KeyPairType::User)
                // What is no public key may be a seed, in the wrong place.
                .ok_or_else(|| Error::invalid("a trusted key is no user's public nkey (U…)"))?;
            trusted.insert(key.to_owned(), pair);
            if trusted.len() > MAX_TRUSTED {
                return Err(Error::invalid(format!(
                    "there are more than {MAX_TRUSTED} trusted keys for one queue"
                )));
            }
        }
        if trusted.is_empty() {
            return Err(Error::invalid("there is no trusted key: every job would be buried"));
        }
        Ok(Self(Arc::new(trusted)))
    }

    /// Whether one of these vouches for a job.
    pub(crate) fn check(
        &self,
        header: Option<&SignatureHeader>,
        job: &RecordKey,
        headers: &Headers,
        body: &[u8],
    ) -> Result<(), Distrust> {
        let Some(SignatureHeader { signer, signature, scope }) = header else {
            return Err(Distrust::Unsigned);
        };
        let Some(key) = self.0.get(signer) else {
            return Err(Distrust::Bad(format!("it is signed by {signer}, which is not trusted")));
        };
        let Some(bytes) = signed_bytes(scope, job, headers, body) else {
            let problem = "it is signed for the jobs of a cron entry, and is none of them";
            return Err(Distrust::Bad(problem.to_owned()));
        };
        key.verify(&bytes, signature).map_err(|_| {
            Distrust::Bad(format!(
                "the signature of {signer} is for something else: the body, a header, the queue, the \
                 kind, the id or the run was changed"
            ))
        })
    }
}

impl fmt::Debug for TrustedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why nobody vouches for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Distrust {
    Unsigned,
    Bad(String),
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::token::CronName;
    use crate::wire::name;

    fn job() -> RecordKey {
        RecordKey::of("default", "send_email", "order-17", "r1")
    }

    fn headers() -> Headers {
        [("Tidemill-Timeout", "5000"), ("X-Tenant", "7")].into_iter().collect()
    }

    fn trusted(key: &SigningKey) -> TrustedKeys {
        TrustedKeys::new([key.public_key()]).expect("a key")
    }

    #[test]
    fn a_signature_is_for_this_job_alone() {
        let key = SigningKey::generate();
        let trusted = trusted(&key);
        let header = key.sign(Scope::Job, &job(), &headers(), b"{}").expect("signed");
        let check = |job: &RecordKey, headers: &Headers, body: &[u8]| {
            trusted.check(Some(&header), job, headers, body)
        };
        assert_eq!(check(&job(), &headers(), b"{}"), Ok(()));
        for other in [
            RecordKey::of("other", "send_email", "order-17", "r1"),
            RecordKey::of("default", "refund", "order-17", "r1"),
            RecordKey::of("default", "send_email", "order-18", "r1"),
            RecordKey::of("default", "send_email", "order-17", "r2"),
        ] {
            assert!(check(&other, &headers(), b"{}").is_err(), "{other:?}");
        }
        assert!(check(&job(), &headers(), b"{ }").is_err());
        let mut changed = headers();
        changed.set("X-Tenant", "8");
        assert!(check(&job(), &changed, b"{}").is_err());
        let mut copied = headers();
        copied.set(name::ATTEMPTS_USED, "2");
        copied.set(name::SIGNATURE, header.to_text());
        assert_eq!(check(&job(), &copied, b"{}"), Ok(()), "as copies are");
    }

    #[test]
    fn one_of_the_trusted_keys_must_have_signed() {
        let (old, new, other) =
            (SigningKey::generate(), SigningKey::generate(), SigningKey::generate());
        let trusted = TrustedKeys::new([old.public_key(), new.public_key()]).expect("keys");
        let sign = |key: &SigningKey| key.sign(Scope::Job, &job(), &headers(), b"{}");
        let check = |header: Option<SignatureHeader>| {
            trusted.check(header.as_ref(), &job(), &headers(), b"{}")
        };
        assert_eq!((check(sign(&old)), check(sign(&new))), (Ok(()), Ok(())));
        assert_eq!(check(None), Err(Distrust::Unsigned));
        let Err(Distrust::Bad(why)) = check(sign(&other)) else { panic!("not trusted") };
        assert!(why.contains(other.public_key()) && why.contains("not trusted"), "{why}");
        // Under a name that is trusted, it is not that one's.
        let forged = sign(&other)
            .map(|header| SignatureHeader { signer: old.public_key().to_owned(), ..header });
        assert!(matches!(check(forged), Err(Distrust::Bad(why)) if why.contains("something else")));
    }

    #[test]
    fn what_is_signed_for_a_cron_entry_is_for_its_jobs_whatever_their_run() {
        let key = SigningKey::generate();
        let scope = Scope::Cron(CronName::new("nightly").expect("valid"));
        let entry = RecordKey::of("default", "report", "c-nightly", "c-nightly");
        let header = key.sign(scope, &entry, &headers(), b"{}").expect("signed");
        let mut fired = headers();
        fired.set(name::RUN, "c-nightly-42");
        fired.set(name::UNIQUE, "1");
        let check = |kind: &str, id: &str, run: &str| {
            let job = RecordKey::of("default", kind, id, run);
            trusted(&key).check(Some(&header), &job, &fired, b"{}")
        };
        assert_eq!(check("report", "c-nightly", "c-nightly-42"), Ok(()));
        assert_eq!(check("report", "c-nightly-42", "c-nightly-42"), Ok(()));
        assert!(check("refund", "c-nightly-42", "c-nightly-42").is_err());
        assert!(check("report", "c-other-42", "c-other-42").is_err());
        assert!(check("report", "order-17", "r1").is_err());
    }

    #[test]
    fn no_seed_is_shown() {
        let key = SigningKey::generate();
        let seed = key.reveal();
        let cut = &seed[1..];
        let account = KeyPair::new_account().seed().expect("a seed");
        let mut shown = format!("{key:?} {:?}", trusted(&key));
        assert!(shown.contains(key.public_key()));
        for bad in [cut, &seed.to_lowercase(), &account] {
            let error = SigningKey::from_seed(bad).expect_err("no seed");
            shown.push_str(&format!("{error} {error:?}"));
        }
        let error = TrustedKeys::new([&*seed]).expect_err("a seed is not for workers");
        shown.push_str(&format!("{error} {error:?}"));
        for secret in [&cut[..20], &cut[..20].to_lowercase(), &account[2..20]] {
            assert!(!shown.contains(secret), "{shown}");
        }
        let none: [&str; 0] = [];
        assert!(TrustedKeys::new(none).expect_err("none").to_string().contains("no trusted key"));
    }

    /// What is signed, by the protocol's text.
    #[derive(Deserialize)]
    struct Vector {
        seed: String,
        queue: String,
        kind: String,
        id: String,
        run: String,
        headers: Vec<(String, String)>,
        body: String,
        bytes: String,
        signature: String,
    }

    #[test]
    fn bytes_are_as_the_protocol_says() {
        let mut count = 0;
        for line in crate::wire::protocol_block("json,signed").lines() {
            let vector: Vector = serde_json::from_str(line).expect(line);
            let key = SigningKey::from_seed(&vector.seed).expect(line);
            let job = RecordKey::of(&vector.queue, &vector.kind, &vector.id, &vector.run);
            let headers: Headers = vector.headers.into_iter().collect();
            let header = SignatureHeader::parse(&vector.signature).expect(line);
            let bytes = signed_bytes(&header.scope, &job, &headers, vector.body.as_bytes());
            assert_eq!(STANDARD.encode(bytes.expect(line)), vector.bytes, "{line}");
            let body = vector.body.as_bytes();
            let signed = key.sign(header.scope.clone(), &job, &headers, body).expect(line);
            assert_eq!(signed.to_text(), vector.signature, "{line}");
            assert_eq!(trusted(&key).check(Some(&header), &job, &headers, body), Ok(()), "{line}");
            count += 1;
        }
        assert!(count >= 2, "{count} vectors");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_flipped_bit_is_taken(
            body in prop::collection::vec(any::<u8>(), 1..60),
            at: prop::sample::Index,
            bit in 0..8,
        ) {
            let key = SigningKey::generate();
            let trusted = trusted(&key);
            let header = key.sign(Scope::Job, &job(), &headers(), &body).expect("signed");
            let check = |header: &SignatureHeader, body: &[u8]| {
                trusted.check(Some(header), &job(), &headers(), body)
            };
            prop_assert_eq!(check(&header, &body), Ok(()));
            let flip = |bytes: &[u8]| {
                let mut flipped = bytes.to_vec();
                flipped[at.index(bytes.len())] ^= 1u8 << bit;
                flipped
            };
            prop_assert!(check(&header, &flip(&body)).is_err());
            let forged = SignatureHeader { signature: flip(&header.signature), ..header.clone() };
            prop_assert!(check(&forged, &body).is_err());
        }
    }
}

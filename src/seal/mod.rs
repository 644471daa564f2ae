//! Sealed payloads: AES-256-GCM by keys that only producers and workers have, so that who can read the
//! broker's streams reads no payload. Bytes in, bytes out.

#[cfg(feature = "seal")]
mod keys;
#[cfg(not(feature = "seal"))]
mod none;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::value::RawValue;

#[cfg(feature = "seal")]
pub use self::keys::{SealKey, SealKeys};
#[cfg(not(feature = "seal"))]
pub(crate) use self::none::SealKeys;
use crate::error::{Error, Result};
use crate::wire::{RecordKey, Scope, SealHeader, result_bound_to};

/// What stands before the ciphertext, and behind it, in bytes.
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Seals the payload of a job.
pub(crate) fn seal_payload(
    keys: &SealKeys,
    scope: Scope,
    job: &RecordKey,
    payload: &[u8],
) -> Result<(SealHeader, Bytes)> {
    let header = SealHeader { key: keys.current().to_owned(), scope };
    // What is sealed for an entry has the id of one of its jobs, or of all.
    let bound = header.bound_to(job).ok_or_else(|| {
        Error::invalid(format!("job {} cannot be sealed as one of a cron entry's", job.id))
    })?;
    let sealed = keys.seal(&bound, payload)?;
    Ok((header, sealed.into()))
}

/// Opens the payload of a job, or says why it cannot be.
pub(crate) fn open_payload(
    keys: Option<&SealKeys>,
    header: &SealHeader,
    job: &RecordKey,
    payload: &[u8],
) -> Result<Bytes, String> {
    let Some(bound) = header.bound_to(job) else {
        return Err("it is sealed for the jobs of a cron entry, and is none of them".to_owned());
    };
    open(keys, &header.key, &bound, payload).map(Bytes::from)
}

/// Seals a result as the text that stands in its completion.
pub(crate) fn seal_result(keys: &SealKeys, run: &RecordKey, json: &str) -> Result<String> {
    let header = SealHeader { key: keys.current().to_owned(), scope: Scope::Job };
    let sealed = keys.seal(&result_bound_to(run), json.as_bytes())?;
    Ok(format!("{};{}", header.to_text(), URL_SAFE_NO_PAD.encode(sealed)))
}

/// Opens a result; `None` where these keys do not, or it is not one.
pub(crate) fn open_result(keys: &SealKeys, run: &RecordKey, text: &str) -> Option<Box<RawValue>> {
    let (header, sealed) = text.rsplit_once(';')?;
    let header = SealHeader::parse(header)?;
    let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
    let json = open(Some(keys), &header.key, &result_bound_to(run), &sealed).ok()?;
    RawValue::from_string(String::from_utf8(json).ok()?).ok()
}

fn open(
    keys: Option<&SealKeys>,
    key: &str,
    bound: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, String> {
    let least = NONCE_BYTES + TAG_BYTES;
    if sealed.len() < least {
        return Err(format!(
            "it says that it is sealed, and has {} bytes: a nonce and a tag alone have {least}",
            sealed.len()
        ));
    }
    let Some(keys) = keys else {
        return Err(format!("it is sealed with key {key}, and there are no seal keys here"));
    };
    if !keys.has(key) {
        return Err(format!(
            "it is sealed with key {key}, which is not among those here: {}",
            keys.ids().join(", ")
        ));
    }
    keys.open(key, bound, sealed).ok_or_else(|| {
        format!(
            "it does not open with key {key}: it was changed, moved from another queue, kind or id, or \
             sealed with another key of that name"
        )
    })
}

#[cfg(all(test, feature = "seal"))]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::token::CronName;

    fn job() -> RecordKey {
        RecordKey::of("default", "send_email", "order-17", "r1")
    }

    fn keys(id: &str, byte: u8) -> SealKeys {
        SealKeys::new(SealKey::new(id, [byte; 32]).expect("valid"))
    }

    #[test]
    fn opens_as_what_it_was_for_this_job_alone() {
        let keys = keys("k1", 1);
        let (header, sealed) = seal_payload(&keys, Scope::Job, &job(), b"{}").expect("sealed");
        let open = |job: &RecordKey| open_payload(Some(&keys), &header, job, &sealed);
        assert_eq!(open(&job()).expect("opens"), "{}");
        let retried = RecordKey::of("default", "send_email", "order-17", "d-7");
        assert_eq!(open(&retried).expect("whatever its run"), "{}");
        for other in [
            RecordKey::of("other", "send_email", "order-17", "r1"),
            RecordKey::of("default", "refund", "order-17", "r1"),
            RecordKey::of("default", "send_email", "order-18", "r1"),
        ] {
            assert!(open(&other).expect_err("another").contains("does not open"), "{other:?}");
        }
    }

    #[test]
    fn what_is_sealed_for_a_cron_entry_opens_for_its_jobs() {
        let keys = keys("k1", 1);
        let scope = Scope::Cron(CronName::new("nightly").expect("valid"));
        let entry = RecordKey::of("default", "report", "c-nightly", "c-nightly");
        let (header, sealed) = seal_payload(&keys, scope, &entry, b"{}").expect("sealed");
        let open = |id: &str| {
            let job = RecordKey::of("default", "report", id, "r");
            open_payload(Some(&keys), &header, &job, &sealed)
        };
        assert!(open("c-nightly").is_ok() && open("c-nightly-42").is_ok());
        assert!(open("nightly").expect_err("none of its").contains("none of them"));
        let none_of_its = seal_payload(&keys, header.scope.clone(), &job(), b"{}");
        assert!(none_of_its.expect_err("bound to nothing").is_invalid());
        // Nor does it pass for a job of the entry's name.
        let as_job = SealHeader { scope: Scope::Job, ..header.clone() };
        let job = RecordKey::of("default", "report", "nightly", "r");
        assert!(open_payload(Some(&keys), &as_job, &job, &sealed).is_err());
    }

    #[test]
    fn why_it_does_not_open_is_said_without_any_secret() {
        let right = keys("k1", 1);
        let (header, sealed) = seal_payload(&right, Scope::Job, &job(), b"hush").expect("sealed");
        let why = |keys: Option<&SealKeys>, sealed: &[u8]| {
            open_payload(keys, &header, &job(), sealed).expect_err("does not open")
        };
        assert!(why(None, &sealed).contains("sealed with key k1, and there are no seal keys"));
        assert!(why(Some(&keys("k2", 1)), &sealed).contains("not among those here: k2"));
        assert!(why(Some(&keys("k1", 2)), &sealed).contains("does not open with key k1"));
        assert!(why(Some(&right), &sealed[..27]).contains("has 27 bytes"));
    }

    #[test]
    fn the_current_key_seals_and_older_ones_open() {
        let old = keys("k1", 1);
        let (old_header, old_sealed) =
            seal_payload(&old, Scope::Job, &job(), b"1").expect("sealed");
        let rotated = keys("k2", 2).older(SealKey::new("k1", [1; 32]).expect("valid"));
        let rotated = rotated.expect("another id");
        let opened = open_payload(Some(&rotated), &old_header, &job(), &old_sealed);
        assert_eq!(opened.expect("opens"), "1");
        let (header, sealed) = seal_payload(&rotated, Scope::Job, &job(), b"2").expect("sealed");
        assert_eq!(header.key, "k2");
        assert!(open_payload(Some(&old), &header, &job(), &sealed).is_err());
    }

    #[test]
    fn a_result_opens_for_its_run_alone() {
        let keys = keys("k1", 1);
        let text = seal_result(&keys, &job(), r#"{"sent":true}"#).expect("sealed");
        assert!(text.starts_with("v1;k1;") && !text.contains("sent"));
        let opened = open_result(&keys, &job(), &text).expect("opens");
        assert_eq!(opened.get(), r#"{"sent":true}"#);
        let other_run = RecordKey::of("default", "send_email", "order-17", "r2");
        assert!(open_result(&keys, &other_run, &text).is_none());
        assert!(open_result(&keys, &job(), "v1;k1").is_none());
    }

    /// What is sealed, by the protocol's text.
    #[derive(Deserialize)]
    struct Vector {
        key: String,
        queue: String,
        kind: String,
        id: String,
        #[serde(default)]
        run: Option<String>,
        #[serde(default)]
        header: Option<String>,
        plain: String,
        #[serde(default)]
        body: Option<String>,
        #[serde(default)]
        result_sealed: Option<String>,
    }

    #[test]
    fn bytes_are_as_the_protocol_says() {
        let mut count = 0;
        for line in crate::wire::protocol_block("json,sealed").lines() {
            let vector: Vector = serde_json::from_str(line).expect(line);
            let keys = SealKeys::from_text(&vector.key).expect(line);
            let run = vector.run.as_deref().unwrap_or("any");
            let job = RecordKey::of(&vector.queue, &vector.kind, &vector.id, run);
            if let Some(sealed) = &vector.result_sealed {
                let opened = open_result(&keys, &job, sealed).expect(line);
                assert_eq!(opened.get(), vector.plain, "{line}");
            }
            if let (Some(header), Some(body)) = (&vector.header, &vector.body) {
                let header = SealHeader::parse(header).expect(line);
                let body = URL_SAFE_NO_PAD.decode(body).expect(line);
                let opened = open_payload(Some(&keys), &header, &job, &body).expect(line);
                assert_eq!(opened, vector.plain, "{line}");
                // And sealed anew with the same nonce, it is the same bytes.
                let nonce: [u8; NONCE_BYTES] = body[..NONCE_BYTES].try_into().expect("its length");
                let bound = header.bound_to(&job).expect(line);
                assert_eq!(keys.seal_with(nonce, &bound, &opened).expect("sealed"), body, "{line}");
            }
            count += 1;
        }
        assert!(count >= 3, "{count} vectors");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(payload in prop::collection::vec(any::<u8>(), 0..300), byte: u8) {
            let keys = keys("k", byte);
            let (header, sealed) = seal_payload(&keys, Scope::Job, &job(), &payload).expect("ok");
            prop_assert_eq!(sealed.len(), payload.len() + NONCE_BYTES + TAG_BYTES);
            let opened = open_payload(Some(&keys), &header, &job(), &sealed).expect("opens");
            prop_assert_eq!(opened, payload);
        }

        #[test]
        fn no_flipped_bit_opens(
            payload in prop::collection::vec(any::<u8>(), 0..60),
            at: prop::sample::Index,
            bit in 0..8,
        ) {
            let keys = keys("k", 7);
            let (header, sealed) = seal_payload(&keys, Scope::Job, &job(), &payload).expect("ok");
            let mut flipped = sealed.to_vec();
            let at = at.index(flipped.len());
            flipped[at] ^= 1u8 << bit;
            prop_assert!(open_payload(Some(&keys), &header, &job(), &flipped).is_err());
        }

        #[test]
        fn neither_another_key_nor_anything_else_opens(
            key: [u8; 32],
            rubbish in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            prop_assume!(key != [7; 32]);
            let right = keys("k", 7);
            let wrong = SealKeys::new(SealKey::new("k", key).expect("valid"));
            let (header, sealed) = seal_payload(&right, Scope::Job, &job(), b"{}").expect("ok");
            prop_assert!(open_payload(Some(&wrong), &header, &job(), &sealed).is_err());
            prop_assert!(open_payload(Some(&right), &header, &job(), &rubbish).is_err());
        }
    }
}

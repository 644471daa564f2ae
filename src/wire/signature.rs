//! Signatures of jobs on the wire: the header, and the bytes that are signed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::headers::{Headers, is_brokers, name};
use super::scope::{Fields, Scope};
use super::subject::RecordKey;

const VERSION: &str = "v1";
const LABEL: &str = "tidemill.sign.v1";

/// A public nkey as text, and an ed25519 signature, in bytes.
const PUBLIC_KEY_BYTES: usize = 56;
const SIGNATURE_BYTES: usize = 64;

/// The longest header that is looked at.
const MAX_BYTES: usize = 256;

/// What copies of a job change, and what says itself otherwise: the run is signed as it is, whether a
/// header names it or not.
const NOT_SIGNED: [&str; 6] = [
    name::SIGNATURE,
    name::RUN,
    name::ATTEMPTS_USED,
    name::RUN_AFTER,
    name::CREATED_AT,
    name::PROMOTED,
];

/// Who vouches for which jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignatureHeader {
    /// The public nkey.
    pub(crate) signer: String,
    pub(crate) signature: Vec<u8>,
    pub(crate) scope: Scope,
}

impl SignatureHeader {
    /// Reads `v1;<public nkey>;<signature>` or the same with `;cron:<name>` behind it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let mut parts = text.split(';');
        let version = parts.next()?;
        let signer = parts.next().filter(|signer| is_public_key(signer))?.to_owned();
        let signature = URL_SAFE_NO_PAD.decode(parts.next()?).ok()?;
        let scope = Scope::read(parts)?;
        (version == VERSION && signature.len() == SIGNATURE_BYTES).then_some(Self {
            signer,
            signature,
            scope,
        })
    }

    pub(crate) fn to_text(&self) -> String {
        let Self { signer, signature, scope } = self;
        let signature = URL_SAFE_NO_PAD.encode(signature);
        format!("{VERSION};{signer};{signature}{}", scope.suffix())
    }
}

/// Whether it has the letters of a public nkey. It is shown to people, whoever has written it.
fn is_public_key(text: &str) -> bool {
    let is_base32 = |byte: u8| matches!(byte, b'A'..=b'Z' | b'2'..=b'7');
    text.len() == PUBLIC_KEY_BYTES && text.bytes().all(is_base32)
}

/// The bytes that are signed. `None` where the scope cannot be of this job.
pub(crate) fn signed_bytes(
    scope: &Scope,
    job: &RecordKey,
    headers: &Headers,
    body: &[u8],
) -> Option<Vec<u8>> {
    // The runs of a cron entry are made when it fires.
    let run = match scope {
        Scope::Job => job.run.as_str(),
        Scope::Cron(_) => "",
    };
    let mut fields = Fields::new(LABEL);
    for field in [scope.word(), job.queue.as_str(), job.kind.as_str(), scope.name_of(&job.id)?, run]
    {
        fields.add(field);
    }
    let mut signed: Vec<(String, &str)> = headers
        .iter()
        .filter(|(name, _)| is_signed(name, scope))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    // Values of one name keep their order, which every client keeps; that of names none promises.
    signed.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields.count(signed.len());
    for (name, value) in signed {
        fields.add(name);
        fields.add(value);
    }
    fields.add(body);
    Some(fields.into_bytes())
}

fn is_signed(header: &str, scope: &Scope) -> bool {
    let is = |name: &str| header.eq_ignore_ascii_case(name);
    let is_made_by_firing = match scope {
        Scope::Job => false,
        Scope::Cron(_) => is(name::UNIQUE),
    };
    !is_brokers(header) && !is_made_by_firing && !NOT_SIGNED.into_iter().any(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> RecordKey {
        RecordKey::of("default", "send_email", "order-17", "r1")
    }

    fn signed(headers: &[(&str, &str)]) -> Vec<u8> {
        let headers = headers.iter().copied().collect();
        signed_bytes(&Scope::Job, &job(), &headers, b"{}").expect("for this job")
    }

    #[test]
    fn headers_are_written_as_they_are_read() {
        let signer = format!("U{}", "A".repeat(55));
        let signature = URL_SAFE_NO_PAD.encode([7; 64]);
        for text in
            [format!("v1;{signer};{signature}"), format!("v1;{signer};{signature};cron:nightly")]
        {
            assert_eq!(SignatureHeader::parse(&text).expect(&text).to_text(), text);
        }
        for bad in [
            "v1",
            &format!("v1;{signer}"),
            &format!("v2;{signer};{signature}"),
            &format!("v1;{signer}A;{signature}"),
            &format!("v1;\x1b[2J{};{signature}", &signer[4..]),
            &format!("v1;{};{signature}", signer.to_lowercase()),
            &format!("v1;{signer};{}+", &signature[1..]),
            &format!("v1;{signer};{}B", &signature[..signature.len() - 1]),
            &format!("v1;{signer};{}", URL_SAFE_NO_PAD.encode([7; 63])),
            &format!("v1;{signer};{signature};x"),
            &format!("v1;{signer};{}", "A".repeat(1000)),
        ] {
            assert_eq!(SignatureHeader::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_copies_change_is_not_signed_and_all_else_is() {
        let all = [("Tidemill-Timeout", "5"), ("X-Tenant", "a"), ("x-tenant", "b")];
        let copied = [
            ("X-Tenant", " a"),
            ("Tidemill-Run", "r1"),
            ("Tidemill-Attempts-Used", "2"),
            ("Nats-Batch-Id", "b"),
            ("tidemill-run-after", "+5"),
            ("Tidemill-Created-At", "2026-12-01T08:00:00Z"),
            ("Tidemill-Promoted", "7"),
            ("TIDEMILL-TIMEOUT", "5"),
            ("X-Tenant", "b"),
        ];
        assert_eq!(signed(&all), signed(&copied));
        let (swapped, without) = ([all[0], ("x-tenant", "b"), ("X-Tenant", "a")], [all[0], all[1]]);
        for other in [&swapped[..], &without[..], &[], &[all[0], ("X-Tenant", "ab")]] {
            assert_ne!(signed(&all), signed(other), "{other:?}");
        }
        for known in [name::EXPIRES_AT, name::SEAL, name::UNIQUE, "Tidemill-Later-Thing"] {
            assert_ne!(signed(&[(known, "1")]), signed(&[]), "{known}");
        }
    }
}

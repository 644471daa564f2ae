//! Sealing and signing of what this client enqueues, and opening of what it reads. A client without keys
//! does neither, at no cost.

use std::borrow::Cow;

use bytes::Bytes;

use super::Client;
use super::new_job::{NewJob, Ready};
use crate::error::{Error, Result};
use crate::seal::{SealKeys, open_payload, open_result, seal_payload};
use crate::sign::SigningKey;
use crate::wire::{Completion, Headers, RecordKey, Scope, SealHeader, SignatureHeader, name};

/// What a client seals, opens and signs with.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    seal: Option<SealKeys>,
    sign: Option<SigningKey>,
}

impl Client {
    /// The same connection, which seals the payloads of what it enqueues from now on, and opens results
    /// that are sealed. Workers that are made on it open with these keys.
    ///
    /// ```
    /// # async fn example(client: tidemill::Client) -> tidemill::Result<()> {
    /// use tidemill::{SealKeys, SigningKey};
    ///
    /// let seal_keys = std::fs::read_to_string("seal.keys").unwrap_or_default();
    /// let client = client.with_seal_keys(SealKeys::from_text(&seal_keys)?);
    /// let seed = std::fs::read_to_string("sign.seed").unwrap_or_default();
    /// let client = client.with_signing_key(SigningKey::from_seed(seed)?);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "seal")]
    #[must_use]
    pub fn with_seal_keys(mut self, keys: SealKeys) -> Self {
        self.keys.seal = Some(keys);
        self
    }

    /// The same connection, which signs what it enqueues from now on.
    #[must_use]
    pub fn with_signing_key(mut self, key: SigningKey) -> Self {
        self.keys.sign = Some(key);
        self
    }

    pub(crate) fn seal_keys(&self) -> Option<&SealKeys> {
        self.keys.seal.as_ref()
    }

    /// A job as it is stored.
    pub(crate) fn ready(&self, job: NewJob) -> Result<Ready> {
        self.protect(job.finish()?, Scope::Job)
    }

    /// A job as it is stored: its id and run are what they will be.
    pub(crate) fn protect(&self, mut job: Ready, scope: Scope) -> Result<Ready> {
        if let Some(keys) = &self.keys.seal {
            let (header, sealed) = seal_payload(keys, scope.clone(), &job.key(), &job.payload)?;
            job.headers.set(name::SEAL, header.to_text());
            job.payload = sealed;
        }
        self.sign(job, scope)
    }

    fn sign(&self, mut job: Ready, scope: Scope) -> Result<Ready> {
        if let Some(key) = &self.keys.sign {
            let signed = key.sign(scope, &job.key(), &job.headers, &job.payload);
            let header =
                signed.ok_or_else(|| Error::invalid(format!("job {} cannot be signed", job.id)))?;
            job.headers.set(name::SIGNATURE, header.to_text());
        }
        Ok(job)
    }

    /// A new run of a job that was signed. Its old signature does not cover it; that of a cron entry
    /// covers all its runs.
    pub(crate) fn sign_new_run(&self, job: Ready) -> Result<Ready> {
        let signed = job.headers.get(name::SIGNATURE).and_then(SignatureHeader::parse);
        match signed.map(|header| header.scope) {
            None | Some(Scope::Cron(_)) => Ok(job),
            Some(Scope::Job) if self.keys.sign.is_some() => self.sign(job, Scope::Job),
            Some(Scope::Job) => Err(Error::invalid(format!(
                "job {} is signed, and its signature does not cover a new run: retry it with a signing \
                 key that its workers trust",
                job.id
            ))),
        }
    }

    /// What a cron entry holds, as it was before it was sealed and signed; `None` where it is not as this
    /// client would seal and sign it.
    pub(crate) fn bare<'a>(
        &self,
        entry: &'a Ready,
        scope: &Scope,
    ) -> Option<(Headers, Cow<'a, [u8]>)> {
        let mut headers = entry.headers.clone();
        headers.remove(name::SIGNATURE);
        let seal = entry.headers.get(name::SEAL).map(SealHeader::parse);
        let signature = entry.headers.get(name::SIGNATURE).map(SignatureHeader::parse);
        let signs_as = self
            .keys
            .sign
            .as_ref()
            .map(|key| key.sign(scope.clone(), &entry.key(), &headers, &entry.payload));
        if signs_as != signature {
            return None;
        }
        headers.remove(name::SEAL);
        let payload = match (&self.keys.seal, seal) {
            (None, None) => Cow::Borrowed(&entry.payload[..]),
            (Some(keys), Some(Some(seal)))
                if keys.current() == seal.key && seal.scope == *scope =>
            {
                let opened = open_payload(Some(keys), &seal, &entry.key(), &entry.payload);
                Cow::Owned(opened.ok()?.to_vec())
            }
            (None | Some(_), Some(_)) | (Some(_), None) => return None,
        };
        Some((headers, payload))
    }

    /// The payload of a job that was found, opened where it is sealed.
    pub(crate) fn open_job(
        &self,
        job: &RecordKey,
        headers: &Headers,
        payload: &Bytes,
    ) -> Result<Bytes> {
        let Some(seal) = headers.get(name::SEAL) else { return Ok(payload.clone()) };
        SealHeader::parse(seal)
            .ok_or_else(|| format!("its header {} is none", name::SEAL))
            .and_then(|seal| open_payload(self.seal_keys(), &seal, job, payload))
            .map_err(|problem| {
                Error::invalid(format!("job {} cannot be opened: {problem}", job.id))
            })
    }

    /// A completion, with its result opened where it is sealed and this client has the key.
    pub(crate) fn opened(&self, mut completion: Completion) -> Completion {
        if let (Some(keys), Some(sealed)) = (&self.keys.seal, &completion.result_sealed) {
            completion.result = open_result(keys, &completion.key(), sealed);
        }
        completion
    }
}

/// The id of the key that a job's payload is sealed with, if it is.
pub(crate) fn sealed_with(headers: &Headers) -> Option<String> {
    headers.get(name::SEAL).and_then(SealHeader::parse).map(|seal| seal.key)
}

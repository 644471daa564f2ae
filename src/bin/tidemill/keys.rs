//! Keys to seal and sign jobs with: given by files, and made by `tidemill seal` and `tidemill sign`.

use std::path::Path;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use tidemill::{Client, SealKey, SealKeys, SigningKey, TrustedKeys};
use zeroize::Zeroizing;

use crate::cli::Global;
use crate::connect::said;
use crate::exit::{Exit, UsageError};
use crate::login::Given;
use crate::output;

/// Files of keys are read up to this size.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What jobs are sealed, opened and signed with.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Keys")]
pub(crate) struct KeyArgs {
    /// Seal payloads by the first key of this file, and open them and their results by any
    #[arg(
        long,
        global = true,
        env = "TIDEMILL_SEAL_KEYS",
        value_name = "FILE",
        hide_env_values = true
    )]
    seal_keys: Option<Given>,
    /// Sign jobs by the seed in this file
    #[arg(
        long,
        global = true,
        env = "TIDEMILL_SIGN_KEY",
        value_name = "FILE",
        hide_env_values = true
    )]
    sign_key: Option<Given>,
}

/// The keys in the files.
pub(crate) struct Keys {
    seal: Option<SealKeys>,
    sign: Option<SigningKey>,
}

impl KeyArgs {
    /// Whether they have what to seal by.
    pub(crate) fn seals(&self) -> bool {
        said(self.seal_keys.as_ref()).is_some()
    }

    pub(crate) fn read(&self) -> anyhow::Result<Keys> {
        Ok(Keys {
            seal: said(self.seal_keys.as_ref()).map(seal_keys).transpose()?,
            sign: said(self.sign_key.as_ref()).map(signing_key).transpose()?,
        })
    }
}

impl Keys {
    /// A client that seals, opens and signs with them.
    pub(crate) fn give(self, mut client: Client) -> Client {
        if let Some(keys) = self.seal {
            client = client.with_seal_keys(keys);
        }
        if let Some(key) = self.sign {
            client = client.with_signing_key(key);
        }
        client
    }
}

fn seal_keys(file: &Given) -> anyhow::Result<SealKeys> {
    let text = read(file, "the seal keys")?;
    SealKeys::from_text(&text).with_context(|| format!("in {}", shown(file)))
}

fn signing_key(file: &Given) -> anyhow::Result<SigningKey> {
    let text = read(file, "the signing key")?;
    let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU")).unwrap_or_default();
    SigningKey::from_seed(seed).with_context(|| format!("in {}", shown(file)))
}

/// The keys that are trusted: each given as itself, or as a file that has one a line.
pub(crate) fn trusted(given: &[Given]) -> anyhow::Result<TrustedKeys> {
    let mut keys = Vec::new();
    for one in given {
        if is_public_key(one.reveal()) {
            keys.push(one.reveal().to_owned());
            continue;
        }
        let text = read(one, "the trusted keys")?;
        let lines = text.lines().map(str::trim);
        keys.extend(
            lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned),
        );
    }
    Ok(TrustedKeys::new(keys)?)
}

fn is_public_key(text: &str) -> bool {
    text.len() == 56
        && text.starts_with('U')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn read(file: &Given, what: &str) -> anyhow::Result<Zeroizing<String>> {
    let path = Path::new(file.reveal());
    let cannot = || format!("cannot read {what} from {}", shown(file));
    let size = std::fs::metadata(path).with_context(cannot)?.len();
    if size > MAX_FILE_BYTES {
        let message = format!("{} has {size} bytes: no file of keys is that large", shown(file));
        return Err(UsageError(message).into());
    }
    std::fs::read_to_string(path).map(Zeroizing::new).with_context(cannot)
}

/// A file's name; what has no path's letters in it may be the key itself, in the wrong place.
fn shown(file: &Given) -> &str {
    let text = file.reveal();
    let is_path = text.contains(['/', '\\', '.']) && !text.contains(char::is_whitespace);
    if is_path { text } else { "the file that is named" }
}

/// Keys by which payloads are sealed.
#[derive(Debug, Args)]
pub(crate) struct SealArgs {
    #[command(subcommand)]
    command: SealCommand,
}

#[derive(Debug, Subcommand)]
enum SealCommand {
    /// Make a key: a line for the file of --seal-keys, where the first one seals and all open
    Keygen {
        /// What sealed jobs know the key by; default: made of the date
        #[arg(long)]
        id: Option<String>,
    },
}

/// Keys by which jobs are signed.
#[derive(Debug, Args)]
pub(crate) struct SignArgs {
    #[command(subcommand)]
    command: SignCommand,
}

#[derive(Debug, Subcommand)]
enum SignCommand {
    /// Make a key: a seed for the file of --sign-key, and its public half for workers' --require-signed
    Keygen,
}

pub(crate) fn seal(global: &Global, args: SealArgs) -> anyhow::Result<Exit> {
    let SealCommand::Keygen { id } = args.command;
    let key = SealKey::generate(id.unwrap_or_else(of_today))?;
    let line = key.reveal();
    if global.json {
        output::json(&json!({ "id": key.id(), "line": *line }))?;
    } else {
        output::line(&line)?;
    }
    Ok(Exit::Ok)
}

fn of_today() -> String {
    let letters: String = std::iter::repeat_with(fastrand::alphanumeric).take(4).collect();
    format!("{}-{}", chrono::Utc::now().format("%Y%m%d"), letters.to_lowercase())
}

pub(crate) fn sign(global: &Global, args: SignArgs) -> anyhow::Result<Exit> {
    let SignCommand::Keygen = args.command;
    let key = SigningKey::generate();
    let (seed, public) = (key.reveal(), key.public_key());
    if global.json {
        output::json(&json!({ "seed": *seed, "public": public }))?;
    } else {
        output::line(&format!("# public: {public}"))?;
        output::line(&seed)?;
        output::to_stderr(&format!("workers trust it by --require-signed {public}"));
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Given {
        text.parse().expect("anything is")
    }

    #[test]
    fn only_what_can_be_a_path_is_shown() {
        assert_eq!(shown(&given("keys/seal.txt")), "keys/seal.txt");
        for secret in ["k1 bm9uZQ./x", "SUAMADEUPSEED", "bm9uZS1hdC1hbGw"] {
            assert_eq!(shown(&given(secret)), "the file that is named", "{secret}");
            let error = read(&given(secret), "the keys").expect_err("no file");
            assert!(!format!("{error:?}").contains(secret), "{error:?}");
        }
    }
}

//! `tidemill nkeys`: keys for the users of a server's configuration, such as that of `deploy/nats`.
//!
//! A server knows only public keys. Each seed is a file of its own that nobody else can read, to be
//! handed to whom it belongs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use nkeys::KeyPair;
use serde_json::json;

use crate::cli::Global;
use crate::exit::Exit;
use crate::output;

/// What the public keys are written to, as variables of a server's configuration.
const PUBLIC: &str = "keys.conf";
/// How the name of a file with a seed ends.
const SEED: &str = "nk";

/// Make an nkey for each user: its seed in FOLDER/NAME.nk, for whom it belongs to, and the public keys
/// of all in FOLDER/keys.conf, for the server. Seeds that are there are kept.
#[derive(Debug, Args)]
pub(crate) struct NkeysArgs {
    /// Where the files are written
    folder: PathBuf,
    /// Names of the users
    #[arg(
        value_parser = name,
        default_values = [
            "worker", "operator", "provisioner", "producer", "mail", "observer", "other", "system",
        ]
    )]
    names: Vec<String>,
}

/// A name that can be a file's and, in capitals, a variable's.
fn name(text: &str) -> Result<String, String> {
    let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(is_good) {
        return Ok(text.to_owned());
    }
    Err("use lower case letters, digits and _, the first a letter".to_owned())
}

pub(crate) fn run(global: &Global, args: &NkeysArgs) -> anyhow::Result<Exit> {
    let folder = &args.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for name in &args.names {
        let file = folder.join(name).with_extension(SEED);
        let made = make(&file).with_context(|| format!("cannot write {}", file.display()))?;
        let what = if made { "made" } else { "kept" };
        if !global.json {
            output::line(&format!("{what} {}", file.display()))?;
        }
    }
    let keys = public_keys(folder)?;
    let file = folder.join(PUBLIC);
    fs::write(&file, variables(&keys))
        .with_context(|| format!("cannot write {}", file.display()))?;
    if global.json {
        output::json(&json!({ "folder": folder, "keys": keys }))?;
    } else {
        output::line(&format!("made {}", file.display()))?;
    }
    Ok(Exit::Ok)
}

/// Writes a new seed; `false` where there is one.
fn make(file: &Path) -> anyhow::Result<bool> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    writeln!(file, "{}", KeyPair::new_user().seed()?)?;
    Ok(true)
}

/// The public keys of all seeds in a folder, by their users.
fn public_keys(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut keys = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_stem().map(|name| name.to_string_lossy().into_owned()) else {
            continue;
        };
        if path.extension().is_none_or(|extension| extension != SEED) {
            continue;
        }
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read the seed in {}", path.display()))?;
        // The cause could quote the seed.
        let Ok(key) = KeyPair::from_seed(text.trim()) else {
            anyhow::bail!("{} holds no seed of an nkey (SU…)", path.display());
        };
        keys.insert(name, key.public_key());
    }
    Ok(keys)
}

fn variables(keys: &BTreeMap<String, String>) -> String {
    let mut text = "# Public keys of the users, made by `tidemill nkeys`.\n".to_owned();
    for (name, key) in keys {
        let _ = writeln!(text, "{}_NKEY = {key}", name.to_ascii_uppercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_a_file_and_of_a_variable() {
        for good in ["worker", "mail_2"] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in ["", "../worker", "Worker", "2mail", "a b", "a.nk"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}

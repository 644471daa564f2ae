//! Keys for the users of a server's configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nkeys::KeyPair;

use crate::support::{said, tidemill};

#[test]
fn each_user_gets_a_seed_of_its_own_and_the_server_all_public_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_string_lossy().into_owned();
    let made = said(tidemill(&["nkeys", &path]), "");
    assert_eq!(made.code, 0, "{made:?}");
    assert_eq!(made.out.matches("made ").count(), 9, "eight seeds and a list: {}", made.out);
    let seed = |name: &str| fs::read_to_string(folder.path().join(name)).expect("reads");
    let worker = seed("worker.nk");
    assert!(!made.out.contains(worker.trim()));
    let mode = fs::metadata(folder.path().join("worker.nk")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let public = KeyPair::from_seed(worker.trim()).expect("a seed").public_key();
    assert!(seed("keys.conf").contains(&format!("WORKER_NKEY = {public}\n")));

    // What is there stays, and one more comes to it.
    let more = said(tidemill(&["nkeys", &path, "worker", "billing"]), "");
    assert_eq!(more.code, 0, "{more:?}");
    assert!(more.out.contains("kept ") && seed("worker.nk") == worker, "{more:?}");
    let keys = seed("keys.conf");
    assert!(keys.contains("BILLING_NKEY = U") && keys.contains(&public), "{keys}");
}

#[test]
fn what_cannot_be_is_refused_without_showing_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_string_lossy().into_owned();
    let bad = said(tidemill(&["nkeys", &path, "../worker"]), "");
    assert_eq!(bad.code, 2, "{bad:?}");
    fs::write(folder.path().join("worker.nk"), "SUHUSH4711").expect("written");
    let broken = said(tidemill(&["nkeys", &path, "worker"]), "");
    assert_eq!(broken.code, 1, "{broken:?}");
    assert!(broken.err.contains("worker.nk holds no seed") && !broken.err.contains("HUSH"));
}

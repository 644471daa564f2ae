//! A disk that loses power: what nobody had synced is gone.
//!
//! It lives in memory, below a folder where the kernel mounts it (FUSE). The power of one server is cut
//! by killing it and then dropping from its disk what was not durable, so that nothing that it had
//! confirmed by then was confirmed with the help of what came after.
//!
//! Data is durable once its file was synced (`fsync`, or a write to a file that was opened with `O_SYNC`
//! or `O_DSYNC`). Names are [`Names::Journalled`] in the tests, as on the file systems that servers have:
//! an ext4 that is shut down without writing its log keeps, of a file that is made and synced, the name
//! and that of its new folder, without any sync of the folder; keeps of what happened to other names
//! before that sync all of it; keeps the name of a file that was not synced, empty; and forgets a removal
//! that nothing was synced after. It keeps one thing that is dropped here: the data of a file that takes
//! another's name.
//!
//! With [`Names::Loose`], which POSIX allows and those file systems do not do, nats-server 2.15.1 loses
//! what it has confirmed even where it syncs always: it syncs neither the folders of a stream that it
//! makes, so that all of that is gone, nor that of a block that it begins.
//!
//! Nothing becomes durable by itself. A real system also writes back what is 30 s old (5 s for names on
//! ext4), so that it loses at most as much as this one; a test that means a queue that has been there for
//! long says so by [`Disk::sync`].

mod content;
mod mount;
mod store;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use fuser::{BackgroundSession, Config, MountOption};

use self::mount::Mounted;
use self::store::Store;
pub(crate) use self::store::{Dropped, Names};
use super::skip;

/// A disk that is mounted somewhere; unmounted when it is dropped.
pub(crate) struct Disk {
    store: Arc<Mutex<Store>>,
    at: PathBuf,
    /// Ends the file system when it goes.
    _session: BackgroundSession,
}

impl Disk {
    /// Mounts an empty disk at a folder, which is made. `None`, after saying so, where this machine
    /// cannot.
    pub(crate) fn at(folder: &Path, names: Names) -> Option<Self> {
        std::fs::create_dir_all(folder).expect("a folder");
        let store = Arc::new(Mutex::new(Store::new(names)));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("tidemill-power".into())];
        match fuser::spawn_mount(Mounted::new(store.clone()), folder, &config) {
            Ok(session) => Some(Self { store, at: folder.to_owned(), _session: session }),
            Err(error) => {
                skip(&format!(
                    "a disk that loses power takes /dev/fuse, and root or fusermount3 (package \
                     fuse3): {error}"
                ));
                None
            }
        }
    }

    /// Takes away what nobody had synced. Who used it has to be gone.
    pub(crate) fn cut(&self) -> Dropped {
        self.store.lock().expect("not poisoned").cut()
    }

    /// Makes durable all that is there.
    pub(crate) fn sync(&self) {
        self.store.lock().expect("not poisoned").sync_all();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Even while somebody still ends who used it.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

//! What a disk holds, and what of it would be there after a power cut: pure.
//!
//! Written data is on the disk when its file was synced, and not before. For names (what is created,
//! renamed, removed, and to which length a file is cut) there are two opinions, see [`Names`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};

use super::content::{File, Written};

/// The number of a file or folder.
pub(crate) type Ino = u64;

pub(crate) const ROOT: Ino = 1;

/// What becomes of names that nobody synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// As a journal keeps them (ext4, XFS): in their order. Syncing a file makes durable what was done
    /// to its own name last and all that was done to any name before; what came later is lost. That is
    /// the least that both of them promise: ext4 writes its whole journal, and by itself every 5 s.
    Journalled,
    /// As POSIX has them: each is lost unless its folder was synced, whatever became of the others.
    Loose,
}

/// What is to be done to the durable names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Link { to: (Ino, OsString), ino: Ino },
    Unlink { from: (Ino, OsString), ino: Ino },
    Rename { from: (Ino, OsString), to: (Ino, OsString), ino: Ino },
    Resize { ino: Ino, length: usize },
}

impl Change {
    fn touches(&self, it: Ino) -> bool {
        match self {
            Self::Link { to, ino } => [to.0, *ino].contains(&it),
            Self::Unlink { from, ino } => [from.0, *ino].contains(&it),
            Self::Rename { from, to, ino } => [from.0, to.0, *ino].contains(&it),
            Self::Resize { ino, .. } => *ino == it,
        }
    }

    fn is_resize_of(&self, it: Ino) -> bool {
        matches!(self, Self::Resize { .. }) && self.touches(it)
    }
}

type Folder = BTreeMap<OsString, Ino>;

/// What a power cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Written and not synced.
    pub(crate) bytes: usize,
    /// Changes of names that were not durable.
    pub(crate) names: usize,
}

#[derive(Debug)]
pub(crate) struct Store {
    names: Names,
    folders: HashMap<Ino, Folder>,
    durable_folders: HashMap<Ino, Folder>,
    files: HashMap<Ino, File>,
    /// Changes of names that are not durable yet, in their order.
    journal: Vec<Change>,
    last: Ino,
}

/// What is looked for is not there, or something stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Missing,
    NotEmpty,
}

impl Store {
    pub(crate) fn new(names: Names) -> Self {
        let empty = HashMap::from([(ROOT, Folder::new())]);
        Self {
            names,
            folders: empty.clone(),
            durable_folders: empty,
            files: HashMap::new(),
            journal: Vec::new(),
            last: ROOT,
        }
    }

    pub(crate) fn find(&self, folder: Ino, name: &OsStr) -> Option<Ino> {
        self.folders.get(&folder)?.get(name).copied()
    }

    pub(crate) fn is_folder(&self, ino: Ino) -> bool {
        self.folders.contains_key(&ino)
    }

    /// The length of a file.
    pub(crate) fn length(&self, ino: Ino) -> Option<usize> {
        self.files.get(&ino).map(|file| file.live().len())
    }

    pub(crate) fn list(&self, folder: Ino) -> Vec<(OsString, Ino)> {
        let folder = self.folders.get(&folder).into_iter().flatten();
        folder.map(|(name, ino)| (name.clone(), *ino)).collect()
    }

    pub(crate) fn create(&mut self, folder: Ino, name: &OsStr) -> Option<Ino> {
        let ino = self.link(folder, name)?;
        self.files.insert(ino, File::default());
        Some(ino)
    }

    pub(crate) fn create_folder(&mut self, folder: Ino, name: &OsStr) -> Option<Ino> {
        let ino = self.link(folder, name)?;
        self.folders.insert(ino, Folder::new());
        Some(ino)
    }

    fn link(&mut self, folder: Ino, name: &OsStr) -> Option<Ino> {
        self.last += 1;
        let ino = self.last;
        self.folders.get_mut(&folder)?.insert(name.to_owned(), ino);
        self.journal.push(Change::Link { to: (folder, name.to_owned()), ino });
        Some(ino)
    }

    pub(crate) fn remove(&mut self, folder: Ino, name: &OsStr) -> Result<(), Refusal> {
        let ino = self.find(folder, name).ok_or(Refusal::Missing)?;
        if self.folders.get(&ino).is_some_and(|folder| !folder.is_empty()) {
            return Err(Refusal::NotEmpty);
        }
        self.folders.get_mut(&folder).ok_or(Refusal::Missing)?.remove(name);
        self.journal.push(Change::Unlink { from: (folder, name.to_owned()), ino });
        Ok(())
    }

    /// Whatever has the new name goes.
    pub(crate) fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Refusal> {
        let ino = self.find(from.0, from.1).ok_or(Refusal::Missing)?;
        let (from, to) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        let change = Change::Rename { from, to, ino };
        apply(&change, &mut self.folders);
        self.journal.push(change);
        Ok(())
    }

    pub(crate) fn read(&self, ino: Ino, at: usize, length: usize) -> Option<&[u8]> {
        let content = self.files.get(&ino)?.live();
        let from = at.min(content.len());
        Some(&content[from..(from + length).min(content.len())])
    }

    pub(crate) fn write(&mut self, ino: Ino, at: usize, bytes: &[u8]) -> Option<()> {
        self.files.get_mut(&ino)?.change(Written::Bytes { at, bytes: bytes.to_owned() });
        Some(())
    }

    pub(crate) fn resize(&mut self, ino: Ino, length: usize) -> Option<()> {
        self.files.get_mut(&ino)?.change(Written::Resize { length });
        self.journal.push(Change::Resize { ino, length });
        Some(())
    }

    /// Makes durable what syncing this file or folder does.
    pub(crate) fn sync(&mut self, ino: Ino) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.settle();
        }
        let last = self.journal.iter().rposition(|change| change.touches(ino));
        let is_folder = self.is_folder(ino);
        for (at, change) in std::mem::take(&mut self.journal).into_iter().enumerate() {
            let is_durable = match self.names {
                Names::Journalled => last.is_some_and(|last| at <= last),
                Names::Loose => change.is_resize_of(ino) || is_folder && change.touches(ino),
            };
            if is_durable {
                self.commit(&change);
            } else {
                self.journal.push(change);
            }
        }
    }

    /// Makes everything durable, as `sync` does.
    pub(crate) fn sync_all(&mut self) {
        for change in std::mem::take(&mut self.journal) {
            self.commit(&change);
        }
        self.files.values_mut().for_each(File::settle);
    }

    fn commit(&mut self, change: &Change) {
        if let Change::Resize { ino, length } = change {
            if let Some(file) = self.files.get_mut(ino) {
                file.resize_durably(*length);
            }
            return;
        }
        apply(change, &mut self.durable_folders);
    }

    /// Takes away all that is not durable.
    pub(crate) fn cut(&mut self) -> Dropped {
        let bytes = self.files.values_mut().map(File::cut).sum();
        let dropped = Dropped { bytes, names: self.journal.len() };
        self.journal.clear();
        let kept = self.reachable();
        self.files.retain(|ino, _| kept.contains(ino));
        self.durable_folders.retain(|ino, _| kept.contains(ino));
        self.folders = self.durable_folders.clone();
        dropped
    }

    fn reachable(&mut self) -> HashSet<Ino> {
        let mut kept = HashSet::from([ROOT]);
        let mut next = vec![ROOT];
        while let Some(ino) = next.pop() {
            if self.files.contains_key(&ino) {
                continue;
            }
            // A folder is there when its name is, however empty.
            let folder = self.durable_folders.entry(ino).or_default();
            next.extend(folder.values().copied().filter(|ino| kept.insert(*ino)));
        }
        kept
    }
}

fn apply(change: &Change, folders: &mut HashMap<Ino, Folder>) {
    match change {
        Change::Link { to, ino } => {
            folders.entry(to.0).or_default().insert(to.1.clone(), *ino);
        }
        Change::Unlink { from, ino } => take_away(folders, from, *ino),
        Change::Rename { from, to, ino } => {
            take_away(folders, from, *ino);
            folders.entry(to.0).or_default().insert(to.1.clone(), *ino);
        }
        Change::Resize { .. } => {}
    }
}

/// Unless the name is another's by now, as may be where changes are not kept in order.
fn take_away(folders: &mut HashMap<Ino, Folder>, (folder, name): &(Ino, OsString), ino: Ino) {
    let folder = folders.entry(*folder).or_default();
    if folder.get(name) == Some(&ino) {
        folder.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    fn store(names: Names) -> (Store, Ino, Ino) {
        let mut store = Store::new(names);
        let folder = store.create_folder(ROOT, name("folder")).expect("there is a root");
        let file = store.create(folder, name("file")).expect("there is a folder");
        (store, folder, file)
    }

    #[test]
    fn data_is_lost_unless_its_file_was_synced() {
        let (mut store, folder, file) = store(Names::Journalled);
        store.write(file, 0, b"one").expect("there");
        store.sync(file);
        store.write(file, 3, b" two").expect("there");
        assert_eq!(store.read(file, 0, 99), Some(&b"one two"[..]));
        assert_eq!(store.cut(), Dropped { bytes: 4, names: 0 });
        assert_eq!(store.find(folder, name("file")), Some(file));
        assert_eq!(store.read(file, 0, 99), Some(&b"one"[..]));
    }

    #[test]
    fn a_journal_keeps_the_order_of_names() {
        let (mut store, folder, file) = store(Names::Journalled);
        store.sync(file);
        let other = store.create(folder, name("new")).expect("there is a folder");
        store.write(other, 0, b"new").expect("there");
        store.rename((folder, name("new")), (folder, name("file"))).expect("there");
        let third = store.create(folder, name("third")).expect("there is a folder");
        // Of the third the name; of what went before it the names as well, but no data.
        store.sync(third);
        store.remove(folder, name("third")).expect("there");
        assert_eq!(store.cut(), Dropped { bytes: 3, names: 1 });
        assert_eq!(store.find(folder, name("file")), Some(other));
        assert_eq!(store.length(other), Some(0));
        assert_eq!(store.find(folder, name("third")), Some(third));
    }

    #[test]
    fn loose_names_are_lost_unless_their_folder_was_synced() {
        let (mut store, folder, file) = store(Names::Loose);
        store.write(file, 0, b"one").expect("there");
        store.sync(file);
        store.sync(ROOT);
        store.cut();
        assert_eq!(store.list(folder), []);
        let file = store.create(folder, name("file")).expect("there is a folder");
        store.sync(folder);
        store.cut();
        assert_eq!(store.find(folder, name("file")), Some(file));
    }

    #[test]
    fn a_file_that_is_cut_short_and_written_anew_is_whole_when_it_is_synced() {
        for names in [Names::Journalled, Names::Loose] {
            let (mut store, folder, file) = store(names);
            store.write(file, 0, b"a long one").expect("there");
            store.resize(file, 0).expect("there");
            store.write(file, 0, b"short").expect("there");
            let other = store.create(folder, name("other")).expect("there is a folder");
            store.sync(other);
            store.sync(file);
            store.sync(folder);
            store.sync(ROOT);
            store.cut();
            assert_eq!(store.read(file, 0, 99), Some(&b"short"[..]), "{names:?}");
        }
    }

    #[test]
    fn what_was_cut_short_and_written_anew_may_be_empty() {
        let (mut store, folder, file) = store(Names::Journalled);
        store.write(file, 0, b"one").expect("there");
        store.sync(file);
        store.resize(file, 0).expect("there");
        store.write(file, 0, b"two").expect("there");
        let other = store.create(folder, name("other")).expect("there is a folder");
        store.sync(other);
        store.cut();
        assert_eq!(store.length(file), Some(0));
    }

    #[test]
    fn a_folder_is_removed_when_it_is_empty() {
        let (mut store, folder, _) = store(Names::Journalled);
        assert_eq!(store.remove(ROOT, name("folder")), Err(Refusal::NotEmpty));
        store.remove(folder, name("file")).expect("there");
        store.remove(ROOT, name("folder")).expect("empty");
        store.sync_all();
        store.cut();
        assert_eq!((store.list(ROOT), store.files.len()), (vec![], 0));
    }
}

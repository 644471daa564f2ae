//! The disk as the kernel sees it.
//!
//! Nothing is kept in the kernel's caches: what is read after a cut is what the disk has.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;

use super::store::{Ino, Refusal, Store};

/// Opened so that each write is synced (`O_SYNC`, `O_DSYNC`), or not.
const SYNCED: FileHandle = FileHandle(1);
const PLAIN: FileHandle = FileHandle(0);

const BLOCK_BYTES: u32 = 4096;

/// As much as any store of a test could want: 4 GiB.
const BLOCKS: u64 = 1 << 20;

/// No answer may be kept.
const TTL: Duration = Duration::ZERO;

/// A file system over a store that somebody else holds as well.
pub(super) struct Mounted {
    store: Arc<Mutex<Store>>,
    /// What is in folders that are being listed, as it was when they were opened.
    listed: Mutex<HashMap<u64, Vec<Listed>>>,
    last: AtomicU64,
}

/// What is in a folder.
type Listed = (OsString, Ino, FileType);

impl Mounted {
    pub(super) fn new(store: Arc<Mutex<Store>>) -> Self {
        Self { store, listed: Mutex::default(), last: AtomicU64::new(0) }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("not poisoned")
    }
}

fn kind(store: &Store, ino: Ino) -> FileType {
    if store.is_folder(ino) { FileType::Directory } else { FileType::RegularFile }
}

fn attributes(store: &Store, ino: Ino) -> Option<FileAttr> {
    let (kind, size) = (kind(store, ino), store.length(ino));
    if kind == FileType::RegularFile && size.is_none() {
        return None;
    }
    let size = size.unwrap_or_default() as u64;
    let now = SystemTime::now();
    Some(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm: if kind == FileType::Directory { 0o700 } else { 0o600 },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    })
}

fn handle(flags: i32) -> FileHandle {
    // O_SYNC holds the bit of O_DSYNC.
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    if flags.contains(OFlags::DSYNC) { SYNCED } else { PLAIN }
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).expect("a length that fits into memory")
}

fn entry(store: &Store, ino: Option<Ino>, reply: ReplyEntry) {
    match ino.and_then(|ino| attributes(store, ino)) {
        Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        None => reply.error(Errno::ENOENT),
    }
}

fn done(result: Result<(), Refusal>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(Refusal::Missing) => reply.error(Errno::ENOENT),
        Err(Refusal::NotEmpty) => reply.error(Errno::ENOTEMPTY),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let store = self.store();
        entry(&store, store.find(parent.0, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(&self.store(), ino.0) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut store = self.store();
        let resized = size.map(|size| store.resize(ino.0, usize_of(size)));
        match attributes(&store, ino.0).filter(|_| resized != Some(None)) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let mut store = self.store();
        if store.find(parent.0, name).is_some() {
            return reply.error(Errno::EEXIST);
        }
        let made = store.create_folder(parent.0, name);
        entry(&store, made, reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mut store = self.store();
        let ino = store.find(parent.0, name).or_else(|| store.create(parent.0, name));
        match ino.and_then(|ino| attributes(&store, ino)) {
            Some(attributes) => {
                let (handle, direct) = (handle(flags), FopenFlags::FOPEN_DIRECT_IO);
                reply.created(&TTL, &attributes, Generation(0), handle, direct);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.store().remove(parent.0, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.store().remove(parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        done(self.store().rename((parent.0, name), (newparent.0, newname)), reply);
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(handle(flags.0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.store().read(ino.0, usize_of(offset), size as usize) {
            Some(bytes) => reply.data(bytes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut store = self.store();
        if store.write(ino.0, usize_of(offset), bytes).is_none() {
            return reply.error(Errno::ENOENT);
        }
        if handle == SYNCED {
            store.sync(ino.0);
        }
        reply.written(u32::try_from(bytes.len()).expect("less than was asked for"));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // closing a file syncs nothing
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.store().sync(ino.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.store().sync(ino.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let store = self.store();
        let itself = [".", ".."].map(|name| (name.into(), ino.0, FileType::Directory));
        let inside = store.list(ino.0).into_iter();
        let inside = inside.map(|(name, inside)| (name, inside, kind(&store, inside)));
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let all = itself.into_iter().chain(inside).collect();
        self.listed.lock().expect("not poisoned").insert(number, all);
        reply.opened(FileHandle(number), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.listed.lock().expect("not poisoned");
        let all = listed.get(&handle.0).into_iter().flatten();
        for (next, (name, ino, kind)) in (1..).zip(all).skip(usize_of(offset)) {
            if reply.add(INodeNo(*ino), next, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listed.lock().expect("not poisoned").remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}

//! What a file holds, and what it would hold after a power cut.

/// A file as it is, and as it would be.
#[derive(Debug, Default)]
pub(super) struct File {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// In their order.
    unsynced: Vec<Written>,
}

#[derive(Debug)]
pub(super) enum Written {
    Bytes { at: usize, bytes: Vec<u8> },
    Resize { length: usize },
}

impl Written {
    fn onto(&self, content: &mut Vec<u8>) {
        match self {
            Self::Bytes { at, bytes } => {
                let end = at + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*at..end].copy_from_slice(bytes);
            }
            Self::Resize { length } => content.resize(*length, 0),
        }
    }
}

impl File {
    pub(super) fn live(&self) -> &[u8] {
        &self.live
    }

    pub(super) fn change(&mut self, written: Written) {
        written.onto(&mut self.live);
        self.unsynced.push(written);
    }

    pub(super) fn settle(&mut self) {
        for written in self.unsynced.drain(..) {
            written.onto(&mut self.durable);
        }
    }

    /// How many bytes are lost.
    pub(super) fn cut(&mut self) -> usize {
        let lost = self.unsynced.drain(..).map(|written| match written {
            Written::Bytes { bytes, .. } => bytes.len(),
            Written::Resize { .. } => 0,
        });
        let lost = lost.sum();
        self.live.clone_from(&self.durable);
        lost
    }

    /// A change of length that is durable before what was written ahead of it. It stays among what is not
    /// synced as well, so that syncing takes the same way as writing did.
    pub(super) fn resize_durably(&mut self, length: usize) {
        if !self.unsynced.is_empty() {
            self.durable.resize(length, 0);
        }
    }
}

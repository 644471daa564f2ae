//! Connecting, with success or without.

use std::path::{Path, PathBuf};

use tidemill::{Client, ConnectOptions, Error, NewJob};

/// Options for the server at `url`.
pub(crate) fn to(url: &str) -> ConnectOptions {
    ConnectOptions::new(url).expect("a URL")
}

/// Connects and has a job stored.
pub(crate) async fn works(options: ConnectOptions) {
    let shown = format!("{options:?}");
    let client =
        Client::connect(options).await.unwrap_or_else(|error| panic!("{shown}: {error:?}"));
    client.enqueue(NewJob::raw("any", "{}")).await.expect("stored");
}

/// Why it does not connect: the whole chain of errors in one line.
pub(crate) async fn refused(options: ConnectOptions) -> (Error, String) {
    let error = Client::connect(options).await.expect_err("it must not connect");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(because) = cause {
        text = format!("{text}: {because}");
        cause = because.source();
    }
    (error, text)
}

/// A folder for the files of one test.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, making folders as needed.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, text).expect("written");
        path
    }
}

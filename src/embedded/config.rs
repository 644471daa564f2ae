//! The server's configuration, as text.
//!
//! It listens on loopback only, and every bound is written out: left alone, the server would take
//! most of the disk and a third of the memory.

use std::fmt::Write as _;
use std::path::Path;

use super::folder::Folder;
use crate::error::{Error, Result};

const MAX_FILE_STORE: u64 = 64 << 30;
const MAX_MEMORY_STORE: u64 = 256 << 20;
const LOG_BYTES: u64 = 16 << 20;
const LOG_FILES: u32 = 3;

/// What differs between one private server and another.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// The server's name, of which a cluster knows each once.
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) storage: Storage,
    /// In bytes. A running server does not take a lower one.
    pub(super) max_file_store: u64,
    pub(super) cluster: Option<Cluster>,
    /// Appended as it is.
    pub(super) extra: String,
}

/// Whether the server has JetStream.
#[derive(Clone, Debug)]
pub(super) enum Storage {
    /// It has, with these settings besides folder and bounds.
    JetStream {
        extra: String,
    },
    Off,
}

/// How a server finds the others of its cluster.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) port: u16,
    /// The cluster ports of all its servers.
    pub(super) routes: Vec<u16>,
}

impl Config {
    /// The whole text, for a server in `folder`.
    pub(super) fn text(&self, folder: &Folder) -> Result<String> {
        let mut text = format!(
            "server_name: {name}\n\
             listen: \"127.0.0.1:{port}\"\n\
             http: \"127.0.0.1:-1\"\n\
             ports_file_dir: {folder_path}\n\
             pid_file: {pid_file}\n\
             log_file: {log_file}\n\
             logfile_size_limit: {LOG_BYTES}\n\
             logfile_max_num: {LOG_FILES}\n\
             ping_interval: \"10s\"\n",
            name = quoted(&self.name),
            port = self.port,
            folder_path = quoted_path(folder.path())?,
            pid_file = quoted_path(&folder.pid_file())?,
            log_file = quoted_path(&folder.log_file())?,
        );
        self.render_storage(&mut text, folder)?;
        self.render_cluster(&mut text);
        text.push_str(&self.extra);
        text.push('\n');
        Ok(text)
    }

    fn render_storage(&self, text: &mut String, folder: &Folder) -> Result<()> {
        if let Storage::JetStream { extra } = &self.storage {
            let max_file = self.max_file_store;
            let store = quoted_path(folder.path())?;
            let _ = write!(
                text,
                "jetstream {{\n  \
                   store_dir: {store}\n  \
                   max_file_store: {max_file}\n  \
                   max_memory_store: {MAX_MEMORY_STORE}\n  \
                   {extra}\n\
                 }}\n"
            );
        }
        Ok(())
    }

    fn render_cluster(&self, text: &mut String) {
        if let Some(cluster) = &self.cluster {
            let routes: Vec<_> =
                cluster.routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
            let _ = write!(
                text,
                "cluster {{\n  \
                   name: tidemill\n  \
                   listen: \"127.0.0.1:{port}\"\n  \
                   routes: [{routes}]\n\
                 }}\n",
                port = cluster.port,
                routes = routes.join(", "),
            );
        }
    }
}

/// Half of what the folder could hold, so that a runaway queue does not fill the disk.
pub(super) fn max_file_store(capacity: u64) -> u64 {
    (capacity / 2).min(MAX_FILE_STORE)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn quoted_path(path: &Path) -> Result<String> {
    path.to_str().map(quoted).ok_or_else(|| {
        Error::invalid(format!("nats-server needs a folder named in UTF-8, not {}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            name: "n1".into(),
            port: 4222,
            storage: Storage::JetStream { extra: "sync_interval: always".into() },
            max_file_store: 1000,
            cluster: None,
            extra: "max_payload: 8MB".into(),
        }
    }

    #[test]
    fn a_server_listens_on_loopback_within_bounds() -> anyhow::Result<()> {
        let folder = Folder::temporary()?;
        let text = config().text(&folder)?;
        assert!(text.contains("\nlisten: \"127.0.0.1:4222\"\nhttp: \"127.0.0.1:-1\"\n"), "{text}");
        assert!(text.contains("max_file_store: 1000\n  max_memory_store: 268435456\n"), "{text}");
        assert!(text.contains("\n  sync_interval: always\n}\n"), "{text}");
        assert!(text.ends_with("\nmax_payload: 8MB\n"), "{text}");
        assert!(!text.contains("cluster"), "{text}");
        Ok(())
    }

    #[test]
    fn jetstream_can_be_off() -> anyhow::Result<()> {
        let config = Config { storage: Storage::Off, ..config() };
        assert!(!config.text(&Folder::temporary()?)?.contains("jetstream"));
        Ok(())
    }

    #[test]
    fn a_cluster_has_all_routes() -> anyhow::Result<()> {
        let cluster = Some(Cluster { port: 1, routes: vec![1, 2] });
        let text = Config { cluster, ..config() }.text(&Folder::temporary()?)?;
        let routes = "listen: \"127.0.0.1:1\"\n  \
                      routes: [\"nats://127.0.0.1:1\", \"nats://127.0.0.1:2\"]\n";
        assert!(text.contains(routes), "{text}");
        Ok(())
    }

    #[test]
    fn the_file_store_is_bounded_by_disk_and_by_number() {
        assert_eq!(max_file_store(10 << 30), 5 << 30);
        assert_eq!(max_file_store(1 << 40), 64 << 30);
    }

    #[test]
    fn quotes_are_escaped() {
        assert_eq!(quoted(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}

//! The configuration that a private server runs with, and the file that tells its ports.

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

/// The most that a private server may store on disk, in bytes, where the disk is large.
const MAX_FILE_STORE: u64 = 64 * 1024 * 1024 * 1024;

/// What a private server may hold in memory streams.
const MAX_MEMORY_STORE: u64 = 1024 * 1024 * 1024;

/// What shapes a server's configuration.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    /// -1 for any free port.
    pub(super) port: i32,
    pub(super) jetstream: bool,
    /// Bytes free on the disk of the data folder.
    pub(super) free_disk: u64,
    /// More of the server's own configuration language.
    pub(super) more: String,
}

/// The text of the configuration file for a data folder.
pub(super) fn render(settings: &Settings, folder: &Path) -> String {
    let Settings { name, port, jetstream, free_disk, more } = settings;
    let folder = folder.display();
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "server_name: {name:?}\n\
         listen: \"127.0.0.1:{port}\"\n\
         http: \"127.0.0.1:-1\"\n\
         ports_file_dir: \"{folder}\"\n\
         pid_file: \"{folder}/nats-server.pid\"\n\
         log_file: \"{folder}/nats-server.log\"\n\
         ping_interval: \"10s\"\n"
    );
    if *jetstream {
        let max_file_store = MAX_FILE_STORE.min(free_disk / 2);
        let _ = write!(
            text,
            "jetstream {{\n  store_dir: \"{folder}\"\n  max_file_store: {max_file_store}\n  \
             max_memory_store: {MAX_MEMORY_STORE}\n}}\n"
        );
    }
    text.push_str(more);
    text.push('\n');
    text
}

/// Where a running server can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) client: String,
    pub(super) monitor: Option<String>,
}

/// Reads the file that the server writes; `None` while it is half written.
pub(super) fn read_ports(text: &str) -> Option<Ports> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        nats: Vec<String>,
        #[serde(default)]
        tls: Vec<String>,
        #[serde(default)]
        monitoring: Vec<String>,
    }
    let file: File = serde_json::from_str(text).ok()?;
    let client = file.nats.into_iter().chain(file.tls).next()?;
    Some(Ports { client, monitor: file.monitoring.into_iter().next() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_listens_on_loopback_only_and_is_bounded() {
        let settings = Settings {
            name: "n".into(),
            port: -1,
            jetstream: true,
            free_disk: 1000,
            more: "max_payload: 1MB".into(),
        };
        let text = render(&settings, Path::new("/data"));
        assert!(text.contains("listen: \"127.0.0.1:-1\""));
        assert!(text.contains("max_file_store: 500\n"));
        assert!(text.ends_with("max_payload: 1MB\n"));
        let off = render(&Settings { jetstream: false, ..settings }, Path::new("/data"));
        assert!(!off.contains("jetstream"));
    }

    #[test]
    fn ports_are_read_once_they_are_whole() {
        let whole = r#"{"nats":["nats://127.0.0.1:4333"],"monitoring":["http://127.0.0.1:8333"]}"#;
        let ports = read_ports(whole).expect("whole");
        assert_eq!(ports.client, "nats://127.0.0.1:4333");
        assert_eq!(ports.monitor.as_deref(), Some("http://127.0.0.1:8333"));
        assert_eq!(read_ports(&whole[..20]), None);
        assert_eq!(read_ports("{}"), None);
    }
}

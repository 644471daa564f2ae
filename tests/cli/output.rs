//! Output as programs and people expect it: JSON, colours, pipes, help.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{Mill, said, tidemill};

#[tokio::test]
async fn errors_in_json_go_to_standard_error() {
    let mill = Mill::start().await;
    mill.ok(&["setup"]);
    let said = mill.run(&["dead", "show", "nobody", "--json"]);
    assert_eq!((said.code, said.out.as_str()), (3, ""), "{said:?}");
    let told: serde_json::Value = serde_json::from_str(said.err.trim()).expect("one document");
    assert_eq!(told["error"]["code"], "not_found");
    assert!(told["error"]["message"].as_str().expect("text").contains("nobody"));
}

#[tokio::test]
async fn without_a_terminal_nothing_is_coloured() {
    let mill = Mill::start().await;
    mill.ok(&["setup"]);
    for arguments in [&["dead", "ls"][..], &["dead", "show", "x"], &["--help"], &["no-such"]] {
        let said = mill.run(arguments);
        assert!(!format!("{}{}", said.out, said.err).contains('\u{1b}'), "{said:?}");
    }
    let mut forced = mill.command(&["dead", "show", "x"]);
    forced.env("CLICOLOR_FORCE", "1");
    assert!(said(forced, "").err.contains('\u{1b}'), "a person may ask for colours");
    let mut declined = mill.command(&["dead", "show", "x"]);
    declined.env("NO_COLOR", "1");
    assert!(!said(declined, "").err.contains('\u{1b}'));
}

#[tokio::test]
async fn a_reader_that_leaves_ends_it_quietly() {
    let mill = Mill::start().await;
    let _worker = mill.work(&["--exec", "any=true"]);
    mill.ok(&["enqueue", "default", "any", "--count", "300"]);
    let mut child = mill
        .command(&["results", "watch", "--since", "1h"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    let mut reader = BufReader::with_capacity(16, child.stdout.take().expect("piped"));
    reader.read_line(&mut line).expect("a line");
    assert!(line.starts_with("done"), "{line}");
    drop(reader);
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn help_is_there_for_everything_and_a_mistake_is_usage() {
    let top = said(tidemill(&["--help"]), "");
    assert_eq!(top.code, 0);
    assert!(
        top.out.contains("  124  waited too long") && top.out.contains("nats pub"),
        "{}",
        top.out
    );
    let commands: [&[&str]; 15] = [
        &["job", "get"],
        &["job", "ls"],
        &["job", "cancel"],
        &["demo"],
        &["dev"],
        &["setup"],
        &["enqueue"],
        &["work"],
        &["results", "watch"],
        &["results", "get"],
        &["dead", "ls"],
        &["dead", "show"],
        &["dead", "retry"],
        &["dead", "discard"],
        &["results"],
    ];
    for command in commands {
        let help = said(tidemill(&[command, &["--help"]].concat()), "");
        assert_eq!(help.code, 0, "{command:?}");
        assert!(help.out.contains("Usage: tidemill"), "{command:?}: {}", help.out);
        let wrong = said(tidemill(&[command, &["--no-such-flag"]].concat()), "");
        assert_eq!(wrong.code, 2, "{command:?}: {wrong:?}");
    }
    assert_eq!(said(tidemill(&[]), "").code, 2);
    assert!(said(tidemill(&["--version"]), "").out.starts_with("tidemill "));
}

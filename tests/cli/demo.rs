//! `tidemill demo` and `tidemill dev`, which bring their own broker.

use std::net::TcpListener;

use rustix::process::{Pid, Signal, test_kill_process};

use crate::support::{Running, documents, eventually, said, tidemill};

#[test]
fn the_demo_accounts_for_every_job() {
    let plain = said(tidemill(&["demo", "--jobs", "400"]), "");
    assert_eq!(plain.code, 0, "{plain:?}");
    assert!(plain.out.contains("Every one of 400 jobs is accounted for"), "{plain:?}");
    assert!(plain.err.contains("nats-server 2."), "{plain:?}");
    assert!(!plain.err.contains("WARN") && !plain.err.contains('\u{1b}'), "{plain:?}");
    let json = said(tidemill(&["demo", "--jobs", "2000", "--json", "--quiet"]), "");
    assert_eq!((json.code, json.err.as_str()), (0, ""), "{json:?}");
    let [told] = &*documents(&json.out) else { panic!("{json:?}") };
    let number = |name: &str| told[name].as_u64().expect(name);
    assert_eq!(number("done") + number("buried"), 2000);
    assert_eq!(number("buried"), number("dead_letters"));
    assert!(number("retried") > number("buried") && number("buried") > 0, "{told}");
    let lanes = told["lanes"].as_array().expect("a list");
    let sum = |name: &str| lanes.iter().map(|lane| lane[name].as_f64().expect(name)).sum::<f64>();
    assert!((sum("share") - 1.0).abs() < 1e-6 && (sum("jobs") - 2000.0).abs() < 1e-6, "{told}");
}

#[test]
fn an_interrupted_demo_ends_what_it_began() {
    let mut demo = Running::start(tidemill(&["demo", "--jobs", "50000"]));
    demo.hears("takes them weighted-first");
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().code(), Some(130), "{}", demo.heard());
    assert!(!demo.heard().contains("accounted for"), "{}", demo.heard());
}

#[test]
fn dev_takes_the_next_port_works_jobs_and_leaves_nothing_behind() {
    // Somebody has the port that is asked for.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let arguments = ["dev", "--port", &port, "--exec", "greet=sed s/name/hello/", "--json"];
    let mut dev = Running::start(tidemill(&arguments));
    let line = dev.hears("}");
    let told: serde_json::Value =
        serde_json::from_str(line.lines().last().expect("a line")).expect("JSON");
    let url = told["url"].as_str().expect("text").to_owned();
    assert!(!url.ends_with(&format!(":{port}")), "{url}");
    let at = |arguments: &[&str]| {
        let mut command = tidemill(arguments);
        command.env("NATS_URL", &url);
        said(command, "")
    };
    let greeted = at(&["enqueue", "default", "greet", r#"{"name":"tide"}"#, "--wait", "20s"]);
    assert!(greeted.out.contains(r#"-> {"hello":"tide"}"#), "{greeted:?}");
    let echoed = at(&["enqueue", "default", "echo", "[1]", "--wait", "20s"]);
    assert!(echoed.out.contains("-> [1]"), "{echoed:?}");
    let server = told["nats_server_pid"].as_i64().and_then(|id| i32::try_from(id).ok());
    let server = server.and_then(Pid::from_raw).expect("an id");
    let folder = told["data"].as_str().expect("text").to_owned();
    dev.signal(Signal::INT);
    assert_eq!(dev.ended().code(), Some(0), "{}", dev.heard());
    assert!(!dev.heard().contains("WARN"), "{}", dev.heard());
    eventually("the server's end", || test_kill_process(server).is_err().then_some(()));
    assert!(!std::path::Path::new(&folder).exists(), "a temporary folder goes too");
}

#[test]
fn dev_keeps_jobs_in_a_folder_if_told_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_string_lossy().into_owned();
    let enqueue = |url: &str| {
        let mut command = tidemill(&["enqueue", "default", "later", "[2]", "--id", "kept"]);
        command.env("NATS_URL", url);
        assert_eq!(said(command, "").code, 0);
    };
    let start = |exec: &str| {
        let dev =
            Running::start(tidemill(&["dev", "--port", "0", "--data", &path, "--exec", exec]));
        let heard = dev.hears("export NATS_URL=");
        let url = heard.split("NATS_URL=").nth(1).and_then(|rest| rest.lines().next());
        (dev, url.expect("a URL").to_owned())
    };
    let (dev, url) = start("other=true");
    enqueue(&url);
    dev.terminate();
    let (dev, url) = start("later=cat");
    let got = eventually("the job that was kept", || {
        let mut command = tidemill(&["results", "get", "kept"]);
        command.env("NATS_URL", &url);
        let said = said(command, "");
        (said.code == 0).then_some(said.out)
    });
    assert!(got.contains("-> [2]"), "{got}");
    dev.terminate();
}

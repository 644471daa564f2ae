//! `--http`: web hooks as handlers.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::Mill;

/// A web service: the path says how it answers, the first time it is asked for a job.
const SERVICE: &str = r#"
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Hook(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        how = self.path.strip("/")
        first = self.headers["Tidemill-Id"] not in seen
        seen.add(self.headers["Tidemill-Id"])
        status, headers, answer = 200, {}, {
            "got": json.loads(body), "type": self.headers["Content-Type"],
            "attempt": self.headers["Tidemill-Attempt"], "kind": self.headers["Tidemill-Kind"],
        }
        if how in ("429", "503") and first:
            status, headers = int(how), {"Retry-After": "1"}
        elif how == "500" and first:
            status = 500
        elif how in ("422", "404"):
            status = int(how)
        text = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *rest):
        pass

seen = set()
server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
print(server.server_port, flush=True)
server.serve_forever()
"#;

struct Service {
    process: Child,
    port: u16,
}

impl Service {
    fn start() -> Self {
        let mut process = Command::new("python3")
            .args(["-c", SERVICE])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        Self { process, port: line.trim().parse().expect("a port") }
    }

    fn hook(&self, kind: &str, path: &str) -> String {
        format!("{kind}=http://127.0.0.1:{}/{path}", self.port)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn answers_decide() {
    let mill = Mill::start().await;
    let service = Service::start();
    let kinds = ["200", "429", "503", "500", "422", "404"];
    let mut arguments = vec!["--backoff".to_owned(), "fixed:50".to_owned()];
    for kind in kinds {
        arguments.extend(["--http".to_owned(), service.hook(kind, kind)]);
    }
    // A port where nobody listens, since whoever had it is gone.
    let gone = Service::start();
    arguments.extend(["--http".to_owned(), gone.hook("refused", "")]);
    drop(gone);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _worker = mill.work(&arguments);
    let work_off = |kind: &str, options: &[&str]| -> Value {
        let enqueue = ["enqueue", "default", kind, r#"{"n":3}"#, "--wait", "20s", "--json"];
        let said = mill.run(&[&enqueue, options].concat());
        serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"))
    };

    let done = work_off("200", &[]);
    let answer =
        json!({ "got": {"n": 3}, "type": "application/json", "attempt": "1", "kind": "200" });
    assert_eq!((&done["status"], &done["result"]), (&json!("done"), &answer));
    for snoozed in ["429", "503"] {
        let started = Instant::now();
        let done = work_off(snoozed, &["--max-retries", "0"]);
        assert_eq!((&done["status"], &done["attempt"]), (&json!("done"), &json!(1)), "{done}");
        assert!(started.elapsed().as_millis() >= 900, "{snoozed} after {:?}", started.elapsed());
    }
    let retried = work_off("500", &[]);
    assert_eq!((&retried["status"], &retried["attempt"]), (&json!("done"), &json!(2)), "{retried}");
    for buried in ["422", "404"] {
        let dead = work_off(buried, &[]);
        assert_eq!((&dead["status"], &dead["attempt"]), (&json!("dead"), &json!(1)), "{dead}");
        let error = dead["error"]["message"].as_str().expect("text");
        assert!(error.starts_with(buried) && error.contains("got"), "{error}");
    }
    let refused = work_off("refused", &["--max-retries", "1"]);
    assert_eq!((&refused["status"], &refused["attempt"]), (&json!("dead"), &json!(2)), "{refused}");
    assert_eq!(refused["reason"], "attempts_exhausted");
}

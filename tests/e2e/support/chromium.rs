//! A headless Chromium, driven by its DevTools protocol over a WebSocket. `scripts/test.sh` installs it.

use super::gateway::collect;
use super::lock;
use super::runtime::new_mark;
use super::wait::within;
use serde_json::{Value, json};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

/// One window. Closed when dropped.
pub struct Chromium {
    child: Child,
    dir: PathBuf,
    reader: Option<JoinHandle<()>>,
    socket: WebSocket<TcpStream>,
    session: String,
    last_id: u64,
    /// What the page said in its console, and what it was kept from.
    pub said: Vec<Value>,
}

/// A browser may take its time, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(30);

impl Chromium {
    #[track_caller]
    pub fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("gateway-e2e-chromium-{}", new_mark()));
        fs::create_dir_all(&dir).expect("a folder can be made");
        let mut child = Command::new("chromium")
            .args([
                "--headless=new",
                "--no-sandbox", // tests run as root, and the page is ours
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--no-default-browser-check",
                // It speaks with the gateway under test, and with nobody else.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--remote-debugging-port=0",
                "--window-size=1280,2000",
            ])
            .arg(format!("--user-data-dir={}", dir.display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the test needs the chromium command (apt-get install chromium)");
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let stderr = child.stderr.take().expect("it is piped");
        let reader = collect(stderr, &lines);
        let address = within(PATIENCE, || {
            let lines = lock(&lines);
            let listens =
                |line: &String| Some(line.strip_prefix("DevTools listening on ")?.to_owned());
            lines.iter().find_map(listens)
        });
        let address = address.unwrap_or_else(|| {
            let _ = child.kill();
            panic!("chromium does not begin: {:?}", lock(&lines))
        });
        let socket = connect(&address);
        let mut this = Self {
            child,
            dir,
            reader: Some(reader),
            socket,
            session: String::new(),
            last_id: 0,
            said: Vec::new(),
        };
        let target = this.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = this.call("Target.attachToTarget", target);
        this.session = attached["sessionId"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            this.call(&format!("{domain}.enable"), json!({}));
        }
        this
    }

    #[track_caller]
    pub fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        self.wait("document.readyState === 'complete'");
    }

    /// The value of an expression, of which a promise is awaited.
    #[track_caller]
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let result = self.call(
            "Runtime.evaluate",
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true }),
        );
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn wait(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        let truth = format!("Boolean({expression})");
        while self.evaluate(&truth) != true {
            if Instant::now() >= deadline {
                let page = self.evaluate("document.body.innerText.slice(0, 3000)");
                panic!("{expression} is not so; {page}; {:?}", self.said);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        let sent = self.socket.send(Message::text(message.to_string()));
        sent.expect("the browser listens");
        loop {
            let read = self.socket.read();
            let message = read.unwrap_or_else(|error| panic!("{method} has no answer: {error}"));
            let Message::Text(text) = message else {
                continue;
            };
            let value: Value = serde_json::from_str(&text).expect("the browser speaks JSON");
            if value["id"] == id {
                assert!(value["error"].is_null(), "{method}: {}", value["error"]);
                return value["result"].clone();
            }
            let event = value["method"].as_str().unwrap_or_default();
            if matches!(event, "Log.entryAdded" | "Runtime.exceptionThrown") {
                self.said.push(value["params"].clone());
            }
        }
    }
}

#[track_caller]
fn connect(address: &str) -> WebSocket<TcpStream> {
    let host = address
        .strip_prefix("ws://")
        .and_then(|rest| rest.split('/').next());
    let addr: SocketAddr = host
        .unwrap_or_default()
        .parse()
        .expect("it names an address");
    let stream = TcpStream::connect(addr).expect("the browser listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("it can be set");
    let (socket, _) = tungstenite::client(address, stream).expect("it is a WebSocket");
    socket
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Asked to, it takes its processes along.
        let close = json!({ "id": u64::MAX >> 12, "method": "Browser.close" });
        let _ = self.socket.send(Message::text(close.to_string()));
        let ended = within(Duration::from_secs(10), || {
            self.child.try_wait().ok().flatten()
        });
        if ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

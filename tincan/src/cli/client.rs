//! A JSON-RPC 2.0 client for the daemon's Unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

/// A daemon that does not answer by then is in trouble.
const PATIENCE: Duration = Duration::from_secs(5);

/// One connection to a daemon.
pub(super) struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    pub(super) fn connect(path: PathBuf) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(&path).with_context(|| {
            format!(
                "cannot reach the daemon at {}: is it running? start it with `tincan daemon` as root, or name its \
                 socket with --socket or --tap",
                path.display()
            )
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { path, stream: BufReader::new(stream) })
    }

    /// Calls a method; an error of the daemon is this function's error.
    pub(super) fn call(&mut self, method: &str, parameters: &Map<String, Value>) -> anyhow::Result<Value> {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters});
        let stream = self.stream.get_mut();
        stream.write_all(format!("{call}\n").as_bytes()).context("cannot send the call")?;
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .with_context(|| format!("the daemon at {} does not answer", self.path.display()))?;
        anyhow::ensure!(!line.is_empty(), "the daemon at {} hung up: look at its log", self.path.display());
        let mut answer: Value = serde_json::from_str(&line).context("the daemon's answer is not JSON")?;
        if let Some(error) = answer.get("error") {
            anyhow::bail!("{}", error["message"].as_str().unwrap_or("the daemon refused without a reason"));
        }
        Ok(answer["result"].take())
    }
}

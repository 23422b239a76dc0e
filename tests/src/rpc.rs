//! A client of the daemon's Unix socket: JSON-RPC 2.0, one JSON text per line.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// How long the daemon may take to answer a call.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to a daemon.
#[derive(Debug)]
pub struct RpcClient {
    stream: BufReader<UnixStream>,
    last_id: u64,
}

/// An error answer of the daemon; find it in an [`anyhow::Error`] by `downcast_ref`.
#[derive(Debug)]
pub struct RpcError {
    /// JSON-RPC 2.0 section 5.1, or -32000 for a refused call.
    pub code: i64,
    /// The sentence for people.
    pub message: String,
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the daemon answered {}: {}", self.code, self.message)
    }
}

impl std::error::Error for RpcError {}

impl RpcClient {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE)).context("setting the answer's deadline")?;
        Ok(Self { stream: BufReader::new(stream), last_id: 0 })
    }

    /// Makes a call and returns its result.
    ///
    /// # Errors
    /// [`RpcError`] when the daemon answered with an error; others when it did not answer properly.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.last_id += 1;
        let line = format!("{}\n", json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}));
        self.stream.get_mut().write_all(line.as_bytes()).with_context(|| format!("calling {method}"))?;
        let mut answer = String::new();
        let length =
            self.stream.read_line(&mut answer).with_context(|| format!("waiting for the answer to {method}"))?;
        ensure!(length > 0, "the daemon hung up on {method}");
        let mut answer: Value = serde_json::from_str(&answer).with_context(|| format!("reading {answer:?}"))?;
        ensure!(answer["id"] == self.last_id, "an answer to another call: {answer}");
        if let Some(error) = answer.get("error") {
            let message = error["message"].as_str().unwrap_or_default().to_owned();
            return Err(RpcError { code: error["code"].as_i64().unwrap_or_default(), message }.into());
        }
        let Some(result) = answer.get_mut("result") else { bail!("neither result nor error: {answer}") };
        Ok(result.take())
    }
}

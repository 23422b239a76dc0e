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
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    pub fn connect(path: PathBuf) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(&path).with_context(|| {
            format!(
                "cannot reach the daemon at {} (is it running? start it with `tincan daemon` as root, or name its \
                 socket with --socket or --tap; only root and the daemon's own user may call it)",
                path.display()
            )
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { path, stream: BufReader::new(stream) })
    }

    /// Calls a method; an error of the daemon is this function's error.
    pub fn call(&mut self, method: &str, parameters: &Map<String, Value>) -> anyhow::Result<Value> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Answers one call with `answer`, then hangs up; returns what the client made of it and the call.
    fn call(test: &str, answer: &'static str) -> (anyhow::Result<Value>, Value) {
        let path = std::env::temp_dir().join(format!("tincan-client-{}-{test}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
            serde_json::from_str(&line).unwrap()
        });
        let mut client = Client::connect(path.clone()).unwrap();
        std::fs::remove_file(path).unwrap();
        let parameters = Map::from_iter([("logging".to_owned(), json!(3))]);
        (client.call("set_logging", &parameters), daemon.join().unwrap())
    }

    #[test]
    fn a_result_is_the_value_and_the_call_is_json_rpc() {
        let (result, call) = call("result", "{\"jsonrpc\": \"2.0\", \"id\": 1, \"result\": {\"done\": true}}\n");
        assert_eq!(result.unwrap(), json!({"done": true}));
        assert_eq!(call, json!({"jsonrpc": "2.0", "id": 1, "method": "set_logging", "params": {"logging": 3}}));
    }

    #[test]
    fn errors_are_the_daemons_words() {
        let answer = "{\"jsonrpc\": \"2.0\", \"id\": 1, \"error\": {\"code\": -32000, \"message\": \"no peer\"}}\n";
        assert_eq!(call("error", answer).0.unwrap_err().to_string(), "no peer");
        assert!(call("silence", "").0.unwrap_err().to_string().contains("hung up"));
    }

    #[test]
    fn without_a_daemon_the_error_says_how_to_start_one() {
        let Err(error) = Client::connect(PathBuf::from("/nowhere/tincan.sock")) else { panic!("nobody listens") };
        assert!(error.to_string().contains("tincan daemon"), "{error}");
    }
}

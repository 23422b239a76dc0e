//! The Unix socket door: JSON-RPC 2.0, one JSON text a line, real results and errors.
//!
//! Each connection is a task that sends one call at a time to the daemon's loop, so answers keep the order of the calls.

#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::wire::answer::Answer;
use crate::wire::json_rpc::{self, RpcCall, RpcError, RpcFailure, RpcMethod};
use crate::wire::state::{HostState, State};

/// Connections served at once; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;

/// Longest call in bytes.
const MAX_LINE: usize = 256 * 1024;

/// Calls that may wait for the daemon's loop.
const WAITING: usize = 64;

/// Rest after a failed accept: out of descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A call that waits for its reply.
#[derive(Debug)]
pub struct UnixCall {
    /// What is called.
    pub method: RpcMethod,
    reply: oneshot::Sender<Reply>,
}

impl UnixCall {
    /// Answers; a caller that hung up is no error.
    pub fn reply(self, reply: Reply) {
        drop(self.reply.send(reply));
    }
}

/// What the daemon answers.
#[derive(Debug)]
pub enum Reply {
    /// To a method of the Controller API.
    Answer(Answer),
    /// To `status`.
    Status {
        /// With stats of every peer.
        state: Box<State>,
        /// TAP, ports, kernel engine.
        host: HostState,
        /// Every counter by name.
        counters: Vec<(String, u64)>,
    },
    /// To `counters`.
    Counters(Vec<(String, u64)>),
}

/// The listening socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct UnixDoor {
    path: PathBuf,
    inbox: mpsc::Receiver<UnixCall>,
    acceptor: AbortHandle,
}

impl UnixDoor {
    /// Listens at `path`, for root and the daemon's own user only. A dead daemon's socket file is replaced.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        remove_stale(path)?;
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .with_context(|| format!("cannot make {}: choose another path with --socket", parent.display()))?;
        }
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot listen at {}: choose another path with --socket", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot restrict {}", path.display()))?;
        let (sender, inbox) = mpsc::channel(WAITING);
        let acceptor = tokio::spawn(accept(listener, sender)).abort_handle();
        Ok(Self { path: path.to_owned(), inbox, acceptor })
    }

    /// The next call.
    pub async fn recv(&mut self) -> UnixCall {
        match self.inbox.recv().await {
            Some(call) => call,
            None => std::future::pending().await,
        }
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        self.acceptor.abort();
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket file not removed");
        }
    }
}

/// Removes the socket file of a daemon that is gone, and nothing else: connecting to an ordinary file is refused, too.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let Ok(file) = std::fs::symlink_metadata(path) else { return Ok(()) };
    anyhow::ensure!(
        file.file_type().is_socket(),
        "{} exists and is no socket: choose another path with --socket",
        path.display()
    );
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        Ok(_) => anyhow::bail!(
            "a daemon is already listening at {}: stop it, or choose another --tap or --socket",
            path.display()
        ),
        Err(error) => {
            Err(error).with_context(|| format!("cannot tell whether a daemon is listening at {}", path.display()))
        }
    }
}

async fn accept(listener: UnixListener, calls: mpsc::Sender<UnixCall>) {
    let own_user = nix::unistd::geteuid().as_raw();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own_user);
        if !allowed {
            tracing::info!("a local user without the right to it tried the control socket");
            continue;
        }
        let calls = calls.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, calls).await {
                tracing::debug!(%error, "control connection ended");
            }
            drop(place);
        });
    }
}

async fn serve(stream: UnixStream, calls: mpsc::Sender<UnixCall>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        if (&mut reader).take(most).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if line.len() == MAX_LINE && !line.ends_with(b"\n") {
            let error = RpcError::InvalidRequest("the call is longer than 256 KiB");
            return say(&mut writer, &json_rpc::failure(&serde_json::Value::Null, &error)).await;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Some(answer) = carry_out(&line, &calls).await {
            say(&mut writer, &answer).await?;
        }
    }
}

async fn say(writer: &mut OwnedWriteHalf, answer: &str) -> io::Result<()> {
    writer.write_all(answer.as_bytes()).await
}

async fn carry_out(line: &[u8], calls: &mpsc::Sender<UnixCall>) -> Option<String> {
    let RpcCall { id, method } = match json_rpc::parse_call(line) {
        Ok(call) => call,
        Err(RpcFailure { id, error }) => return id.map(|id| json_rpc::failure(&id, &error)),
    };
    let (reply, answer) = oneshot::channel();
    let sent = calls.send(UnixCall { method, reply }).await;
    let reply = match sent {
        Ok(()) => answer.await.ok(),
        Err(_) => None,
    };
    let id = id?;
    Some(match reply {
        Some(reply) => render(&id, reply),
        None => json_rpc::failure(&id, &RpcError::Internal("the daemon is stopping".to_owned())),
    })
}

fn render(id: &serde_json::Value, reply: Reply) -> String {
    fn borrowed(counters: &[(String, u64)]) -> Vec<(&str, u64)> {
        counters.iter().map(|(name, count)| (name.as_str(), *count)).collect()
    }
    match reply {
        Reply::Answer(answer) => json_rpc::answer(id, &answer),
        Reply::Status { state, host, counters } => json_rpc::status(id, &state, &host, &borrowed(&counters)),
        Reply::Counters(counters) => json_rpc::counters(id, &borrowed(&counters)),
    }
}

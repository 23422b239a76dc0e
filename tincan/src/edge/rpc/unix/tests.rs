//! The door with real connections, each test at a path of its own.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::wire::request::Request;

const PATIENCE: Duration = Duration::from_secs(5);

/// A directory that goes when the test ends.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tincan-unix-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/door.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

struct Caller {
    reader: BufReader<tokio::net::unix::OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Caller {
    async fn new(path: &Path) -> Self {
        let (reader, writer) = UnixStream::connect(path).await.unwrap().into_split();
        Self { reader: BufReader::new(reader), writer }
    }

    async fn write(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
    }

    async fn read(&mut self) -> Value {
        let mut line = String::new();
        timeout(PATIENCE, self.reader.read_line(&mut line)).await.expect("the door answers").unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    async fn is_hung_up_on(&mut self) -> bool {
        let mut rest = Vec::new();
        match timeout(PATIENCE, self.reader.read_to_end(&mut rest)).await.expect("the door hangs up") {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

async fn next(door: &mut UnixDoor) -> UnixCall {
    timeout(PATIENCE, door.recv()).await.expect("the door hears it")
}

fn echo(id: u32, message: &str) -> String {
    format!("{}\n", json!({"jsonrpc": "2.0", "id": id, "method": "echo_request", "params": {"msg": message}}))
}

/// Answers the next call as the node would answer an echo.
async fn answer_echo(door: &mut UnixDoor) {
    let call = next(door).await;
    let RpcMethod::Node(Request::EchoRequest { message }) = call.method.clone() else {
        panic!("an echo was expected, not {:?}", call.method)
    };
    call.reply(Reply::Answer(Answer::Echo(message)));
}

#[tokio::test]
async fn a_call_has_a_reply_and_an_error_has_its_code() {
    let directory = Directory::new("reply");
    let mut door = UnixDoor::bind(&directory.socket()).unwrap();
    let mut caller = Caller::new(&directory.socket()).await;
    caller.write(&echo(1, "hello")).await;
    answer_echo(&mut door).await;
    assert_eq!(caller.read().await, json!({"jsonrpc": "2.0", "id": 1, "result": {"msg": "hello"}}));

    caller.write("{\"jsonrpc\": \"2.0\", \"id\": 2, \"method\": \"counters\"}\n").await;
    next(&mut door).await.reply(Reply::Counters(vec![("frames".to_owned(), 3)]));
    assert_eq!(caller.read().await["result"], json!({"frames": 3}));

    for (line, id, code) in [
        ("nonsense\n", Value::Null, -32700),
        ("{\"jsonrpc\": \"2.0\", \"id\": 3, \"method\": \"nonsense\"}\n", json!(3), -32601),
        ("{\"jsonrpc\": \"2.0\", \"id\": 4, \"method\": \"trim_link\"}\n", json!(4), -32602),
    ] {
        caller.write(line).await;
        let answer = caller.read().await;
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&id, &json!(code)), "{line}");
    }

    caller.write(&echo(5, "hello")).await;
    next(&mut door).await.reply(Reply::Answer(Answer::Refused("no".to_owned())));
    assert_eq!(caller.read().await["error"], json!({"code": -32000, "message": "no"}));
}

#[tokio::test]
async fn calls_of_a_connection_are_answered_in_their_order_and_notifications_are_not() {
    let directory = Directory::new("order");
    let mut door = UnixDoor::bind(&directory.socket()).unwrap();
    let mut caller = Caller::new(&directory.socket()).await;
    let notification = "{\"jsonrpc\": \"2.0\", \"method\": \"echo_request\", \"params\": {\"msg\": \"quiet\"}}\n";
    caller.write(&[&echo(1, "one"), notification, "\n", &echo(2, "two")].concat()).await;
    for _ in 0..3 {
        answer_echo(&mut door).await;
    }
    assert_eq!(caller.read().await["result"]["msg"], "one");
    assert_eq!(caller.read().await["result"]["msg"], "two");
}

#[tokio::test]
async fn a_caller_that_reads_nothing_holds_up_no_other() {
    let directory = Directory::new("slow");
    let mut door = UnixDoor::bind(&directory.socket()).unwrap();
    let (mut slow, mut quick) = (Caller::new(&directory.socket()).await, Caller::new(&directory.socket()).await);
    slow.write(&echo(1, "slow")).await;
    let counters = (0..100_000).map(|number| (format!("counter {number}"), number)).collect();
    next(&mut door).await.reply(Reply::Counters(counters));
    quick.write(&echo(2, "quick")).await;
    answer_echo(&mut door).await;
    assert_eq!(quick.read().await["result"]["msg"], "quick");
    assert_eq!(slow.read().await["result"]["counter 99999"], 99_999);
}

#[tokio::test]
async fn the_longest_call_is_read_and_a_longer_one_is_refused() {
    let directory = Directory::new("long");
    let mut door = UnixDoor::bind(&directory.socket()).unwrap();
    let mut caller = Caller::new(&directory.socket()).await;
    let call = echo(1, "hello");
    caller.write(&[" ".repeat(MAX_LINE - call.len()), call].concat()).await;
    answer_echo(&mut door).await;
    assert_eq!(caller.read().await["result"]["msg"], "hello");

    caller.write(&"x".repeat(MAX_LINE)).await;
    assert_eq!(caller.read().await["error"]["code"], -32600);
    assert!(caller.is_hung_up_on().await);
}

#[tokio::test]
async fn callers_beyond_the_limit_wait_until_another_leaves() {
    let directory = Directory::new("many");
    let mut door = UnixDoor::bind(&directory.socket()).unwrap();
    let mut served = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut caller = Caller::new(&directory.socket()).await;
        caller.write(&echo(1, "served")).await;
        answer_echo(&mut door).await;
        assert_eq!(caller.read().await["result"]["msg"], "served");
        served.push(caller);
    }
    let mut waiting = Caller::new(&directory.socket()).await;
    waiting.write(&echo(2, "waited")).await;
    drop(served);
    answer_echo(&mut door).await;
    assert_eq!(waiting.read().await["result"]["msg"], "waited");
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_goes_with_the_door() {
    let directory = Directory::new("mode");
    let door = UnixDoor::bind(&directory.socket()).unwrap();
    assert_eq!(std::fs::metadata(directory.socket()).unwrap().mode() & 0o777, 0o600);
    drop(door);
    assert!(!directory.socket().exists());
}

#[tokio::test]
async fn callers_of_a_stopped_daemon_are_told() {
    let directory = Directory::new("stopped");
    let mut door = UnixDoor::bind(&directory.socket()).unwrap();
    let mut caller = Caller::new(&directory.socket()).await;
    caller.write(&echo(1, "hello")).await;
    drop(next(&mut door).await);
    drop(door);
    assert_eq!(caller.read().await["error"]["code"], -32603);
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced_and_nothing_else_is() {
    let directory = Directory::new("stale");
    let path = directory.socket();
    let door = UnixDoor::bind(&path).unwrap();
    let error = UnixDoor::bind(&path).unwrap_err().to_string();
    assert!(error.contains("already listening"), "{error}");
    drop(door);

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the socket file of a dead daemon");
    let door = UnixDoor::bind(&path).unwrap();
    Caller::new(&path).await;
    drop(door);

    std::fs::write(&path, "precious").unwrap();
    assert!(UnixDoor::bind(&path).unwrap_err().to_string().contains("no socket"));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

//! The socket, as clients and a second daemon meet it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{sync::mpsc, task};

use super::{BindError, ControlSocket, LINE_MAX, bind, serve};
use crate::api::{
    Request, Response, Target,
    client::{self, ClientError},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn directory() -> TempDir {
    TempDir::new().expect("a temporary directory")
}

fn bound(path: &Path) -> ControlSocket {
    bind(path).expect("the socket can be made")
}

/// Serves `socket` with a loop that names the request it got, and runs `client` beside it.
fn served<R: Send + 'static>(
    socket: ControlSocket,
    client: impl FnOnce() -> R + Send + 'static,
) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (sender, mut questions) = mpsc::channel::<super::Question>(1);
        let server = task::spawn(serve(socket, sender));
        let echo = task::spawn(async move {
            while let Some((request, answer)) = questions.recv().await {
                if request == Request::Reload {
                    // What a daemon does that stops in the middle: the answer's sender is dropped.
                    continue;
                }
                let _gone = answer.send(Response::Done {
                    changes: vec![format!("{request:?}")],
                });
            }
        });
        let result = task::spawn_blocking(client)
            .await
            .expect("the client does not panic");
        server.abort();
        echo.abort();
        result
    })
}

fn line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .expect("an answer");
    line
}

#[test]
fn a_request_reaches_the_loop_and_its_answer_the_client() {
    let dir = directory();
    let path = dir.path().join("made/on/the/way.sock");
    let socket = bound(&path);
    let request = Request::Drain {
        backend: Target {
            backend: "mx1".to_owned(),
            service: Some("mail".to_owned()),
        },
        force: false,
        timeout: crate::api::DrainTimeout::After { ms: 300_000 },
    };
    let expected = Response::Done {
        changes: vec![format!("{request:?}")],
    };
    let answer = served(socket, move || client::ask(&path, &request, PATIENCE));
    assert_eq!(answer.expect("an answer"), expected);
}

#[test]
fn the_socket_is_for_root_and_its_group_alone() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let socket = bound(&path);
    let mode = fs::metadata(socket.path())
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
fn a_second_daemon_is_told_who_runs() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let _first = bound(&path);
    let error = bind(&path).expect_err("one is enough");
    assert_eq!(
        error.to_string(),
        format!(
            "xdp-lb is already running (pid {}) on {}: stop it first or give this instance another [control] socket",
            std::process::id(),
            path.display()
        )
    );
    assert!(path.exists(), "the first one's socket stays");
}

#[test]
fn a_dead_socket_is_replaced_and_a_file_is_not() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    // std leaves the file behind, as a daemon does that was killed.
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let socket = bound(&path);
    drop(socket);
    assert!(!path.exists(), "a daemon that ends takes its socket along");

    fs::write(&path, "somebody's").expect("a file");
    assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
    assert_eq!(
        fs::read_to_string(&path).expect("still there"),
        "somebody's"
    );
}

#[test]
fn a_socket_that_was_replaced_is_left_to_its_owner() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let first = bound(&path);
    fs::remove_file(&path).expect("removed by hand");
    let second = bound(&path);
    drop(first);
    assert!(path.exists(), "the second one's");
    drop(second);
}

#[test]
fn a_path_too_long_is_said_to_be() {
    let dir = directory();
    let path = dir.path().join("x".repeat(120));
    let error = bind(&path).expect_err("too long for a socket").to_string();
    assert!(error.contains("at most 107 bytes"), "{error}");
}

#[test]
fn garbage_is_refused_and_the_client_may_go_on() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let socket = bound(&path);
    served(socket, move || {
        let mut stream = UnixStream::connect(&path).expect("connected");
        stream.write_all(b"\xff{]garbage\n").expect("sent");
        assert!(line(&stream).contains(r#""answer":"refused""#));
        stream
            .write_all(b"{\"command\":\"explode\"}\n")
            .expect("sent");
        let answer = line(&stream);
        assert!(answer.contains("unknown variant `explode`"), "{answer}");
        stream
            .write_all(b"{\"command\":\"status\"}\n")
            .expect("sent");
        assert!(line(&stream).contains(r#""answer":"done""#));
    });
}

#[test]
fn a_line_without_end_is_cut_off() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let socket = bound(&path);
    served(socket, move || {
        let mut stream = UnixStream::connect(&path).expect("connected");
        let bytes = usize::try_from(LINE_MAX).expect("it fits");
        stream.write_all(&vec![b'x'; bytes]).expect("sent");
        let mut rest = String::new();
        stream
            .read_to_string(&mut rest)
            .expect("an answer, then the end");
        assert!(rest.contains("longer than 65536 bytes"), "{rest}");
    });
}

/// A client that says nothing is dropped after its time, and holds nobody up until then.
#[test]
fn a_stalled_client_is_dropped() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let socket = bound(&path);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The clock jumps on whenever all tasks wait: ten seconds pass at once.
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (sender, _questions) = mpsc::channel(1);
        let server = task::spawn(serve(socket, sender));
        let mut stream = tokio::net::UnixStream::connect(&path)
            .await
            .expect("connected");
        stream.write_all(b"{\"command\":").await.expect("sent");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("the end");
        assert!(rest.is_empty(), "hung up on, without an answer");
        server.abort();
    });
}

#[test]
fn what_goes_wrong_says_what_to_do() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let ask = |path: &Path| client::ask(path, &Request::Status, Duration::from_millis(50));

    let error = ask(&path).expect_err("nobody there");
    assert_eq!(
        error.to_string(),
        format!(
            "the daemon is not running (no answer on {}): start it with `systemctl start xdp-lb` or `xdp-lb run`",
            path.display()
        )
    );

    let listener = UnixListener::bind(&path).expect("a socket");
    assert!(
        matches!(ask(&path), Err(ClientError::Silent { .. })),
        "a daemon that hangs"
    );
    drop(listener);
    assert!(
        matches!(ask(&path), Err(ClientError::NotRunning(_))),
        "a daemon that was killed"
    );

    let denied = ClientError::NoPermission(path.clone()).to_string();
    assert!(denied.ends_with("run as root"), "{denied}");
}

#[test]
fn a_daemon_that_stops_says_so() {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let socket = bound(&path);
    let answer = served(socket, move || {
        client::ask(&path, &Request::Reload, PATIENCE)
    });
    let Response::Refused { message } = answer.expect("an answer") else {
        panic!("nothing was done");
    };
    assert_eq!(message, "the daemon is stopping and did nothing");
}

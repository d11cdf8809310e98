//! One HTTP connection from a chosen source address, and one request on it.
//!
//! A socket belongs to the namespace it was opened in, so whoever calls this runs in a thread that has entered the
//! client's.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;

use super::error::{Error, IoContext, Result};
use super::host::Host;

/// A failed request: what a client would have seen.
pub(super) type Failure = String;

/// A connection; dropping it closes it.
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// The address and port it was made from.
    pub(super) local: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Connection {
    pub(super) async fn open(
        source: IpAddr,
        target: SocketAddr,
    ) -> std::result::Result<Self, Failure> {
        let failed = |error: std::io::Error| format!("connect: {error}");
        let socket = if target.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
        .map_err(failed)?;
        socket.bind(SocketAddr::new(source, 0)).map_err(failed)?;
        let stream = socket.connect(target).await.map_err(failed)?;
        let local = stream.local_addr().map_err(failed)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        let task = tokio::spawn(async move {
            // Whoever waits for the answer is told of the error.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            local,
            task,
        })
    }

    pub(super) async fn request(
        &mut self,
        target: SocketAddr,
        path: &str,
        keep_alive: bool,
    ) -> std::result::Result<hyper::Response<Incoming>, Failure> {
        let request = hyper::Request::get(path)
            .header(hyper::header::HOST, target.to_string())
            .header(
                hyper::header::CONNECTION,
                if keep_alive { "keep-alive" } else { "close" },
            )
            .body(Empty::new())
            .map_err(|error| format!("request: {error}"))?;
        let response = self
            .sender
            .send_request(request)
            .await
            .map_err(|error| format!("answer: {error}"))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(format!("answer: status {}", response.status()))
        }
    }

    /// A request whose whole answer is read; gives its `X-Backend`.
    pub(super) async fn small_request(
        &mut self,
        target: SocketAddr,
        path: &str,
        keep_alive: bool,
    ) -> std::result::Result<Option<String>, Failure> {
        let response = self.request(target, path, keep_alive).await?;
        let backend = backend_of(&response);
        response
            .into_body()
            .collect()
            .await
            .map_err(|error| format!("body: {error}"))?;
        Ok(backend)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answering backend's name.
pub(super) fn backend_of(response: &hyper::Response<Incoming>) -> Option<String> {
    Some(
        response
            .headers()
            .get("x-backend")?
            .to_str()
            .ok()?
            .to_owned(),
    )
}

/// A runtime for one thread inside a namespace.
pub(super) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The headers, with names in lower case.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: String,
    /// The address and port the request came from.
    pub local: SocketAddr,
}

/// Sends one request from `host`, over a connection of its own, from `source`.
///
/// # Errors
/// When the request fails or takes longer than `timeout`.
pub fn get(
    host: &Host,
    source: IpAddr,
    target: SocketAddr,
    path: &str,
    timeout: Duration,
) -> Result<Response> {
    let exchange = async {
        let mut connection = Connection::open(source, target).await?;
        let response = connection.request(target, path, false).await?;
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| {
                (
                    name.as_str().to_owned(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| format!("body: {error}"))?
            .to_bytes();
        Ok(Response {
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
            local: connection.local,
        })
    };
    let answer = host.run_in(|| {
        let runtime = runtime()?;
        runtime.block_on(async {
            tokio::time::timeout(timeout, exchange)
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
                .map_err(|failure: Failure| std::io::Error::other(failure))
        })
    })?;
    answer.to_do(|| format!("get http://{target}{path} from {source} ({})", host.name()))
}

/// The error for a thread that could not do its work.
pub(super) fn thread_lost(what: &str) -> Error {
    Error::Io {
        what: format!("finish {what}"),
        source: std::io::Error::other("its thread has panicked"),
    }
}

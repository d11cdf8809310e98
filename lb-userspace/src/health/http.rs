//! The HTTP probe: one GET, answered whole and with the right status.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use futures::FutureExt;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::{ProbeFailure, ProbeResult, ProbeSpec, connect};

/// More of an answer than this is not read; a health page is small.
const BODY_LIMIT: usize = 64 * 1024;

/// How long the server is given to close first.
const CLOSE_GRACE: Duration = Duration::from_millis(20);

pub(super) async fn probe(
    spec: &ProbeSpec,
    path: &str,
    host: Option<&str>,
    status: &RangeInclusive<u16>,
    start: Instant,
) -> ProbeResult {
    let request = Request::get(path)
        .header(
            HOST,
            host.map_or_else(|| spec.target.to_string(), str::to_owned),
        )
        .header(USER_AGENT, concat!("xdp-lb/", env!("CARGO_PKG_VERSION")))
        // The side that closes first keeps TIME_WAIT. On the director that would use up the ports
        // of the one address pair all probes of a VIP share; on the server it is harmless.
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| ProbeFailure::local("HTTP request", &error))?;
    let stream = connect::connect(spec, start).await?;
    let deadline = (start + spec.timeout).into();
    let (found, stream) = timeout_at(deadline, exchange(stream, request, spec.target, status))
        .await
        .unwrap_or(Err(ProbeFailure::HttpTimedOut {
            target: spec.target,
            timeout: spec.timeout,
        }))?;
    let round_trip = start.elapsed();
    if !status.contains(&found) {
        return Err(ProbeFailure::HttpStatus {
            target: spec.target,
            path: path.to_owned(),
            found,
            expected: status.clone(),
        });
    }
    if let Some(stream) = stream {
        close(stream).await;
    }
    Ok(round_trip)
}

/// Sends the request and reads the answer: its status, and the stream if it was read to its end.
async fn exchange(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
    target: SocketAddr,
    expected: &RangeInclusive<u16>,
) -> Result<(u16, Option<TcpStream>), ProbeFailure> {
    let failure = |error: &hyper::Error| classify(error, target);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failure(&error))?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        // The body of an answer that is wrong anyway is not waited for.
        let whole = expected.contains(&status) && read_body(response).await?;
        Ok((status, whole))
    };
    let connection = connection.without_shutdown();
    tokio::pin!(answer, connection);
    let mut ended = None;
    loop {
        tokio::select! {
            biased;
            result = &mut answer => {
                let (status, whole) = result.map_err(|error| failure(&error))?;
                if whole && ended.is_none() {
                    // The request is done and its sender gone, so nothing keeps it running.
                    ended = connection.as_mut().now_or_never();
                }
                let stream = ended.and_then(Result::ok).map(|parts| parts.io.into_inner());
                return Ok((status, stream.filter(|_| whole)));
            }
            // The connection's end is no failure in itself; what is lost shows in the answer.
            result = &mut connection, if ended.is_none() => ended = Some(result),
        }
    }
}

/// Reads the body; `false` if it is longer than the limit, and the rest was left unread.
async fn read_body(response: Response<Incoming>) -> Result<bool, hyper::Error> {
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
        if length > BODY_LIMIT {
            return Ok(false);
        }
    }
    Ok(true)
}

fn classify(error: &hyper::Error, target: SocketAddr) -> ProbeFailure {
    if error.is_parse() {
        ProbeFailure::HttpProtocol {
            target,
            error: error.to_string(),
        }
    } else {
        // What is left is a connection that broke: an incomplete message, or an error of the
        // socket below.
        ProbeFailure::Reset { target }
    }
}

/// Closes in order if the server has closed already, which leaves nothing behind here; else the
/// stream's reset ends it.
async fn close(mut stream: TcpStream) {
    let read = tokio::time::timeout(CLOSE_GRACE, stream.read(&mut [0; 1])).await;
    if matches!(read, Ok(Ok(0))) {
        // If the option can't be set the connection ends with the reset instead.
        let _ = SockRef::from(&stream).set_linger(None);
    }
}

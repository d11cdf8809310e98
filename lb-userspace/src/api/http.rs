//! The HTTP side, for monitoring: it shows, and changes nothing.
//!
//! | path | answer |
//! | --- | --- |
//! | `/healthz` | 200 while the daemon answers its own questions |
//! | `/api/v1/status` | [`Status`](super::Status) as JSON |
//! | `/metrics` | the same as metrics, in the OpenMetrics text format 1.0 |

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response as HttpResponse},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use super::{Request, Response, Status, metrics, server::Question};
use crate::heap;

/// The media type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the daemon is gone.
///
/// # Errors
/// What `bind(2)` says: the address is in use, or not this host's.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers on `listener`, asking the daemon over `questions`, until the returned future is dropped.
///
/// # Errors
/// Accepting fails for a reason that does not pass.
pub async fn serve(
    listener: TcpListener,
    questions: mpsc::Sender<Question>,
) -> std::io::Result<()> {
    axum::serve(listener, router(questions)).await
}

fn router(questions: mpsc::Sender<Question>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/api/v1/status", get(status))
        .route("/metrics", get(scrape))
        .with_state(questions)
}

/// The daemon does not answer: it is ending.
struct Silent;

impl IntoResponse for Silent {
    fn into_response(self) -> HttpResponse {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon does not answer\n",
        )
            .into_response()
    }
}

async fn answer(questions: &mpsc::Sender<Question>, request: Request) -> Result<Response, Silent> {
    let (answer, answered) = oneshot::channel();
    questions
        .send((request, answer))
        .await
        .map_err(|_closed| Silent)?;
    answered.await.map_err(|_ended| Silent)
}

async fn ask(questions: &mpsc::Sender<Question>) -> Result<Status, Silent> {
    match answer(questions, Request::Status).await? {
        Response::Status(status) => Ok(*status),
        Response::Done { .. } | Response::Refused { .. } => Err(Silent),
    }
}

async fn healthz(State(questions): State<mpsc::Sender<Question>>) -> Result<&'static str, Silent> {
    answer(&questions, Request::Ping)
        .await
        .map(|_present| "ok\n")
}

async fn status(State(questions): State<mpsc::Sender<Question>>) -> Result<HttpResponse, Silent> {
    let status = ask(&questions).await?;
    let places = status.places();
    aside(places, move || Json(status).into_response()).await
}

async fn scrape(State(questions): State<mpsc::Sender<Question>>) -> Result<HttpResponse, Silent> {
    let status = ask(&questions).await?;
    let places = status.places();
    aside(places, move || {
        ([(CONTENT_TYPE, OPENMETRICS)], metrics::text(&status)).into_response()
    })
    .await
}

/// Writes an answer in a thread of its own: that of 65,535 backends takes longer than a failure may wait for the daemon's.
async fn aside(
    places: usize,
    write: impl FnOnce() -> HttpResponse + Send + 'static,
) -> Result<HttpResponse, Silent> {
    heap::aside(places, write).await.map_err(|_ended| Silent)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty};
    use hyper::body::Bytes;
    use hyper_util::rt::TokioIo;
    use tokio::net::TcpStream;

    use super::*;
    use crate::cli::example_status;

    async fn fetch(address: SocketAddr, path: &str) -> (u16, String, String) {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .header("host", "test")
            .body(Empty::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let code = response.status().as_u16();
        let kind = response
            .headers()
            .get(CONTENT_TYPE)
            .map_or_else(String::new, |v| v.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_path_answers() {
        let (questions, mut asked) = mpsc::channel::<Question>(4);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, questions));
        tokio::spawn(async move {
            while let Some((request, answer)) = asked.recv().await {
                let _ = answer.send(match request {
                    Request::Status => Response::Status(Box::new(example_status())),
                    // All that a look at the health asks for: the status of 65,535 backends takes most of a second.
                    Request::Ping => Response::Done {
                        changes: Vec::new(),
                    },
                    other => panic!("asked for {other:?}"),
                });
            }
        });
        let (code, kind, body) = fetch(address, "/api/v1/status").await;
        assert_eq!((code, kind.as_str()), (200, "application/json"));
        assert_eq!(
            serde_json::from_str::<Status>(&body).unwrap(),
            example_status()
        );
        let (code, kind, body) = fetch(address, "/metrics").await;
        assert_eq!((code, kind.as_str()), (200, OPENMETRICS));
        assert!(body.ends_with("# EOF\n"), "{body}");
        let (code, _, body) = fetch(address, "/healthz").await;
        assert_eq!((code, body.as_str()), (200, "ok\n"));
        assert_eq!(fetch(address, "/nothing").await.0, 404);
        server.abort();
    }

    #[tokio::test]
    async fn a_look_at_the_health_makes_no_status() {
        let (questions, mut asked) = mpsc::channel::<Question>(4);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, questions));
        let fetched = tokio::spawn(async move { fetch(address, "/healthz").await.0 });
        let (request, answer) = asked.recv().await.unwrap();
        assert_eq!(request, Request::Ping);
        answer
            .send(Response::Done {
                changes: Vec::new(),
            })
            .unwrap();
        assert_eq!(fetched.await.unwrap(), 200);
        server.abort();
    }

    #[tokio::test]
    async fn without_a_daemon_it_says_so() {
        let (questions, asked) = mpsc::channel::<Question>(1);
        drop(asked);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, questions));
        assert_eq!(fetch(address, "/healthz").await.0, 503);
        server.abort();
    }
}

//! Plain HTTP requests.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{HOST, HeaderMap};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::soon;

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Asserts that this is a problem with this code and its status, and returns it.
    #[track_caller]
    pub(crate) fn problem(&self, code: stvor_wire::Code) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["code"], code.as_str(), "{self:?}");
        assert_eq!(self.status.as_u16(), code.http_status());
        assert_eq!(problem["status"], code.http_status());
        for field in ["type", "title", "detail"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {problem}");
        }
        problem
    }
}

/// Sends a request without a body.
pub(crate) async fn request(
    server: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Answer {
    exchange(server, (method, path), headers, Bytes::new()).await
}

/// POST.
pub(crate) async fn post(server: SocketAddr, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
    exchange(server, (Method::POST, path), headers, body.into()).await
}

async fn exchange(
    server: SocketAddr,
    (method, path): (Method, &str),
    headers: &[(&str, &str)],
    body: Bytes,
) -> Answer {
    soon(path, async {
        let socket = TcpStream::connect(server).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, server.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
        let answer = read(response).await;
        driver.abort();
        answer
    })
    .await
}

/// GET.
pub(crate) async fn get(server: SocketAddr, path: &str) -> Answer {
    request(server, Method::GET, path, &[]).await
}

/// GET, many times over one connection.
pub(crate) async fn many(server: SocketAddr, path: &str, count: usize) -> Vec<Answer> {
    soon(path, async {
        let socket = TcpStream::connect(server).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut answers = Vec::with_capacity(count);
        for _ in 0..count {
            let request = Request::builder().uri(path).header(HOST, server.to_string());
            let response = sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
            answers.push(read(response).await);
        }
        driver.abort();
        answers
    })
    .await
}

async fn read(response: hyper::Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

//! Refusals as `application/problem+json`.

use core::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use stvor_wire::Code;
use stvor_wire::problem::{PROBLEM_JSON, Problem};
use utoipa::ToSchema;

/// A refused request.
pub(super) struct Refused(Box<Content>);

struct Content {
    problem: Problem,
    code: Code,
    retry_after: Option<Duration>,
    limit: Option<Limit>,
}

/// Of whom, how many requests, in how many seconds.
pub(super) type Limit = (&'static str, u32, u32);

impl Refused {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(Content { problem: Problem::new(code, detail), code, retry_after: None, limit: None }))
    }

    /// 429: past `limit`, and the next request may come after `wait`.
    pub(super) fn limited(wait: Duration, limit: Limit) -> Self {
        let detail = format!("too many requests of this {}: retry after the given time", limit.0);
        let mut refused = Self::new(Code::RateLimited, detail);
        refused.0.retry_after = Some(wait);
        refused.0.limit = Some(limit);
        refused
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let refused = *self.0;
        let status =
            StatusCode::from_u16(refused.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&refused.problem).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = response.headers_mut();
        let wait = match (refused.retry_after, refused.code.retryable()) {
            (Some(wait), _) => Some(wait),
            (None, true) => Some(Duration::from_secs(1)),
            (None, false) => None,
        };
        if let Some(wait) = wait {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            if let Some((of, limit, window)) = refused.limit {
                let text =
                    |value: String| HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(""));
                headers.insert(
                    HeaderName::from_static("ratelimit-policy"),
                    text(format!("\"{of}\";q={limit};w={window}")),
                );
                headers
                    .insert(HeaderName::from_static("ratelimit"), text(format!("\"{of}\";r=0;t={seconds}")));
            }
        }
        if refused.code == Code::WebsocketRequired {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        response
    }
}

/// A problem (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody {
    /// A stable URI for the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// The kind in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What happened here, and what to do.
    detail: String,
    /// The stable code.
    code: String,
}

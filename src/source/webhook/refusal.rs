//! Answers to requests that are not taken.

use std::borrow::Cow;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::cloudevents::http;
use crate::error::{ErrorKind, EventError};

/// Delay in seconds after which a sender may retry.
pub(super) const RETRY_AFTER: &str = "5";

/// The reason why a request is not taken.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { status, reason: reason.into() }
    }

    pub(super) fn bad_request(reason: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    pub(super) fn unauthorized(reason: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, reason)
    }

    pub(super) fn unsupported(reason: &'static str) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason)
    }

    pub(super) fn unavailable(reason: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    /// Returns the refusal of an invalid CloudEvent.
    pub(super) fn of(error: EventError) -> Self {
        let status = StatusCode::from_u16(http::status(&error)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, error.to_string())
    }

    /// Returns the refusal after a failed publish. It describes an invalid event, but no failure of the broker.
    pub(super) fn of_publish(error: &EventError) -> Self {
        match error {
            EventError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            error if is_refusal(error) => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
            _ => Self::unavailable("the event cannot be stored now"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.reason.into_owned()).into_response();
        let extra = match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT => {
                Some((header::RETRY_AFTER, RETRY_AFTER))
            }
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, header::HeaderValue::from_static(value));
        }
        response
    }
}

/// Returns true if the event itself cannot be stored.
pub(super) fn is_refusal(error: &EventError) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Schema)
}

//! The stream on its server, with the link to it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::Value;
use uuid::Uuid;

use super::error::PROVIDER;
use super::keys::Keys;
use super::link::{Link, Listener};
use super::script::open_stream::{Limits, OpenedStream, open_stream, read};
use super::script::{Call, Run};
use super::{DEFAULT_DEDUP_WINDOW, DEFAULT_MAX_EVENTS, RedisConfig, connect};
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;

/// A stream that is open.
pub(super) struct Stream {
    pub(super) config: RedisConfig,
    pub(super) name: Arc<str>,
    pub(super) keys: Keys,
    pub(super) link: Link,
    /// Identity of the stream. It changes when the stream is lost and made again.
    epoch: Mutex<Arc<str>>,
    limits: Mutex<Limits>,
}

impl Stream {
    /// Connects, and opens the stream.
    pub(super) async fn open(config: RedisConfig, listener: Arc<dyn Listener>) -> Result<Self> {
        let keys = Keys::new(&config.key_prefix, &config.stream_name);
        let link = Link::connect(connect::link_config(&config, &keys)?, listener).await?;
        let name = config.stream_name.as_str().into();
        let (epoch, limits) = (Mutex::new("".into()), Mutex::default());
        let stream = Self { config, name, keys, link, epoch, limits };
        match stream.open_again("connect").await {
            Err(EventError::NotFound(_)) => Err(EventError::Config(format!(
                "stream '{}': does not exist, and create_if_missing is false",
                stream.name
            ))),
            opened => opened.map(|_epoch| stream),
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.config.subject_prefix
    }

    pub(super) fn epoch(&self) -> Arc<str> {
        Arc::clone(&self.epoch.lock().ignore_poison())
    }

    /// Returns the limits in force.
    pub(super) fn limits(&self) -> Limits {
        *self.limits.lock().ignore_poison()
    }

    /// Opens the stream after a call found that it is no longer the one with the identity `known`. Returns `true` if
    /// this call noticed it first.
    pub(super) async fn replaced(&self, operation: &'static str, known: &str) -> Result<bool> {
        if *self.epoch() != *known {
            return Ok(false);
        }
        // Several calls may notice it at the same time.
        let before = self.open_again(operation).await?;
        let is_noticed = *before == *known && *self.epoch() != *known;
        if is_noticed {
            tracing::error!(
                stream = &*self.name,
                "the stream was lost or replaced on the server, with its events and consumers"
            );
        }
        Ok(is_noticed)
    }

    /// Opens the stream. Returns the identity that it had before.
    async fn open_again(&self, operation: &'static str) -> Result<Arc<str>> {
        let config = &self.config;
        let limits = Limits {
            max_events: config.max_events,
            max_bytes: config.max_bytes,
            max_age: config.max_age,
            dedup_window: config.dedup_window,
        };
        let epoch = Uuid::now_v7().simple().to_string();
        let open = async |limits| {
            let call = open_stream(&self.keys, self.prefix(), &epoch, config.create_if_missing, limits);
            read(self.link.call(operation, &call).await?)
        };
        let mut opened = open(limits).await?;
        if matches!(opened, OpenedStream::Opened { is_new: true, .. }) {
            opened = open(Limits {
                max_events: limits.max_events.or(Some(DEFAULT_MAX_EVENTS)),
                dedup_window: limits.dedup_window.or(Some(DEFAULT_DEDUP_WINDOW)),
                ..limits
            })
            .await?;
        }
        match opened {
            OpenedStream::Opened { epoch, limits, .. } => {
                *self.limits.lock().ignore_poison() = limits;
                Ok(std::mem::replace(&mut *self.epoch.lock().ignore_poison(), epoch.into()))
            }
            OpenedStream::Absent => Err(EventError::NotFound(format!(
                "stream '{}' no longer exists, and create_if_missing is false",
                self.name
            ))),
            OpenedStream::OtherPrefix(existing) => Err(EventError::Conflict {
                resource: format!("stream '{}'", self.name),
                field: "subject_prefix".to_owned(),
                existing,
                requested: self.prefix().to_owned(),
            }),
            OpenedStream::OtherFormat(format) => Err(EventError::Config(format!(
                "stream '{}': it has the format {format} of another version of this library",
                self.name
            ))),
        }
    }

    /// Returns the error of a call that found another stream than the one it knew. Nothing of the call was stored.
    pub(super) fn lost(&self, operation: &'static str) -> EventError {
        let reason = format!(
            "stream '{}' was lost or replaced on the server, for instance by FLUSHALL, a restart without persistence, or a \
             backup; its events are gone",
            self.name
        );
        BackendError::new(PROVIDER, operation, ErrorKind::Storage, reason).retryable().into()
    }

    /// Returns the timeout of a call.
    pub(super) fn timeout(&self) -> Duration {
        self.config.timeout
    }
}

impl Run for Stream {
    async fn run(&self, operation: &'static str, call: &Call) -> Result<Value> {
        self.link.call(operation, call).await
    }
}

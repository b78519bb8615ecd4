//! A case as data.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use a3s_event::{Capabilities, Support};

use crate::Harness;

pub(crate) type CaseFuture<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// One promise of the delivery contract.
#[non_exhaustive]
pub struct Case {
    /// Name, unique in the kit.
    pub name: &'static str,
    /// The promise in one sentence.
    pub promise: &'static str,
    /// Capabilities that the promise requires.
    pub needs: &'static [Need],
    pub(crate) run: for<'a> fn(&'a dyn Harness) -> CaseFuture<'a>,
}

impl Case {
    /// Checks the promise against a provider of this harness.
    ///
    /// # Panics
    ///
    /// If the provider breaks the promise. The message names the promise and the expected and actual results.
    pub async fn run(&self, harness: &dyn Harness) -> Outcome {
        (self.run)(harness).await
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("promise", &self.promise)
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// Result of a case that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The promise holds.
    Kept,
    /// The provider declares this capability absent, and refuses calls that need it.
    Refused(Need),
    /// The harness lacks what the case needs, as the reason says. Nothing was checked.
    NotApplicable(&'static str),
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Kept
    }
}

/// A capability that a case needs; the variants are the fields of [`Capabilities`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields of Capabilities are documented there")]
pub enum Need {
    Durable,
    SharedConsumers,
    Redelivery,
    NakWithDelay,
    Term,
    Extend,
    Dedup,
    ExpectedSequence,
    StartPolicies,
    MaxAckPending,
    HistoryQuery,
    ConsumerInfo,
    FencedSettlement,
    ReleaseKeepsAttempt,
    ReportsGaps,
    ResetConsumer,
    TotalOrder,
    EventSharing,
}

impl Need {
    /// Returns the support that `capabilities` declare for this need.
    pub fn support(self, capabilities: &Capabilities) -> Support {
        match self {
            Self::Durable => capabilities.durable,
            Self::SharedConsumers => capabilities.shared_consumers,
            Self::Redelivery => capabilities.redelivery,
            Self::NakWithDelay => capabilities.nak_with_delay,
            Self::Term => capabilities.term,
            Self::Extend => capabilities.extend,
            Self::Dedup => capabilities.dedup,
            Self::ExpectedSequence => capabilities.expected_sequence,
            Self::StartPolicies => capabilities.start_policies,
            Self::MaxAckPending => capabilities.max_ack_pending,
            Self::HistoryQuery => capabilities.history_query,
            Self::ConsumerInfo => capabilities.consumer_info,
            Self::FencedSettlement => capabilities.fenced_settlement,
            Self::ReleaseKeepsAttempt => capabilities.release_keeps_attempt,
            Self::ReportsGaps => capabilities.reports_gaps,
            Self::ResetConsumer => capabilities.reset_consumer,
            Self::TotalOrder => capabilities.total_order,
            Self::EventSharing => capabilities.event_sharing,
        }
    }
}

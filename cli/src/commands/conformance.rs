//! `conformance`: checks every promise of the delivery contract on a bus.
//!
//! Each case creates its own stream. It neither reads nor changes the existing streams.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;

use a3s_event::provider::ProviderRegistry;
use a3s_event_testkit as testkit;
use a3s_event_testkit::{Clock, Isolated, Need};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::bus::{App, asked_to_end};
use crate::failure::{Failure, Outcome};
use crate::output::Row;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event --url memory:// conformance
  a3s-event --url nats://127.0.0.1:4222 conformance --case a_publish
  a3s-event conformance --list --case history";

/// Number of concurrent cases, which mostly wait.
const AT_ONCE: usize = 4;

/// The capabilities, with their names in the contract.
pub(super) const NEEDS: [(Need, &str); 18] = [
    (Need::Durable, "durable"),
    (Need::SharedConsumers, "shared_consumers"),
    (Need::Redelivery, "redelivery"),
    (Need::NakWithDelay, "nak_with_delay"),
    (Need::Term, "term"),
    (Need::Extend, "extend"),
    (Need::Dedup, "dedup"),
    (Need::ExpectedSequence, "expected_sequence"),
    (Need::StartPolicies, "start_policies"),
    (Need::MaxAckPending, "max_ack_pending"),
    (Need::HistoryQuery, "history_query"),
    (Need::ConsumerInfo, "consumer_info"),
    (Need::FencedSettlement, "fenced_settlement"),
    (Need::ReleaseKeepsAttempt, "release_keeps_attempt"),
    (Need::ReportsGaps, "reports_gaps"),
    (Need::TotalOrder, "total_order"),
    (Need::EventSharing, "event_sharing"),
    (Need::ResetConsumer, "reset_consumer"),
];

/// The row of the cases that need no capability.
const EVERY_BUS: &str = "every bus";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    case: String,
    /// A row per case instead of one per capability
    #[arg(long, alias = "cases")]
    per_case: bool,
    /// List the cases with their promises, and check none
    #[arg(long, conflicts_with_all = ["per_case", "require_all"])]
    list: bool,
    /// Also fail if the bus refuses a case, or a case does not apply to it
    #[arg(long)]
    require_all: bool,
}

/// A case of the kit.
#[derive(Debug, Serialize)]
struct ListedCase {
    case: &'static str,
    /// The capabilities that the promise requires.
    needs: Vec<&'static str>,
    promise: &'static str,
}

impl Row for ListedCase {
    const COLUMNS: &'static [&'static str] = &["case", "needs", "promise"];
    const IS_BLOCK: bool = true;

    fn cells(&self) -> Vec<String> {
        vec![self.case.to_owned(), self.needs.join(" "), self.promise.to_owned()]
    }
}

impl From<&'static testkit::Case> for ListedCase {
    fn from(case: &'static testkit::Case) -> Self {
        Self {
            case: case.name,
            needs: case.needs.iter().map(|need| name(*need)).collect(),
            promise: case.promise,
        }
    }
}

/// Returns the name of a capability in the contract.
fn name(need: Need) -> &'static str {
    NEEDS.iter().find(|(known, _)| *known == need).map_or("", |(_, name)| name)
}

/// The result of the cases of a capability.
#[derive(Debug, Serialize)]
struct CapabilityRow {
    capability: &'static str,
    outcome: &'static str,
    /// Number of cases with this outcome.
    cases: usize,
    failed: Vec<Broken>,
}

/// A broken promise.
#[derive(Debug, Clone, Serialize)]
struct Broken {
    case: &'static str,
    promise: &'static str,
    detail: String,
}

impl Row for CapabilityRow {
    const COLUMNS: &'static [&'static str] = &["capability", "outcome", "cases", "failed"];

    fn cells(&self) -> Vec<String> {
        let failed: Vec<_> = self.failed.iter().map(|broken| broken.case).collect();
        vec![self.capability.to_owned(), self.outcome.to_owned(), self.cases.to_string(), failed.join("\n")]
    }
}

impl CapabilityRow {
    /// Creates the row of a capability from its cases. One broken promise fails the capability.
    fn new(capability: &'static str, cases: &[&CaseRow]) -> Self {
        let of = |outcome: &'static str| cases.iter().filter(move |case| case.outcome == outcome);
        let outcome =
            ["failed", "honoured", "refused"].into_iter().find(|outcome| of(outcome).next().is_some());
        let outcome = outcome.unwrap_or("not checked");
        let failed = of("failed").map(|case| Broken {
            case: case.case,
            promise: case.promise,
            detail: case.detail.clone(),
        });
        Self { capability, outcome, cases: of(outcome).count(), failed: failed.collect() }
    }
}

/// Creates a row per capability, and one for the cases that need none.
fn capabilities(rows: &[CaseRow]) -> Vec<CapabilityRow> {
    let of_need = |need, name| {
        // A case that was refused because the bus lacks another capability says nothing about this one.
        let says_something =
            |row: &&CaseRow| row.needs.contains(&need) && row.refused.is_none_or(|by| by == need);
        CapabilityRow::new(name, &rows.iter().filter(says_something).collect::<Vec<_>>())
    };
    let of_none: Vec<_> = rows.iter().filter(|row| row.needs.is_empty()).collect();
    let mut capabilities = vec![CapabilityRow::new(EVERY_BUS, &of_none)];
    capabilities.extend(NEEDS.into_iter().map(|(need, name)| of_need(need, name)));
    capabilities
}

/// The result of a case.
#[derive(Debug, Serialize)]
struct CaseRow {
    case: &'static str,
    outcome: &'static str,
    detail: String,
    promise: &'static str,
    #[serde(skip)]
    needs: &'static [Need],
    /// The capability that the bus does not have.
    #[serde(skip)]
    refused: Option<Need>,
}

impl Row for CaseRow {
    const COLUMNS: &'static [&'static str] = &["outcome", "case", "detail"];
    const CUT: Option<usize> = Some(2);

    fn cells(&self) -> Vec<String> {
        vec![self.outcome.to_owned(), self.case.to_owned(), text::shorten(&text::line(&self.detail), 100)]
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let cases: Vec<_> = testkit::cases().iter().filter(|case| case.name.contains(&args.case)).collect();
    if cases.is_empty() {
        return Err(Failure::Usage(format!("no case has '{}' in its name; --list names them", args.case)));
    }
    if args.list {
        return app.out.rows(&cases.into_iter().map(ListedCase::from).collect::<Vec<_>>());
    }
    let bus = Isolated::new(ProviderRegistry::builtin(), &app.url()?.0)?;
    // The first connection reports errors of the URL or the server. The cases need no stream of the URL.
    match app.connect_to_look().await {
        Ok(_) | Err(Failure::Missing(_)) => {}
        Err(failure) => return Err(failure),
    }
    // The table reports a broken promise, so that the panic prints nothing.
    std::panic::set_hook(Box::new(|_| {}));
    let mut running = JoinSet::new();
    let mut rows = Vec::new();
    let mut asked = pin!(asked_to_end());
    let mut is_asked = false;
    for case in cases {
        if running.len() >= AT_ONCE {
            tokio::select! {
                () = &mut asked => is_asked = true,
                done = running.join_next() => rows.extend(ended(done)),
            }
        }
        if is_asked {
            // The running cases delete their streams at their end.
            break;
        }
        let bus = bus.clone();
        running.spawn_blocking(move || check(case, &bus));
    }
    while let Some(done) = running.join_next().await {
        rows.extend(ended(Some(done)));
    }
    drop(std::panic::take_hook());
    if is_asked {
        return Err(Failure::Other("ended by a signal before all cases were checked".to_owned()));
    }
    rows.sort_by_key(|row| (row.outcome, row.case));
    if args.per_case {
        app.out.rows(&rows)?;
    } else {
        app.out.rows(&capabilities(&rows))?;
    }
    let count = |outcome| rows.iter().filter(|row| row.outcome == outcome).count();
    let failed = count("failed");
    for broken in rows.iter().filter(|row| row.outcome == "failed") {
        app.out.say(&format!("{}: {}\n  {}", broken.case, broken.promise, broken.detail))?;
    }
    app.out.say(&format!(
        "cases: {} honoured, {} refused, {failed} failed, {} not applicable",
        count("honoured"),
        count("refused"),
        count("not applicable")
    ))?;
    if failed > 0 {
        return Err(Failure::Found(format!("{failed} promises are broken")));
    }
    let unchecked: Vec<_> = rows.iter().filter(|row| row.outcome != "honoured").map(|row| row.case).collect();
    if args.require_all && !unchecked.is_empty() {
        let cases = text::count(unchecked.len() as u64, "case");
        return Err(Failure::Found(format!(
            "--require-all: {cases} refused or not applicable: {}",
            unchecked.join(", ")
        )));
    }
    Ok(())
}

fn ended(done: Option<Result<CaseRow, tokio::task::JoinError>>) -> Option<CaseRow> {
    done.and_then(Result::ok)
}

fn check(case: &'static testkit::Case, bus: &Isolated) -> CaseRow {
    let ran = catch_unwind(AssertUnwindSafe(|| testkit::run_case(case.name, bus, Clock::Real)));
    let mut refused = None;
    let (outcome, detail) = match ran {
        Ok(testkit::Outcome::Kept) => ("honoured", String::new()),
        Ok(testkit::Outcome::Refused(need)) => {
            refused = Some(need);
            ("refused", format!("has no {}", name(need)))
        }
        Ok(testkit::Outcome::NotApplicable(why)) => ("not applicable", why.to_owned()),
        Ok(_) => ("not applicable", String::new()),
        Err(panic) => ("failed", said(&*panic)),
    };
    CaseRow { case: case.name, outcome, detail, promise: case.promise, needs: case.needs, refused }
}

/// Returns the message of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_promise_fails_its_capabilities_and_no_other() {
        let row = |case, outcome, needs, refused| CaseRow {
            case,
            outcome,
            detail: String::new(),
            promise: "",
            needs,
            refused,
        };
        let rows = [
            row("a", "honoured", &[][..], None),
            row("b", "honoured", &[Need::Durable], None),
            row("c", "failed", &[Need::Durable, Need::Redelivery], None),
            row("d", "refused", &[Need::Durable, Need::Term], Some(Need::Term)),
        ];
        let found = capabilities(&rows);
        let of = |name| {
            found.iter().find(|row| row.capability == name).map(|row| (row.outcome, row.cases)).unwrap()
        };
        assert_eq!(of(EVERY_BUS), ("honoured", 1));
        assert_eq!((of("durable"), of("redelivery")), (("failed", 1), ("failed", 1)));
        assert_eq!((of("term"), of("dedup")), (("refused", 1), ("not checked", 0)));
    }
}

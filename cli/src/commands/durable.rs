//! Opens the consumer of `sub --durable`: an existing one, found by its stored or its program's name, or a new one.
//!
//! On an existing consumer the tool changes nothing for the other members without `--force`.

use std::sync::Arc;

use a3s_event::{
    ConsumerInfo, ErrorKind, EventBus, EventProvider, SubscribeOptions, Subscription, SubscriptionFilter,
};

use super::subscribe::{Args, eprint_note, eprint_warning, options};
use crate::consumer_name::shown;
use crate::failure::{Failure, Outcome};

/// A consumer, new or existing.
struct Chosen {
    /// Empty for a new one that the library names.
    name: String,
    /// The name for messages.
    shown: String,
    filter: String,
    is_there: bool,
}

impl Chosen {
    fn named(name: &str, filter: String, is_there: bool) -> Self {
        Self { name: name.to_owned(), shown: name.to_owned(), filter, is_there }
    }

    fn there(consumer: &ConsumerInfo) -> Self {
        let (name, filter) = (consumer.name.clone(), consumer.filter.clone());
        Self { name, shown: shown(consumer), filter, is_there: true }
    }
}

/// The durable consumers of a bus that match a name.
struct Known {
    /// The consumer stored under this name.
    exact: Option<ConsumerInfo>,
    /// The consumers of the program with this name, one per subject.
    of_program: Vec<ConsumerInfo>,
}

pub(super) async fn open(
    provider: &Arc<dyn EventProvider>,
    name: &str,
    args: &Args,
) -> Outcome<Vec<Box<dyn Subscription>>> {
    let bus = EventBus::from_provider(Arc::clone(provider));
    let known = known(&bus, name).await?;
    let chosen = match &known {
        Some(known) => choose(&bus, known, name, args)?,
        None => unlisted(&bus, name, args)?,
    };
    if let Some(there) = chosen.iter().find(|chosen| chosen.is_there) {
        refuse_unforced(there, known.is_some(), args)?;
    }
    let mut subscriptions = Vec::with_capacity(chosen.len());
    for mut consumer in chosen {
        if consumer.name.is_empty() {
            consumer = made(&bus, name, &consumer.filter, args).await?;
        }
        if known.is_some() && !consumer.is_there {
            eprint_note(&format!("the consumer '{}' of '{}' is new", consumer.shown, consumer.filter));
        }
        let mut subscription = join(&**provider, &consumer, args).await?;
        subscription.keep_undecodable();
        subscriptions.push(subscription);
    }
    Ok(subscriptions)
}

/// Returns the consumers of a name; `None` if the bus does not allow listing them.
async fn known(bus: &EventBus, name: &str) -> Outcome<Option<Known>> {
    if bus.provider().capabilities().consumer_info.is_no() {
        return Ok(None);
    }
    let listed = async {
        let exact = bus.consumers().await?.into_iter().find(|known| known.durable && known.name == name);
        Ok(Known { exact, of_program: bus.consumers_of(name).await? })
    };
    match listed.await {
        Ok(known) => Ok(Some(known)),
        Err(error) if a3s_event::EventError::kind(&error) == ErrorKind::Unauthorized => {
            eprint_warning(&Failure::Other(format!(
                "listing consumers is not allowed ({error}): a consumer '{name}' may exist"
            )));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn choose(bus: &EventBus, known: &Known, name: &str, args: &Args) -> Outcome<Vec<Chosen>> {
    let Known { exact, of_program } = known;
    let of_filter = |filter: &String| of_program.iter().find(|known| known.filter == *filter);
    match (exact, args.filters.as_slice()) {
        (Some(exact), [] | [_]) => {
            if let Some(program) = of_program.first() {
                eprint_warning(&Failure::Other(format!(
                    "'{name}' is the consumer stored under this name; the program '{name}' reads '{}' through another consumer",
                    program.filter
                )));
            }
            let filter = args.filters.first().unwrap_or(&exact.filter).clone();
            Ok(vec![Chosen { filter, ..Chosen::there(exact) }])
        }
        (Some(exact), filters) if !filters.contains(&exact.filter) => Err(Failure::Usage(format!(
            "there is a consumer '{name}' that reads '{}': give that filter as well, or another name",
            exact.filter
        ))),
        (None, []) if of_program.is_empty() => {
            let filter = format!("{}.>", bus.provider().subject_prefix());
            Ok(vec![Chosen::named(name, filter, false)])
        }
        (None, []) => Ok(of_program.iter().map(Chosen::there).collect()),
        (None, [filter]) if of_program.is_empty() => Ok(vec![Chosen::named(name, filter.clone(), false)]),
        (None, [filter]) => match of_filter(filter) {
            Some(known) => Ok(vec![Chosen::there(known)]),
            None => Err(Failure::Usage(format!(
                "'{name}' reads {}: give one of these filters, or none for all of them, or another name",
                of_program.iter().map(|known| known.filter.as_str()).collect::<Vec<_>>().join(", ")
            ))),
        },
        (exact, filters) => {
            let of_exact = |filter: &String| exact.as_ref().filter(|exact| exact.filter == *filter);
            let chosen = |filter: &String| match of_exact(filter).or_else(|| of_filter(filter)) {
                Some(known) => Chosen::there(known),
                None => Chosen { name: String::new(), ..Chosen::named(name, filter.clone(), false) },
            };
            Ok(filters.iter().map(chosen).collect())
        }
    }
}

/// Creates one of several consumers, under the name that the library gives it.
async fn made(bus: &EventBus, name: &str, filter: &str, args: &Args) -> Outcome<Chosen> {
    let subscription = SubscriptionFilter {
        subscriber_id: name.to_owned(),
        subjects: vec![filter.to_owned()],
        durable: true,
        options: options(args),
    };
    bus.update_subscription(subscription).await?;
    for mut opened in bus.create_subscriber(name).await? {
        opened.close().await?;
    }
    let made = bus.consumers_of(name).await?.into_iter().find(|known| known.filter == filter);
    let made = made.ok_or_else(|| Failure::Other(format!("the consumer of '{filter}' does not exist")))?;
    Ok(Chosen { is_there: false, ..Chosen::there(&made) })
}

/// Returns the consumer stored under this name, if consumers cannot be listed. Others may use it.
fn unlisted(bus: &EventBus, name: &str, args: &Args) -> Outcome<Vec<Chosen>> {
    match args.filters.as_slice() {
        [] => {
            let filter = format!("{}.>", bus.provider().subject_prefix());
            Ok(vec![Chosen::named(name, filter, true)])
        }
        [filter] => Ok(vec![Chosen::named(name, filter.clone(), true)]),
        _ => Err(Failure::Usage(
            "several filters need the names of their consumers, which cannot be listed here: give one"
                .to_owned(),
        )),
    }
}

/// Refuses options that take events from the other members of a consumer, or change its settings for them.
fn refuse_unforced(there: &Chosen, is_known: bool, args: &Args) -> Outcome {
    let Some(asked) = args.foreign().filter(|_| !args.force) else { return Ok(()) };
    let name = &there.shown;
    let existence = if is_known { "exists" } else { "may exist" };
    Err(Failure::Usage(format!(
        "consumer '{name}' of '{}' {existence}, and {asked} {}. Give another name, or --force to do it",
        there.filter,
        match asked {
            "--ack nak" | "--ack term" | "--max-deliver" =>
                "takes events from its other members, without a dead letter",
            _ => "changes its settings for all members",
        }
    )))
}

/// Opens a consumer. An existing one keeps its settings, except the requested ones.
async fn join(provider: &dyn EventProvider, chosen: &Chosen, args: &Args) -> Outcome<Box<dyn Subscription>> {
    let Chosen { name, shown, filter, is_there } = chosen;
    let asked = options(args);
    let Some(asked) = asked else { return Ok(provider.subscribe_durable(name, filter).await?) };
    if !is_there {
        return Ok(provider.subscribe_durable_with_options(name, filter, &asked).await?);
    }
    let subscription = provider.subscribe_durable(name, filter).await?;
    let settings = subscription.settings().map(|settings| settings.to_options());
    let Some(settings) = settings else {
        if args.foreign().is_some() {
            drop(subscription);
            return Ok(provider.subscribe_durable_with_options(name, filter, &asked).await?);
        }
        eprint_note(&format!(
            "consumer '{shown}' of '{filter}' exists: it continues at its position, and --from has no effect"
        ));
        return Ok(subscription);
    };
    let merged = SubscribeOptions {
        max_deliver: args.max_deliver.or(settings.max_deliver),
        backoff_secs: if args.backoff.is_empty() { settings.backoff_secs } else { args.backoff.clone() },
        max_ack_pending: args.max_ack_pending.or(settings.max_ack_pending),
        deliver_policy: args.from.clone().unwrap_or(settings.deliver_policy),
        ack_wait_secs: args.ack_wait.or(settings.ack_wait_secs),
    };
    drop(subscription);
    Ok(provider.subscribe_durable_with_options(name, filter, &merged).await?)
}

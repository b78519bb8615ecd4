//! What another process does with a file.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
use a3s_event::{EventError, EventProvider, PublishOptions};

use crate::process::{Process, Role, role_to_play, say};
use crate::{FILTER, durable, event, next_unless_settled, open, publish};

/// Retention takes part in the crashes.
pub(crate) const MAX_EVENTS: u64 = 300;

/// Another process with a role on a file.
pub(crate) fn start(role: &str, file: &Path, name: &str) -> Process {
    Process::start("child::role", role, file, name)
}

/// The same, with these faults injected into what it asks of the system. `None` where strace cannot do that.
pub(crate) fn start_with_faults(inject: &str, role: &str, file: &Path, name: &str) -> Option<Process> {
    let works = |command: &mut Command| command.output().is_ok_and(|done| done.status.success());
    if !works(Command::new("strace").args(["-qq", "-o", "/dev/null", "-e", "trace=none", "true"])) {
        println!("not checked: strace, which injects faults, is missing or may not trace here");
        return None;
    }
    let trace = format!("trace={}", inject.split(':').next().unwrap());
    let inject = format!("inject={inject}");
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    Some(Process::start_under(&strace, "child::role", role, file, name))
}

#[test]
#[ignore = "what the other process runs"]
fn role() {
    let Some(Role { role, target, name }) = role_to_play() else { return };
    let file = Path::new(&target);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "publish" => publish_slowly(file).await,
            "hold" => hold_one(file).await,
            "share" => share(file).await,
            "crash" => work_until_killed(file, &name).await,
            "fail" => publish_until_it_fails(file).await,
            "recover" => publish_through_an_outage(file).await,
            other => panic!("no role is named {other}"),
        }
    });
}

/// Publishes a few events, with pauses in which a reader goes to sleep.
async fn publish_slowly(file: &Path) {
    let provider = open(file).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(120)).await;
        publish(&provider, "slow").await;
    }
    say("done");
    std::future::pending::<()>().await;
}

/// Takes an event and keeps it.
async fn hold_one(file: &Path) {
    let provider = open(file).await;
    let mut subscription = durable(&provider, "shared").await;
    let _held = subscription.next_delivery().await.unwrap().unwrap();
    say("holding");
    std::future::pending::<()>().await;
}

/// Works on the shared consumer.
async fn share(file: &Path) {
    let provider = open(file).await;
    // Nobody dies here: a lease ends for nobody, however slow the machine is.
    let mut subscription = provider.subscribe_durable("shared", FILTER).await.unwrap();
    say("ready");
    loop {
        let delivery = subscription.next_delivery().await.unwrap().unwrap();
        // Said first, so that whatever is settled was told.
        say(&format!("took {}", delivery.sequence()));
        delivery.ack_confirmed().await.unwrap();
    }
}

/// Publishes until the disk fails, and says what still works then.
async fn publish_until_it_fails(file: &Path) {
    let provider = match SqliteProvider::connect(SqliteConfig::file(file)).await {
        Ok(provider) => provider,
        Err(error) => return say(&format!("not opened {}", error.kind())),
    };
    let first = loop {
        match provider.publish(&event("fail")).await {
            Ok(sequence) => say(&format!("stored {sequence}")),
            Err(error) => break error,
        }
    };
    say(&format!("failed {} {}", first.kind(), first.may_be_stored()));
    let next = provider.publish(&event("fail")).await.unwrap_err();
    say(&format!("refused {} {}", next.kind(), next.may_be_stored()));
    say(&format!("readable {}", provider.history(None, usize::MAX).await.unwrap().len()));
    let _ = provider.close().await;
}

/// Publishes until the disk fails and then until it is good again, with consumers that were open all the time.
async fn publish_through_an_outage(file: &Path) {
    let provider = open(file).await;
    let mut worker = durable(&provider, "worker").await;
    let mut ephemeral = provider.subscribe(FILTER).await.unwrap();
    let mut failures = 0;
    let mut behind = 0;
    for number in 0..10_000 {
        let mut event = event("outage");
        event.id = format!("{number}");
        let options = PublishOptions { msg_id: Some(event.id.clone()), ..Default::default() };
        match provider.publish_with_options(&event, &options).await {
            Ok(sequence) => say(&format!("stored {sequence} {number}")),
            Err(error) => {
                assert_eq!(error.kind(), a3s_event::ErrorKind::Storage, "{error}");
                if failures == 0 {
                    say(&format!("failed {}", error.may_be_stored()));
                    say(&format!("healthy {}", provider.health().await.unwrap()));
                    say(&format!("readable {}", provider.history(None, usize::MAX).await.is_ok()));
                } else {
                    assert!(error.is_retryable() && !error.may_be_stored(), "{error}");
                }
                failures += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        }
        behind += usize::from(failures > 0);
        if behind == 5 {
            break;
        }
    }
    say(&format!("healthy {}", provider.health().await.unwrap()));
    for (who, is_durable, subscription) in
        [("worker", true, &mut worker), ("ephemeral", false, &mut ephemeral)]
    {
        // What was leased in the failed transaction comes again.
        while let Some(next) = next_unless_settled(&provider, is_durable, &mut **subscription).await {
            let delivery = next.unwrap().unwrap();
            say(&format!("{who} {} {}", delivery.sequence(), delivery.event().id));
            delivery.ack().await.unwrap();
        }
    }
    provider.close().await.unwrap();
}

/// Publishes and consumes as fast as it can, and says what it was told.
async fn work_until_killed(file: &Path, name: &str) {
    let config = SqliteConfig::file(file).max_events(MAX_EVENTS);
    let provider = std::sync::Arc::new(SqliteProvider::connect(config).await.unwrap());
    say("ready");
    for publisher in 0..4 {
        let (provider, name) = (provider.clone(), name.to_owned());
        tokio::spawn(async move {
            for number in 0.. {
                let mut event = event("crash");
                event.id = format!("{name}-{publisher}-{number}");
                let options = PublishOptions { msg_id: Some(event.id.clone()), ..Default::default() };
                let sequence = provider.publish_with_options(&event, &options).await.unwrap();
                say(&format!("stored {sequence} {}", event.id));
            }
        });
    }
    let mut subscription = durable(&provider, "worker").await;
    loop {
        match subscription.next_delivery().await {
            Ok(Some(delivery)) => {
                let sequence = delivery.sequence();
                say(&format!("delivered {sequence} {}", delivery.num_delivered()));
                if sequence % 2 == 0 {
                    delivery.ack_confirmed().await.unwrap();
                    say(&format!("acked {sequence}"));
                } else {
                    delivery.ack().await.unwrap();
                    say(&format!("sent {sequence}"));
                }
            }
            Err(EventError::Lagged { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

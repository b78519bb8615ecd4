//! Users with few permissions, and passwords. Under the permissions that the page documents runs the whole kit.

use a3s_event::{ErrorKind, EventError};
use tracing_subscriber::layer::SubscriberExt;

use super::traced::{Log, traced};
use super::*;

const PASSWORD: &str = "canary-of-a-password";

/// A server with the user that the page documents, with further rules.
async fn server_with_user(binary: &std::path::Path, further: &[&str]) -> RedisServer {
    const PAGE: &str = include_str!("../../src/provider/redis/docs.md");
    let server = RedisServer::start_binary(binary, "").await;
    let (_, rules) = PAGE.split_once("ACL SETUSER ").unwrap();
    let (rules, _) = rules.split_once("```").unwrap();
    let rules = rules.replace(">PASSWORD", &format!(">{PASSWORD}"));
    let words: Vec<_> = ["ACL", "SETUSER"]
        .into_iter()
        .chain(rules.split_whitespace())
        .chain(further.iter().copied())
        .collect();
    server.command(&words).await;
    server
}

fn as_user(server: &RedisServer) -> RedisConfig {
    config(server).stream_name("orders").user_and_password("orders", PASSWORD)
}

/// Returns all that an error says.
fn told(error: &EventError) -> String {
    let error: &(dyn std::error::Error + 'static) = error;
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(|error| format!("{error} {error:?}")).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn without_the_channel_events_arrive_within_the_ack_wait() {
    let log = Log::default();
    let _guard = traced(tracing_subscriber::registry().with(log.clone()));
    on_each(async |version, binary| {
        let server = server_with_user(&binary, &["resetchannels"]).await;
        let publisher = RedisProvider::connect(as_user(&server)).await.unwrap();
        let consumer = RedisProvider::connect(as_user(&server)).await.unwrap();
        let mut member =
            consumer.subscribe_durable_with_options("worker", FILTER, &short_leases()).await.unwrap();
        for number in 1..=2 {
            let publishing = async {
                let before = server.info("cmdstat_evalsha").await;
                // The member looks for events, finds none and waits.
                eventually("a look", async || server.info("cmdstat_evalsha").await != before).await;
                publisher.publish(&numbered(number)).await.unwrap();
            };
            let (delivery, ()) = tokio::join!(next(&mut *member), publishing);
            assert_eq!(delivery.sequence(), number, "{version}");
            delivery.ack_confirmed().await.unwrap();
        }
        assert!(publisher.health().await.unwrap());
    })
    .await;
    let is_told = |line: &String| line.starts_with("WARN") && line.contains("does not permit to subscribe");
    assert!(log.lines().iter().any(is_told), "{:?}", log.lines());
}

#[tokio::test]
async fn mirror_groups_need_their_permission() {
    on_each(async |_, binary| {
        let server = server_with_user(&binary, &[]).await;
        let provider = RedisProvider::connect(as_user(&server).mirror_groups(true)).await.unwrap();
        let Err(refused) = provider.subscribe_durable("worker", FILTER).await else { panic!("not refused") };
        assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Unauthorized, false), "{refused}");
        assert_eq!(provider.consumers().await.unwrap().len(), 0);
        server.command(&["ACL", "SETUSER", "orders", "+xgroup"]).await;
        let mut member = provider.subscribe_durable("worker", FILTER).await.unwrap();
        publish_numbers(&provider, 1..=3).await;
        next(&mut *member).await.ack_confirmed().await.unwrap();
        server.command(&["ACL", "SETUSER", "orders", "-xgroup"]).await;
        assert_eq!(next(&mut *member).await.sequence(), 2, "a display stops no delivery");
        assert_eq!(provider.unsubscribe("worker").await.ok(), Some(()));
    })
    .await;
}

#[tokio::test]
async fn no_text_has_a_password() {
    let log = Log::default();
    let _guard = traced(tracing_subscriber::registry().with(log.clone()));
    for (version, binary) in versions() {
        let server = server_with_user(&binary, &[]).await;
        let wrong = "another-canary";
        let refused = RedisProvider::connect(as_user(&server).password(wrong)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Unauthorized, false), "{refused}");
        let url = format!("redis://orders:{wrong}@{}/orders", server.address());
        let Err(by_url) = a3s_event::EventBus::connect(&url).await else { panic!("{version}: not refused") };
        let provider = RedisProvider::connect(as_user(&server)).await.unwrap();
        // The user loses a permission: the server names the user and the command.
        server.command(&["ACL", "SETUSER", "orders", "-xadd"]).await;
        let denied = provider.publish(&numbered(1)).await.unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Unauthorized, "{denied}");
        let mut texts = vec![
            told(&refused),
            told(&by_url),
            told(&denied),
            format!("{provider:?} {:?}", provider.config()),
        ];
        texts.extend(log.lines());
        for text in texts {
            assert!(!text.contains(PASSWORD) && !text.contains(wrong), "{version}: {text}");
        }
    }
}

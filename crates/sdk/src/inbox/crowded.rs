//! Senders who have their share, at a real relay.

use std::collections::BTreeMap;
use std::time::Duration;

use stvor_relay::{Config, Handle, Relay};

use crate::{App, Client, Message, Messages, SendOptions, SendWait};

const LIMIT: usize = 200;
const SHARE: usize = LIMIT / crate::limits::INBOX_SHARES;
/// More than the relay delivers without an ACK.
const MORE: usize = 140;

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it happens in time")
}

async fn app(relay: &Handle) -> App {
    let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url());
    app.in_memory().open().await.unwrap()
}

/// Sends numbers and waits until the relay has them.
async fn send(client: &Client, numbers: core::ops::Range<usize>) {
    for number in numbers {
        let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
        soon(client.send_with("bob", number.to_string(), options)).await.unwrap();
    }
    soon(client.flush(Duration::from_secs(60))).await.unwrap();
}

async fn filled(client: &Client, waiting: usize) {
    soon(async {
        while client.core().inbox.waiting() < waiting {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn group_mail_of_a_sender_who_has_their_share_holds_up_no_other_members_and_no_removal() {
    let relay = Relay::start(Config::mock(0)).await.unwrap();
    let app = app(&relay).await;
    let bob = app.connect("bob").await.unwrap();
    bob.core().inbox.set_limit(LIMIT);
    let (eve, carol) = (app.connect("eve").await.unwrap(), app.connect("carol").await.unwrap());
    let of_carol = soon(carol.create_group("friends", ["bob", "eve"])).await.unwrap();
    let id = of_carol.id();
    let knows = async |client: &Client| {
        soon(async {
            while client.group(id).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    knows(&bob).await;
    knows(&eve).await;
    let of_eve = eve.group(id).await.unwrap();
    for number in 0..SHARE + MORE {
        soon(of_eve.send(number.to_string())).await.unwrap();
    }
    soon(eve.flush(Duration::from_secs(60))).await.unwrap();
    filled(&bob, SHARE).await;
    soon(of_carol.send("0")).await.unwrap();
    filled(&bob, SHARE + 1).await;
    soon(of_carol.remove("eve")).await.unwrap();
    let of_bob = bob.group(id).await.unwrap();
    soon(async {
        while of_bob.info().await.unwrap().members.len() > 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(bob.core().inbox.waiting(), SHARE + 1);
    let got = take(&mut bob.messages(), SHARE + 1).await;
    assert_eq!(got["carol"], [0]);
    assert_eq!(got["eve"], (0..SHARE).collect::<Vec<_>>());
    relay.shutdown().await;
}

async fn take(messages: &mut Messages, count: usize) -> BTreeMap<String, Vec<usize>> {
    let mut got = BTreeMap::<String, Vec<usize>>::new();
    for _ in 0..count {
        let message: Message = soon(messages.next()).await.unwrap();
        got.entry(message.from.to_string()).or_default().push(message.text().unwrap().parse().unwrap());
    }
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_of_a_sender_who_has_their_share_holds_nobody_up_and_comes_in_order_once_there_is_room() {
    let relay = Relay::start(Config::mock(0)).await.unwrap();
    let app = app(&relay).await;
    let bob = app.connect("bob").await.unwrap();
    bob.core().inbox.set_limit(LIMIT);
    let (eve, carol) = (app.connect("eve").await.unwrap(), app.connect("carol").await.unwrap());
    // Bob reads nothing. Eve fills her share, and more than the relay's window behind it.
    send(&eve, 0..SHARE + MORE).await;
    filled(&bob, SHARE).await;
    send(&carol, 0..1).await;
    filled(&bob, SHARE + 1).await;
    // Nor does a fresh connection change anything.
    bob.core().kick.notify_one();
    send(&carol, 1..3).await;
    filled(&bob, SHARE + 3).await;
    assert_eq!(bob.core().inbox.waiting(), SHARE + 3);

    let got = take(&mut bob.messages(), SHARE + MORE + 3).await;
    let all: Vec<usize> = (0..SHARE + MORE).collect();
    assert_eq!(got, BTreeMap::from([("carol".to_owned(), vec![0, 1, 2]), ("eve".to_owned(), all)]));
    bob.close().await;
    relay.shutdown().await;
}

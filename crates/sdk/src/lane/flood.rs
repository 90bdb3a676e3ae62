//! A flood through a client and a relay: every send that is accepted arrives once, every other one is refused with BACKPRESSURE,
//! and what waits meanwhile is bounded.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use super::*;
use crate::executor::Executor;
use crate::{App, SendOptions, SendWait};

/// Callers at once: more than have room.
const CALLERS: usize = 256;
const ROOM: Executor = Executor {
    // More than there are callers: what the relay has not accepted is another bound (QUOTA_EXCEEDED).
    max_pending: 2 * CALLERS,
    max_queued: 64,
    max_queued_per_peer: Some(48),
    max_queued_bytes: 16 * 1024,
    on_pressure: crate::executor::OnPressure::Reject,
};

/// Calls of the flood: `STVOR_FLOOD_SENDS` says how many, for a long run.
fn sends() -> usize {
    std::env::var("STVOR_FLOOD_SENDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_send_of_a_flood_arrives_once_and_every_other_is_refused() {
    let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await.unwrap();
    let open = |executor: Executor| {
        let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).executor(executor);
        app.in_memory().open()
    };
    let (from, to) = (open(ROOM).await.unwrap(), open(Executor::default()).await.unwrap());
    let alice = from.connect("alice").await.unwrap();
    let names = ["bob", "carol"];
    let mut receivers = Vec::new();
    let arrived: Arc<Mutex<HashMap<ContentId, u32>>> = Arc::default();
    for name in names {
        let client = to.connect(name).await.unwrap();
        let arrived = Arc::clone(&arrived);
        receivers.push(tokio::spawn(async move {
            let mut inbox = client.messages();
            while let Some(message) = inbox.next().await {
                *arrived.lock().unwrap().entry(message.id).or_default() += 1;
            }
        }));
    }
    for name in names {
        alice.send(name, "a session, before the flood").await.unwrap();
    }
    let calls = Arc::new(AtomicUsize::new(sends()));
    let most = Arc::new(Mutex::new((0, 0, 0)));
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        let (alice, calls, most) = (alice.clone(), Arc::clone(&calls), Arc::clone(&most));
        callers.push(tokio::spawn(async move {
            let (mut accepted, mut refused) = (Vec::new(), 0_usize);
            let one_left = |left: usize| left.checked_sub(1);
            while calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_left).is_ok() {
                // One of the two gets most of it.
                let to = names[usize::from(number.is_multiple_of(8))];
                let options = SendOptions { wait: SendWait::Accepted, ..SendOptions::default() };
                match alice.send_with(to, "x".repeat(200), options).await {
                    Ok(receipt) => accepted.push(receipt.id()),
                    Err(error) => {
                        assert_eq!(error.code(), "BACKPRESSURE");
                        refused += 1;
                        tokio::task::yield_now().await;
                    }
                }
                let (waiting, bytes) = alice.core().pressure.waiting();
                let mut most = most.lock().unwrap();
                *most = (most.0.max(waiting), most.1.max(bytes), most.2.max(alice.pending()));
            }
            (accepted, refused)
        }));
    }
    let (mut accepted, mut refused) = (HashSet::new(), 0);
    for caller in callers {
        let (some, others) = caller.await.unwrap();
        let count = accepted.len() + some.len();
        accepted.extend(some);
        assert_eq!(accepted.len(), count, "no id is given twice");
        refused += others;
    }
    assert_eq!(accepted.len() + refused, sends(), "each call has one answer");
    assert!(!accepted.is_empty() && refused > 0, "{} accepted, {refused} refused", accepted.len());
    let (waiting, bytes, pending) = *most.lock().unwrap();
    assert!(waiting <= ROOM.max_queued && bytes <= ROOM.max_queued_bytes, "{waiting} calls, {bytes} bytes");
    // A caller waits for its message; so no more of them are ever under way than there are callers.
    assert!(pending <= CALLERS + names.len(), "{pending} pending");
    assert_eq!(alice.flush(Duration::from_secs(60)).await.unwrap(), 0);
    let all = async {
        while arrived.lock().unwrap().len() < accepted.len() + names.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let arrives = tokio::time::timeout(Duration::from_secs(60), all).await;
    assert!(arrives.is_ok(), "{} of {} arrived", arrived.lock().unwrap().len(), accepted.len());
    to.close().await.unwrap();
    for receiver in receivers {
        receiver.await.unwrap();
    }
    let arrived = core::mem::take(&mut *arrived.lock().unwrap());
    assert!(accepted.iter().all(|id| arrived.get(id) == Some(&1)), "each once");
    assert_eq!(arrived.len(), accepted.len() + names.len(), "and nothing that was refused");
    assert_eq!(alice.core().pressure.waiting(), (0, 0));
    from.close().await.unwrap();
    relay.shutdown().await;
}

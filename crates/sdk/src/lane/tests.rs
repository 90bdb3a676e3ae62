use std::sync::Weak;

use stvor_base::{DeviceId, UserId};
use stvor_protocol::Standing;
use stvor_store::{
    ChangeSet, MemoryStore, Scan, Store, StoreError, StoreFacts, StorePlace, StoreProvider, Table,
};
use stvor_wire::Code;
use stvor_wire::server::{Deliver, Nack, Subject};
use tokio::sync::oneshot;

use super::*;
use crate::clock::testing::soon;
use crate::executor::{Executor, Pressure};
use crate::hiccups::{self, Hiccups};
use crate::rows::{MessageRow, PendingRow, PointerRow};
use crate::{App, ConnectOptions};

/// The lane of a client whose relay is not there, with a message that waits.
async fn offline(client: &crate::Client) -> (Lane, mpsc::UnboundedReceiver<Order>) {
    let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let (work, orders) = mpsc::unbounded_channel();
    let depth = Arc::new(AtomicUsize::new(1));
    let mut lane = Lane::fresh(Arc::clone(client.core()), peer, (depth, work.downgrade()));
    lane.reload().await.unwrap();
    let (reply, committed) = oneshot::channel();
    let id = ContentId::from_bytes([1; 16]);
    let request = SendRequest {
        id,
        content: "hello?".into(),
        timeout: Duration::ZERO,
        own_timeout: false,
        reply: reply.into(),
        room: None,
    };
    lane.turn(&mut Vec::new(), &mut vec![Work::Send(request)], None).await;
    committed.await.unwrap().unwrap();
    (lane, orders)
}

async fn offline_client() -> crate::Client {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
    let app = app.in_memory().open().await.unwrap();
    let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
    app.connect_with("alice", options).await.unwrap()
}

#[tokio::test]
async fn a_fault_in_what_a_lane_waits_for_is_an_answer() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let (work, mut orders) = mpsc::unbounded_channel();
    lane.me = work.downgrade();
    lane.post_later(async { panic!("a fault on purpose") }, Work::Wake);
    let order = tokio::time::timeout(Duration::from_secs(30), orders.recv()).await.unwrap().unwrap();
    assert!(matches!(order.into_work(), Work::Wake));
}

#[tokio::test]
async fn a_lane_that_can_do_nothing_rests() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let past = Instant::now().checked_sub(2 * limits::LANE_IDLE).unwrap();
    let rest = |lane: &Lane| lane.next_deadline().saturating_duration_since(Instant::now());
    let a_while = Duration::from_millis(500);
    lane.active_at = past;
    assert!(!lane.may_sleep());
    assert!(rest(&lane) > a_while, "a message waits for the connection");
    lane.paused_until = Some(past);
    assert!(rest(&lane) > a_while, "the relay's pause is over, but it is not there");
    lane.due_since = Some(past);
    assert!(rest(&lane) > a_while, "a receipt waits");
    lane.conversation = None;
    assert!(rest(&lane) > a_while, "the store failed");
}

#[tokio::test]
async fn what_a_failed_commit_was_to_change_is_as_the_store_has_it() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let pending = |lane: &Lane| (lane.count_pending(), lane.depth.load(Ordering::Relaxed), client.pending());
    assert_eq!(pending(&lane), ((1, 1), 1, 1));
    // As the store has it: a message that was sealed under the lane's first number.
    let mut step = Step::new(lane.row.clone());
    let send = lane.number(vec![7; 64], &mut step).unwrap();
    let sent = (send.msg_id, send.lane_epoch, send.lane);
    lane.push_sealed_control(send, &mut step);
    lane.commit(step).await;
    lane.sealed[0].sent_in = 3;
    assert_eq!(pending(&lane), ((1, 2), 1, 2));

    let mut step = Step::new(lane.row.clone());
    lane.renumber(&mut step).await;
    let (reply, deleted) = oneshot::channel();
    lane.take_work(Work::Command(Command::Delete(reply.into())), &mut step).await;
    step.broken = Some(Error::not_ready("the test wants it"));
    lane.commit(step).await;
    deleted.await.unwrap().unwrap_err();
    assert!(lane.conversation.is_none(), "nothing is sent before the lane was read again");
    lane.turn(&mut Vec::new(), &mut Vec::new(), None).await;
    assert_eq!(pending(&lane), ((1, 2), 1, 2));
    let one = &lane.sealed[0];
    assert_eq!((one.send.msg_id, one.send.lane_epoch, one.send.lane), sent);
}

#[tokio::test]
async fn who_announces_themselves_over_and_over_is_sent_everything_again_once_a_second() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let mut step = Step::new(lane.row.clone());
    let send = lane.number(vec![7; 64], &mut step).unwrap();
    lane.push_sealed_control(send, &mut step);
    lane.commit(step).await;
    let begun = Instant::now();
    let mut times = 0;
    for tenth in 0..40 {
        lane.sealed[0].sent_in = 3;
        lane.came = true;
        lane.resend_to_comer(begun + tenth * Duration::from_millis(100));
        times += u32::from(lane.sealed[0].sent_in == 0);
    }
    assert_eq!(times, 4);
    assert!(lane.came, "the last time is not forgotten");
}

/// A store in memory that several processes may have open.
#[derive(Debug)]
struct Shared(Arc<MemoryStore>);

#[async_trait::async_trait]
impl StoreProvider for Shared {
    fn facts(&self) -> StoreFacts {
        StoreFacts { kind: "shared memory", durable: false, shared: true, atomic: true, local: false }
    }

    async fn open(&self, _: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::clone(&self.0) as Arc<dyn Store>)
    }
}

/// A client on such a store whose relay is not there.
async fn shared_client(directory: &tempfile::TempDir) -> crate::Client {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
    let app = app.store(Arc::new(Shared(Arc::default()))).keyfile(directory.path().join("key"));
    let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
    app.open().await.unwrap().connect_with("alice", options).await.unwrap()
}

#[tokio::test]
async fn a_conversation_that_can_not_be_read_is_told_and_keeps_no_instance_from_receiving() {
    let directory = tempfile::tempdir().unwrap();
    let client = shared_client(&directory).await;
    let core = client.core();
    let [bob, carol] = ["bob", "carol"].map(|name| Address::new(UserId::new(name).unwrap(), DeviceId::FIRST));
    let place = Place { order: 1, id: ContentId::from_bytes([1; 16]) };
    let row = PendingRow { body: PendingBody::Message(place), sealed: None, created_at: core.now() };
    let mut changes = ChangeSet::new();
    changes
        .put(crate::keys::lane(&core.store, &bob), vec![255])
        .put(crate::keys::lane(&core.store, &carol), LaneRow::default().encode(&carol))
        .put(crate::keys::pending(&carol, 1), row.encode());
    core.store.commit(changes).await.unwrap();
    let mut events = client.events();
    core.stop_receiving();
    core.instances.hurry();
    let mut told = None;
    loop {
        match soon(events.next()).await.unwrap() {
            Event::StoreFailing { code } => told = Some(code),
            Event::Receiving { here: true } => break,
            _ => {}
        }
    }
    assert_eq!(told, Some("FORMAT_TOO_NEW"));
    // What the others have in their outboxes goes on.
    soon(async {
        while !core.has_lane(&carol) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_nobody_answered_goes_again_also_where_others_may_have_seen_to_theirs() {
    let directory = tempfile::tempdir().unwrap();
    let client = shared_client(&directory).await;
    let (mut lane, _orders) = offline(&client).await;
    let mut step = Step::new(lane.row.clone());
    for _ in 0..2 {
        let send = lane.number(vec![7; 64], &mut step).unwrap();
        lane.push_sealed_control(send, &mut step);
    }
    lane.commit(step).await;
    lane.sealed[0].sent_in = 3;
    lane.sealed[1].foreign = true;
    lane.turn(&mut Vec::new(), &mut Vec::new(), None).await;
    assert_eq!((lane.sealed[0].sent_in, lane.sealed[1].foreign), (3, true));
    lane.progress_at = Instant::now().checked_sub(limits::RESEND_AFTER).unwrap();
    for _ in 0..2 {
        lane.turn(&mut Vec::new(), &mut Vec::new(), None).await;
    }
    assert_eq!(lane.sealed.len(), 2);
    assert!(lane.sealed.iter().all(|one| one.sent_in == 0 && !one.foreign));
}

#[tokio::test]
async fn what_another_instance_sends_is_waited_for_by_nobody_else_until_it_is_taken_over() {
    let (store, directory) = (Arc::new(Hiccups::default()), tempfile::tempdir().unwrap());
    let [other, client] =
        [hiccups::instance(&store, &directory).await, hiccups::instance(&store, &directory).await];
    let lane_of = async |client: &crate::Client| {
        let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let (work, orders) = mpsc::unbounded_channel();
        let depth = Arc::new(AtomicUsize::new(0));
        let mut lane = Lane::fresh(Arc::clone(client.core()), peer, (depth, work.downgrade()));
        lane.reload().await.unwrap();
        (lane, orders)
    };
    let (mut lane, _orders) = lane_of(&client).await;
    let (mut theirs, _their_orders) = lane_of(&other).await;
    let mut step = Step::new(theirs.row.clone());
    for _ in 0..3 {
        let send = theirs.number(vec![7; 64], &mut step).unwrap();
        theirs.push_sealed_control(send, &mut step);
    }
    theirs.commit(step).await;
    lane.reload().await.unwrap();
    assert_eq!((lane.sealed.len(), client.pending(), other.pending()), (3, 0, 3));

    // The relay refuses the second to whoever it is: all from there on are sent from here.
    let subject = Subject::Message(lane.sealed[1].send.msg_id);
    let (code, detail) = (Code::MailboxFull, String::new());
    let nack = Nack { subject, code, detail, retry_after: Duration::ZERO, expected_lane: 0 };
    let mut step = Step::new(lane.row.clone());
    lane.refused(&nack, &mut step).await;
    assert_eq!(client.pending(), 2);
    // What was not waited for ends no wait.
    lane.accept(lane.sealed[0].send.msg_id, &mut step);
    assert_eq!(client.pending(), 2);
    lane.commit(step).await;
    lane.reload().await.unwrap();
    assert_eq!((lane.sealed.len(), client.pending()), (2, 2));
    lane.accept(lane.sealed[0].send.msg_id, &mut Step::new(lane.row.clone()));
    assert_eq!(client.pending(), 1);
    drop(lane);
    assert_eq!(client.pending(), 0);

    let (mut lane, _orders) = lane_of(&client).await;
    assert_eq!((lane.sealed.len(), client.pending()), (2, 2), "who begins sends what is there");
    // As a look finds what another instance sealed since.
    lane.sealed[1].foreign = true;
    client.core().settle(1);
    let mut step = Step::new(lane.row.clone());
    lane.renumber(&mut step).await;
    assert_eq!((lane.own_sealed(), client.pending()), (2, 2));
}

/// The relay has nothing of the lane's first message; its numbers are never those that it expects.
async fn refuse_first(lane: &mut Lane, code: Code, expected_lane: u64) {
    let one = &mut lane.sealed[0];
    one.sent_in = 3;
    let subject = Subject::Message(one.send.msg_id);
    let nack = Nack { subject, code, detail: String::new(), retry_after: Duration::ZERO, expected_lane };
    let mut step = Step::new(lane.row.clone());
    lane.refused(&nack, &mut step).await;
    lane.commit(step).await;
    assert_eq!(lane.sealed[0].sent_in, 0, "it goes again");
}

#[tokio::test]
async fn what_a_relay_refuses_over_and_over_goes_again_at_once_so_many_times_and_then_after_a_pause() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    for code in [Code::LaneGap, Code::IdConflict] {
        let mut step = Step::new(lane.row.clone());
        let send = lane.number(vec![7; 64], &mut step).unwrap();
        lane.push_sealed_control(send, &mut step);
        lane.commit(step).await;
        for number in 0..limits::ANSWERED_AT_ONCE {
            refuse_first(&mut lane, code, 1_000 + u64::from(number)).await;
            assert_eq!(lane.paused_until, None, "{code:?} {number}");
        }
        for wait in [limits::REFUSED_FIRST, 2 * limits::REFUSED_FIRST] {
            let before = Instant::now();
            refuse_first(&mut lane, code, 9).await;
            assert!(lane.paused_until.take().is_some_and(|until| until >= before + wait), "{code:?}");
            lane.last_gap = None;
        }
        // What is accepted ends it.
        let mut step = Step::new(lane.row.clone());
        lane.accept(lane.sealed[0].send.msg_id, &mut step);
        lane.commit(step).await;
    }
}

/// Numbers the message that waits, as if it were encrypted.
async fn seal_waiting(lane: &mut Lane) {
    let Waiting { queued, place, created_at } = lane.waiting[0];
    let row = lane.core.store.one(&crate::keys::message(&lane.peer.user, place)).await.unwrap().unwrap();
    let row = MessageRow::decode(row.value.expose()).unwrap();
    let mut step = Step::new(lane.row.clone());
    let send = lane.number(vec![7; 64], &mut step).unwrap();
    lane.store_sealed((queued, place, created_at), (row, send), &mut step);
    step.promoted = 1;
    lane.commit(step).await;
}

#[tokio::test]
async fn what_the_relay_accepted_is_told_once_though_the_store_fails() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    seal_waiting(&mut lane).await;
    let id = lane.sealed[0].send.msg_id;
    let mut events = client.events();
    let mut step = Step::new(lane.row.clone());
    lane.accept(id, &mut step);
    step.broken = Some(Error::not_ready("the test wants it"));
    lane.commit(step).await;
    lane.turn(&mut vec![Mail::Accepted(id)], &mut Vec::new(), None).await;
    assert_eq!((lane.sealed.len(), client.pending()), (0, 0));
    client.close().await;
    let mut told = Vec::new();
    while let Some(event) = soon(events.next()).await {
        if let Event::Receipt { ids, state: DeliveryState::Accepted, .. } = event {
            told.extend(ids);
        }
    }
    assert_eq!(told, [ContentId::from_bytes([1; 16])]);
}

#[tokio::test]
async fn a_pause_that_the_relay_asks_for_is_told_once_though_the_store_fails() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    seal_waiting(&mut lane).await;
    let id = lane.sealed[0].send.msg_id;
    let nack = Nack {
        subject: Subject::Message(id),
        code: Code::MailboxFull,
        detail: String::new(),
        retry_after: limits::BACKOFF_LONGEST,
        expected_lane: 0,
    };
    let mut events = client.events();
    let mut step = Step::new(lane.row.clone());
    lane.refused(&nack, &mut step).await;
    step.broken = Some(Error::not_ready("the test wants it"));
    lane.commit(step).await;
    lane.turn(&mut vec![Mail::Refused(Box::new(nack))], &mut Vec::new(), None).await;
    lane.turn(&mut vec![Mail::Accepted(id)], &mut Vec::new(), None).await;
    let mut told = Vec::new();
    loop {
        match soon(events.next()).await.unwrap() {
            Event::SendDelayed { code, .. } => told.push(code),
            Event::Receipt { .. } => break,
            _ => {}
        }
    }
    assert_eq!(told, ["MAILBOX_FULL"]);
}

#[tokio::test]
async fn a_relay_that_takes_no_id_fills_no_store_with_them() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let store = Arc::clone(&client.core().store);
    seal_waiting(&mut lane).await;
    for _ in 0..3 {
        let before = lane.sealed[0].send.msg_id;
        refuse_first(&mut lane, Code::IdConflict, 0).await;
        let id = lane.sealed[0].send.msg_id;
        assert_ne!(id, before);
        let sent = Scan::of(Table::Outbox, crate::keys::sent_of(&lane.peer));
        let sent = store.scan_all(sent, 10).await.unwrap();
        let names: Vec<_> = sent.iter().map(|row| row.key.sort.as_slice()).collect();
        assert_eq!(names, [id.as_bytes().as_slice()], "the name that it may be asked for again by");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_lane_makes_room_for_a_new_one_and_a_busy_one_does_not() {
    let client = offline_client().await;
    let core = client.core();
    let peer = |name: String| Address::new(UserId::new(&name).unwrap(), DeviceId::FIRST);
    for number in 1..limits::MAX_LANES {
        core.work(&peer(format!("idle{number}")), Work::Wake).unwrap();
    }
    let (reply, _) = oneshot::channel();
    let id = ContentId::from_bytes([1; 16]);
    let request = SendRequest {
        id,
        content: "hello?".into(),
        timeout: Duration::ZERO,
        own_timeout: false,
        reply: reply.into(),
        room: None,
    };
    core.work(&peer("busy".into()), Work::Send(request)).unwrap();
    let room = async {
        while core.work(&peer("late".into()), Work::Wake).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(limits::LANE_IDLE / 2, room).await.expect("an idle lane goes");
    assert!(core.has_lane(&peer("busy".into())) && core.has_lane(&peer("late".into())));
}

fn peer(name: &str) -> Address {
    Address::new(UserId::new(name).unwrap(), DeviceId::FIRST)
}

/// As many conversations as may be awake, each with a message that waits.
async fn keep_all_busy(core: &Core) {
    let send = |number: usize| {
        let (reply, committed) = oneshot::channel();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let request = SendRequest {
            id: ContentId::from_bytes(id),
            content: "hello?".into(),
            timeout: Duration::ZERO,
            own_timeout: false,
            reply: reply.into(),
            room: None,
        };
        core.work(&peer(&format!("busy{number}")), Work::Send(request)).unwrap();
        committed
    };
    let sent: Vec<_> = (0..limits::MAX_LANES).map(send).collect();
    for committed in sent {
        committed.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_ends_also_while_as_many_conversations_as_may_be_awake_have_something_to_send() {
    let client = offline_client().await;
    let core = client.core();
    keep_all_busy(core).await;
    let late = peer("late");
    let mut changes = ChangeSet::new();
    changes.put(crate::keys::lane(&core.store, &late), LaneRow::default().encode(&late));
    core.store.commit(changes).await.unwrap();
    let found = crate::rollback::Rollback { relay: 9, own: 7, decided: true, noted: true };
    core.set_rollback(Some(found));
    crate::rollback::recover(core).await.unwrap();
    assert_eq!(core.rollback(), None);
    assert_eq!(client.pending(), limits::MAX_LANES, "what waits still does");
    let refused = core.work(&peer("later"), Work::Wake).unwrap_err();
    assert_eq!(refused.code(), "CLIENT_NOT_READY");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_finds_too_many_awake_is_woken_when_there_are_fewer() {
    let client = offline_client().await;
    let core = client.core();
    keep_all_busy(core).await;
    let late = peer("late");
    let owes = LaneRow { due: vec![ContentId::from_bytes([1; 16])], ..LaneRow::default() };
    core.wake_lanes_with_work(vec![(late.clone(), owes)]);
    soon(async {
        while !core.is_to_be_woken(&late) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!core.has_lane(&late));
    let (reply, deleted) = oneshot::channel();
    core.work(&peer("busy0"), Work::Command(Command::Delete(reply.into()))).unwrap();
    deleted.await.unwrap().unwrap();
    soon(async {
        while !core.has_lane(&late) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!core.is_to_be_woken(&late));
}

#[tokio::test]
async fn what_waits_in_the_outbox_is_found_when_the_store_was_away_at_the_first_look() {
    let store = Arc::new(Hiccups::default());
    let client = hiccups::client(&store).await;
    let core = client.core();
    let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let place = Place { order: 1, id: ContentId::from_bytes([1; 16]) };
    let row = PendingRow { body: PendingBody::Message(place), sealed: None, created_at: core.now() };
    let mut changes = ChangeSet::new();
    changes.put(crate::keys::pending(&peer, 1), row.encode());
    core.store.commit(changes).await.unwrap();
    store.refuse(Some(|scan| scan.table == Table::Outbox && scan.limit == 1));
    core.wake_lanes_with_work(vec![(peer.clone(), LaneRow::default())]);
    soon(async {
        while store.refused() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!core.has_lane(&peer));
    store.refuse(None);
    soon(async {
        while !core.has_lane(&peer) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_lane_that_could_not_be_read_does_not_end_before_it_was() {
    let store = Arc::new(Hiccups::default());
    let client = hiccups::client(&store).await;
    let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let (work, _orders) = mpsc::unbounded_channel();
    let depth = Arc::new(AtomicUsize::new(0));
    let mut lane = Lane::fresh(Arc::clone(client.core()), peer, (depth, work.downgrade()));
    let past = Instant::now().checked_sub(2 * limits::LANE_IDLE).unwrap();
    store.refuse(Some(|scan| scan.table == Table::Outbox));
    lane.turn(&mut Vec::new(), &mut vec![Work::Wake], None).await;
    lane.active_at = past;
    assert!(!lane.may_sleep(), "what it has to do is not known");
    store.refuse(None);
    lane.turn(&mut Vec::new(), &mut Vec::new(), None).await;
    lane.active_at = past;
    assert!(lane.may_sleep());
}

#[tokio::test]
async fn a_post_that_a_commit_took_whose_answer_was_lost_is_sealed_once() {
    let store = Arc::new(Hiccups::default());
    let client = hiccups::client(&store).await;
    let core = client.core();
    let (mut lane, _orders) = offline(&client).await;
    let post = crate::groups::stored_post(core, &lane.peer).await;
    core.unaccepted.fetch_add(1, Ordering::Relaxed);
    let mut step = Step::new(lane.row.clone());
    let send = lane.number(vec![7; 64], &mut step).unwrap();
    lane.push_sealed_control(send, &mut step);
    step.changes.delete(crate::groups::post_key(post.seq));
    step.posted = 1;
    lane.take_post(Arc::new(post));
    store.lose_answer(Table::Outbox);
    lane.commit(step).await;
    assert!(lane.conversation.is_none(), "whether it was stored is not known");
    assert_eq!((lane.sealed.len(), lane.posts.len()), (0, 1));
    lane.turn(&mut Vec::new(), &mut Vec::new(), None).await;
    assert_eq!((lane.sealed.len(), lane.posts.len()), (1, 0));
    assert_eq!(client.pending(), 2, "a message of before, and this");
}

#[tokio::test]
async fn who_can_not_be_told_of_a_rotation_is_asked_for_ever_more_rarely_and_then_no_more() {
    let client = offline_client().await;
    let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let (work, _orders) = mpsc::unbounded_channel();
    let depth = Arc::new(AtomicUsize::new(0));
    let mut lane = Lane::fresh(Arc::clone(client.core()), peer.clone(), (depth, work.downgrade()));
    lane.reload().await.unwrap();
    let mut step = Step::new(lane.row.clone());
    step.row.announce = Some(0);
    lane.commit(step).await;
    assert_eq!(client.pending(), 1, "it is waited for once");
    for tried in 0..limits::TELL_TRIES {
        lane.active_at = Instant::now().checked_sub(2 * limits::LANE_IDLE).unwrap();
        assert!(lane.announces() && !lane.may_sleep(), "{tried}");
        let gone = Error::from(crate::error::ErrorKind::RecipientNotFound { user: peer.user.clone() });
        let before = Instant::now();
        lane.turn(&mut Vec::new(), &mut vec![Work::Bundle(Err(gone))], None).await;
        let wait = limits::TELL_AGAIN.saturating_mul(2_u32.saturating_pow(tried.into()));
        let wait = wait.min(limits::TELL_AGAIN_LONGEST);
        assert!((before + wait..=Instant::now() + wait).contains(&lane.tell_after), "{tried}");
        assert_eq!(client.pending(), 0, "closing does not wait for who is not there");
        // As after a restart.
        lane.reload().await.unwrap();
    }
    assert!(!lane.announces() && lane.row.announce.is_none() && !lane.wants_session());
    // Who has something to say does not wait for that.
    let mut step = Step::new(lane.row.clone());
    step.row.announce = Some(9);
    lane.commit(step).await;
    lane.tell_after = Instant::now() + limits::TELL_AGAIN_LONGEST;
    assert!(lane.fetch_due() > Instant::now() + limits::TELL_AGAIN);
    lane.rehandshake = true;
    assert!(lane.fetch_due() <= Instant::now() + limits::RECIPIENT_RETRY);
}

#[tokio::test]
async fn a_receipt_on_a_session_that_was_left_leaves_what_sending_again_needs() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let (store, place) = (Arc::clone(&client.core().store), lane.waiting[0].place);
    let message = MessageId::from_bytes([9; 16]);
    let key = crate::keys::message(&lane.peer.user, place);
    let sent = crate::keys::sent(&lane.peer, message);
    let stored = store.one(&key).await.unwrap().unwrap();
    let mut row = MessageRow::decode(stored.value.expose()).unwrap();
    row.msg_id = Some(message);
    let pointer = PointerRow { peer: lane.peer.clone(), place, group: None };
    let mut changes = ChangeSet::new();
    changes.put(key.clone(), row.encode()).put(sent.clone(), pointer.encode());
    store.commit(changes).await.unwrap();
    let told = [
        (DeliveryState::Delivered, Standing::TheirsEarlier, true),
        (DeliveryState::Read, Standing::Current, false),
    ];
    for (state, standing, kept) in told {
        let mut step = Step::new(lane.row.clone());
        lane.take_receipt(&[place.id], (state, standing), &mut step).await.unwrap();
        lane.commit(step).await;
        let stored = store.one(&key).await.unwrap().unwrap();
        assert_eq!(MessageRow::decode(stored.value.expose()).unwrap().state, state);
        assert_eq!(store.one(&sent).await.unwrap().is_some(), kept, "{standing:?}");
    }
}

fn mark_read() -> Work {
    let (reply, _) = oneshot::channel();
    Work::Command(Command::MarkRead(vec![ContentId::from_bytes([1; 16])], reply.into()))
}

#[tokio::test]
async fn orders_are_refused_past_the_share_of_a_conversation_and_past_that_of_all() {
    let pressure = Arc::new(Pressure::default());
    let lane = |name: &str| {
        let peer = Address::new(UserId::new(name).unwrap(), DeviceId::FIRST);
        new(Weak::new(), peer, Arc::clone(&pressure))
    };
    let code = |handle: &LaneHandle| handle.work(mark_read()).map_or_else(|error| error.code(), |()| "OK");
    let lanes: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(lane).collect();
    for (handle, _) in &lanes[..4] {
        for _ in 0..limits::MAX_QUEUED / 4 {
            assert_eq!(code(handle), "OK");
        }
        assert_eq!(code(handle), "BACKPRESSURE", "its share is used up");
    }
    let (fifth, _) = &lanes[4];
    assert_eq!(code(fifth), "BACKPRESSURE", "four shares are all there is");
    // A refused order takes no room, and what the client itself hands over is not refused.
    for (handle, _) in &lanes {
        handle.work(Work::Wake).unwrap();
    }
    // A lane that ends gives back what was in its queue.
    let mut lanes = lanes;
    drop(lanes.remove(0));
    let (fifth, _) = &lanes[3];
    for _ in 0..limits::MAX_QUEUED / 4 {
        assert_eq!(code(fifth), "OK");
    }
    assert_eq!(code(fifth), "BACKPRESSURE");
}

#[tokio::test]
async fn what_judges_or_ends_a_conversation_has_a_small_reserve_past_its_share() {
    let one = Executor { max_queued_per_peer: Some(1), ..Executor::default() };
    let pressure = Arc::new(Pressure::new(one));
    let code = |handle: &LaneHandle, work| handle.work(work).map_or_else(|error| error.code(), |()| "OK");
    let pin = || Work::Command(Command::Pin(oneshot::channel().0.into()));
    let mut lanes: Vec<_> = (0..=limits::RESERVED / limits::RESERVED_OF_ONE)
        .map(|number| {
            let peer = Address::new(UserId::new(&format!("user-{number}")).unwrap(), DeviceId::FIRST);
            new(Weak::new(), peer, Arc::clone(&pressure))
        })
        .collect();
    for (handle, _) in &lanes {
        assert_eq!(code(handle, mark_read()), "OK");
        assert_eq!(code(handle, mark_read()), "BACKPRESSURE");
    }
    let (last, _task) = lanes.pop().unwrap();
    for (handle, _) in &lanes {
        let ends = [
            Command::Reset(oneshot::channel().0.into()),
            Command::Delete(oneshot::channel().0.into()),
            Command::Verify(None, oneshot::channel().0.into()),
        ];
        let others = limits::RESERVED_OF_ONE - ends.len();
        for command in ends {
            assert_eq!(code(handle, Work::Command(command)), "OK");
        }
        for _ in 0..others {
            assert_eq!(code(handle, pin()), "OK");
        }
        assert_eq!(code(handle, pin()), "BACKPRESSURE", "its reserve is used up");
        assert_eq!(code(handle, mark_read()), "BACKPRESSURE");
    }
    assert_eq!(code(&last, pin()), "BACKPRESSURE", "that is all there is");
    assert_eq!(pressure.waiting(), (lanes.len() + 1, (lanes.len() + 1) * 16), "it is beyond the numbers");
    drop(lanes);
    assert_eq!(code(&last, mark_read()), "BACKPRESSURE");
    assert_eq!(code(&last, pin()), "OK", "the room of lanes that ended is free");
}

#[tokio::test]
async fn contents_that_wait_are_bounded_in_bytes_and_wake_ups_do_not_pile_up() {
    let pressure = Arc::new(Pressure::default());
    let lane = |name: &str| {
        let peer = Address::new(UserId::new(name).unwrap(), DeviceId::FIRST);
        new(Weak::new(), peer, Arc::clone(&pressure))
    };
    let seal = |handle: &LaneHandle, size: usize| {
        let (reply, _) = oneshot::channel();
        let sealed = handle.work(Work::Command(Command::Seal(vec![0; size].into(), reply.into())));
        sealed.map_or_else(|error| error.code(), |()| "OK")
    };
    const SIZE: usize = 1024 * 1024;
    let lanes: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(lane).collect();
    for (handle, _) in &lanes[..4] {
        for _ in 0..limits::MAX_QUEUED_BYTES / SIZE / 4 {
            assert_eq!(seal(handle, SIZE), "OK", "what others fill is their own share");
        }
        assert_eq!(seal(handle, 1), "BACKPRESSURE", "its share is used up");
        assert_eq!(seal(handle, 0), "OK");
    }
    let (fifth, _) = &lanes[4];
    assert_eq!(seal(fifth, 1), "BACKPRESSURE", "four shares are all there is");
    let handed = fifth.is_idle();
    for _ in 0..1_000_000 {
        fifth.work(Work::Wake).unwrap();
    }
    assert!(!handed);
    drop(lanes);
    assert_eq!(pressure.waiting(), (0, 0));
    // What is larger than a share takes the whole of one.
    let lanes: Vec<_> = ["a", "b"].into_iter().map(lane).collect();
    assert_eq!(seal(&lanes[0].0, limits::MAX_QUEUED_BYTES / 2), "OK");
    assert_eq!(seal(&lanes[0].0, 1), "BACKPRESSURE");
    assert_eq!(seal(&lanes[1].0, SIZE), "OK");
}

/// Resident bytes of this process.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

/// Hands sends to lanes that never take one, whoever they are for: each waits or is refused, in bounded memory.
fn flood(count: usize) {
    const LANES: usize = 64;
    let pressure = Arc::new(Pressure::default());
    let lanes: Vec<_> = (0..LANES)
        .map(|number| {
            let peer = Address::new(UserId::new(&format!("user-{number}")).unwrap(), DeviceId::FIRST);
            new(Weak::new(), peer, Arc::clone(&pressure))
        })
        .collect();
    let before = resident();
    let (mut waits, mut refused, mut waiting) = (0, 0, Vec::new());
    for number in 0..count {
        let (reply, answer) = oneshot::channel();
        let id = ContentId::from_bytes([1; 16]);
        let content = format!("{number:0200}").as_str().into();
        let request = SendRequest {
            id,
            content,
            timeout: Duration::ZERO,
            own_timeout: false,
            reply: reply.into(),
            room: None,
        };
        match lanes[number % LANES].0.work(Work::Send(request)) {
            Ok(()) => {
                waits += 1;
                waiting.push(answer);
            }
            Err(error) => {
                assert_eq!(error.code(), "BACKPRESSURE");
                refused += 1;
            }
        }
    }
    assert_eq!((waits, waits + refused), (count.min(limits::MAX_QUEUED), count));
    assert_eq!(pressure.waiting(), (waits, waits * 200));
    let grown = resident().saturating_sub(before);
    assert!(grown < 128 * 1024 * 1024, "{grown} bytes");
    drop(lanes);
    assert_eq!(pressure.waiting(), (0, 0));
    for mut answer in waiting {
        assert!(answer.try_recv().is_err(), "whoever waits is told that nobody answers");
    }
}

/// Calls of a flood in a process of its own: what others do at the same time takes memory, too.
const ALONE: &str = "STVOR_FLOOD_ALONE";

#[test]
#[ignore = "the other floods run it, in a process of its own"]
fn a_flood_alone() {
    if let Some(count) = std::env::var(ALONE).ok().and_then(|text| text.parse().ok()) {
        flood(count);
    }
}

fn flood_alone(count: usize) {
    let ended = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lane::tests::a_flood_alone", "--ignored", "--nocapture"])
        .env(ALONE, count.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

#[test]
fn a_flood_of_sends_waits_or_is_refused_in_bounded_memory() {
    flood_alone(300_000);
}

#[test]
#[ignore = "the long form, half a minute: ./x chaos runs it"]
fn ten_million_sends_wait_or_are_refused_in_bounded_memory() {
    flood_alone(10_000_000);
}

#[tokio::test]
async fn the_10_001st_message_that_waits_is_refused() {
    let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let (handle, task) = new(Weak::new(), peer, Arc::default());
    let send = || {
        let (reply, _) = oneshot::channel();
        let id = ContentId::from_bytes([1; 16]);
        handle.work(Work::Send(SendRequest {
            id,
            content: "x".into(),
            timeout: Duration::ZERO,
            own_timeout: false,
            reply: reply.into(),
            room: None,
        }))
    };
    for _ in 0..limits::MAX_PENDING {
        send().unwrap();
    }
    assert_eq!(send().unwrap_err().code(), "QUOTA_EXCEEDED");
    handle.depth.fetch_sub(1, Ordering::Relaxed);
    send().unwrap();
    drop(task);
}

#[tokio::test]
async fn all_that_waits_is_read_again_where_an_application_lets_more_wait_than_usual() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let core = client.core();
    let place = Place { order: 1, id: ContentId::from_bytes([1; 16]) };
    let row = PendingRow { body: PendingBody::Message(place), sealed: None, created_at: core.now() };
    let (first, last) = (2, 2 * limits::MAX_PENDING as u64 + 1);
    for from in (first..=last).step_by(1_000) {
        let mut changes = ChangeSet::new();
        for queued in from..=last.min(from + 999) {
            changes.put(crate::keys::pending(&lane.peer, queued), row.encode());
        }
        core.store.commit(changes).await.unwrap();
    }
    lane.reload().await.unwrap();
    assert_eq!(lane.count_pending().0 as u64, last);
}

#[tokio::test]
async fn one_busy_lane_more_than_may_be_awake_is_refused() {
    let client = offline_client().await;
    let core = client.core();
    let wake = |number: usize| {
        let peer = Address::new(UserId::new(&format!("peer{number}")).unwrap(), DeviceId::FIRST);
        core.work(&peer, Work::Wake)
    };
    // None of them gets to run: this test never waits.
    for number in 0..limits::MAX_LANES {
        wake(number).unwrap();
    }
    assert_eq!(wake(limits::MAX_LANES).unwrap_err().code(), "CLIENT_NOT_READY");
    wake(0).unwrap();
}

#[tokio::test]
async fn of_the_failures_of_one_peer_the_oldest_goes_first() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let request = |number: usize| {
        let mut message = [0; 16];
        // Names in another order than that of arrival, as an honest relay's are.
        message[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        RetryRequest { message: MessageId::from_bytes(message), blob_hash: [0; 32] }
    };
    for number in 0..limits::MAX_FAILURES_OF_ONE {
        let mut step = Step::new(lane.row.clone());
        lane.remember_request(request(number), "DECRYPT", &mut step);
        lane.commit(step).await;
    }
    lane.reload().await.unwrap();
    assert_eq!(lane.requests.len(), limits::MAX_FAILURES_OF_ONE);
    let mut step = Step::new(lane.row.clone());
    lane.remember_request(request(limits::MAX_FAILURES_OF_ONE), "DECRYPT", &mut step);
    lane.commit(step).await;
    lane.reload().await.unwrap();
    assert_eq!(lane.requests.len(), limits::MAX_FAILURES_OF_ONE);
    assert_eq!(lane.requests[0].message, request(1).message);
}

/// A connection of the lane's client, and what is acknowledged on it.
fn connection(generation: u64) -> (Arc<Session>, crate::transport::session::Ends) {
    let ready = stvor_wire::server::Ready {
        mailbox_epoch: 1,
        resumed: stvor_wire::server::Resumed::Full,
        registration: stvor_wire::server::Registration::Known,
        highest_counter: 0,
        counter_mac: None,
        lost_seq: 0,
        keys: stvor_wire::keys::KeyCounts::default(),
        limits: stvor_wire::server::Limits {
            max_frame_bytes: 98_304,
            max_blob_bytes: 73_728,
            window_messages: 128,
            window_bytes: 1 << 20,
            retention: Duration::from_secs(3_600),
            dedup: Duration::from_secs(3_600),
            max_recipients: 64,
        },
        resume_cursor: Vec::new().into(),
        heartbeat: Duration::from_secs(27),
    };
    let knows = crate::transport::login::Abilities { holds: false, rotates: true };
    Session::new(generation, ready, (UserId::new("alice").unwrap(), knows))
}

#[tokio::test]
async fn a_lane_that_waits_for_room_keeps_its_place_while_other_things_come() {
    let (session, _ends) = connection(1);
    let mut taken: Vec<_> = core::iter::from_fn(|| session.try_room()).collect();
    let mut claim = Claim::default();
    claim.want(Some(&session));
    assert!(claim.room().now_or_never().is_none());
    let mut other = core::pin::pin!(session.room());
    assert!(futures::poll!(other.as_mut()).is_pending());
    // Mail came, and there is still something to be sent.
    claim.want(Some(&session));
    assert!(claim.room().now_or_never().is_none());
    drop(taken.pop());
    let (of, room) = claim.room().now_or_never().flatten().expect("it came first");
    assert!(Arc::ptr_eq(&of, &session));
    assert!(futures::poll!(other.as_mut()).is_pending());
    drop(room);
    other.await.unwrap();
    // What is wanted no more leaves the queue, and what was wanted on another connection does not count on this one.
    taken.extend(core::iter::from_fn(|| session.try_room()));
    claim.want(Some(&session));
    assert!(claim.room().now_or_never().is_none());
    claim.want(None);
    drop(taken.pop());
    assert!(claim.room().now_or_never().is_none() && session.try_room().is_some());
    let (next, _ends) = connection(2);
    claim.want(Some(&next));
    assert!(Arc::ptr_eq(&claim.room().now_or_never().flatten().unwrap().0, &next));
}

/// Mail that nobody can read: it is acknowledged, and asked for again.
fn garbage(number: u8, session: &Arc<Session>) -> Mail {
    let deliver = Deliver {
        from: Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST),
        mailbox_epoch: 1,
        seq: u64::from(number),
        msg_id: MessageId::from_bytes([number; 16]),
        blob: vec![number; 512].into(),
        received_at: Timestamp::system(),
        ephemeral: false,
    };
    Mail::Deliver(Box::new(deliver), Arc::clone(session))
}

#[tokio::test]
async fn who_is_written_to_in_another_suite_is_told_so_and_asks_for_nothing() {
    let client = offline_client().await;
    let mut events = client.events();
    let (mut lane, _orders) = offline(&client).await;
    let (session, mut acked) = connection(1);
    let Mail::Deliver(mut deliver, session) = garbage(1, &session) else { panic!("mail") };
    // Version, suite, a message without a handshake.
    deliver.blob = [&[1, 2, 1][..], &[7; 509]].concat().into();
    lane.turn(&mut vec![Mail::Deliver(deliver, session)], &mut Vec::new(), None).await;
    assert_eq!(acked.acked(), [MessageId::from_bytes([1; 16])]);
    let told = loop {
        if let Some(Event::MessageUndecryptable { code, repair_requested, .. }) = events.next().await {
            break (code, repair_requested);
        }
    };
    assert_eq!(told, ("SUITE_MISMATCH", false));
}

#[tokio::test]
async fn what_follows_mail_that_was_left_at_the_relay_is_left_until_a_later_connection() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    let (first, mut acked_on_first) = connection(1);
    lane.turn(&mut vec![garbage(1, &first)], &mut Vec::new(), None).await;
    assert_eq!(acked_on_first.acked(), [MessageId::from_bytes([1; 16])]);
    lane.refuse(
        &mut vec![garbage(2, &first)],
        &mut Vec::new(),
        &Error::not_ready("the store can not be read"),
    );
    lane.turn(&mut vec![garbage(3, &first)], &mut Vec::new(), None).await;
    assert_eq!(acked_on_first.acked(), [], "the third would be before the second");
    let (second, mut acked_on_second) = connection(2);
    let again = |number| garbage(number, &second);
    lane.turn(&mut vec![again(2), again(3)], &mut Vec::new(), None).await;
    assert_eq!(acked_on_second.acked(), [2, 3].map(|number| MessageId::from_bytes([number; 16])));

    let mut step = Step::new(lane.row.clone());
    lane.take_mail(again(4), &mut step).await;
    step.broken = Some(Error::not_ready("the test wants it"));
    lane.take_mail(again(5), &mut step).await;
    lane.commit(step).await;
    lane.turn(&mut vec![again(6)], &mut Vec::new(), None).await;
    assert_eq!(acked_on_second.acked(), [], "nothing of what a failed commit was to take, nor what follows");
}

#[tokio::test]
async fn an_answer_that_comes_while_the_store_fails_counts_once_it_can_be_read() {
    let client = offline_client().await;
    let (mut lane, _orders) = offline(&client).await;
    lane.asking = true;
    let decision = TrustDecision { user_key: [4; 65].into(), accept: false, verified: false };
    let error = Error::not_ready("the store can not be read");
    lane.refuse(&mut Vec::new(), &mut vec![Work::Decision(decision)], &error);
    assert!(lane.asking);
    lane.turn(&mut Vec::new(), &mut Vec::new(), None).await;
    assert!(!lane.asking);
}

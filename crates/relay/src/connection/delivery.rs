//! Which message is offered to a device next, and when. A state machine without I/O.
//!
//! A message reaches a device in one of three ways: as a *live copy* while it is being written, straight from its
//! *commit*, or from the mailbox by the *pump*. A live copy goes out only when nothing older waits, so that order holds;
//! a message that could not go live is *owed*, and until its commit is known no later one goes live either.

use std::collections::{HashMap, HashSet};

use stvor_base::MessageId;
use stvor_wire::client::{Ack, Credit, Hold};
use stvor_wire::limits::{MAX_HELD, WINDOW_BYTES, WINDOW_MESSAGES};

use crate::limits::{PUMP_BYTES, PUMP_ROWS};
use crate::storage::{AckRow, MailboxId, Page, PageLimit, Place, Row};

/// What happened to a message before its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Live {
    /// A copy was sent.
    Sent,
    /// It waits for its commit.
    Owed,
    /// Its sender is held.
    Held,
}

/// What a commit asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    /// Nothing.
    Nothing,
    /// The message goes out now, with its seq.
    Deliver,
    /// The pump has to run.
    Pump,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    /// 0 until the commit is known.
    seq: u64,
    sender: MailboxId,
    bytes: usize,
}

/// A message as the machine sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item {
    pub(crate) msg_id: MessageId,
    pub(crate) sender: MailboxId,
    pub(crate) bytes: usize,
}

/// What a device says that it has stored.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    /// Was delivered on this connection: no more than the window.
    pub(crate) known: Vec<AckRow>,
    /// Was not; perhaps on an earlier one.
    pub(crate) strays: Vec<AckRow>,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) epoch: u64,
    window: Credit,
    in_flight: HashMap<MessageId, InFlight>,
    in_flight_bytes: usize,
    /// Senders of whom nothing more is offered.
    held: HashSet<MailboxId>,
    /// The first seq of theirs that the device has not acknowledged, as far as that is known: no cursor points behind it.
    held_from: Option<u64>,
    /// Everything up to this seq was offered on this connection, or is gone.
    offered: u64,
    /// Highest seq known to be committed.
    tail: u64,
    /// Messages that wait for their commit and were not sent live.
    owed: u64,
    /// Live copies that are to be sent and are not in the queue of the socket yet: until they are nothing else is offered, for
    /// what follows them may be committed by then.
    copying: u64,
    /// READY was sent.
    open: bool,
    /// The pump is reading.
    pumping: bool,
    /// The next row does not fit the window, or its id is in flight from another sender: wait for the device.
    blocked: bool,
}

impl Delivery {
    pub(crate) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            window: Credit { window_messages: WINDOW_MESSAGES, window_bytes: WINDOW_BYTES },
            in_flight: HashMap::new(),
            in_flight_bytes: 0,
            held: HashSet::new(),
            held_from: None,
            offered: 0,
            tail: 0,
            owed: 0,
            copying: 0,
            open: false,
            pumping: false,
            blocked: false,
        }
    }

    /// READY was sent; `last_seq` is the mailbox's, read after the connection could be found by senders.
    pub(crate) fn open(&mut self, last_seq: u64) {
        self.tail = self.tail.max(last_seq);
        self.open = true;
    }

    /// The highest seq up to which everything was offered and nobody held: for the resume cursor.
    pub(crate) fn offered(&self) -> u64 {
        self.held_from.map_or(self.offered, |first| self.offered.min(first.saturating_sub(1)))
    }

    /// Senders whose rows are not to be read.
    pub(crate) fn held(&self) -> Vec<MailboxId> {
        self.held.iter().copied().collect()
    }

    fn has_room(&self, bytes: usize) -> bool {
        let messages = usize::try_from(self.window.window_messages).unwrap_or(usize::MAX);
        let limit = usize::try_from(self.window.window_bytes).unwrap_or(usize::MAX);
        let fits = self.in_flight.is_empty() || self.in_flight_bytes + bytes <= limit;
        self.in_flight.len() < messages && fits
    }

    fn insert(&mut self, item: Item, seq: u64) {
        self.in_flight.insert(item.msg_id, InFlight { seq, sender: item.sender, bytes: item.bytes });
        self.in_flight_bytes += item.bytes;
    }

    fn remove(&mut self, msg_id: &MessageId) -> Option<InFlight> {
        let gone = self.in_flight.remove(msg_id)?;
        self.in_flight_bytes -= gone.bytes;
        self.blocked = false;
        Some(gone)
    }

    /// A message is about to be written. `eligible`: its sender's order allows a live copy. After [`Live::Sent`] its copy has to be
    /// put into the queue of the socket and [`copied`](Self::copied) told.
    pub(crate) fn live(&mut self, item: Item, eligible: bool) -> Live {
        let quiet =
            self.open && self.owed == 0 && self.copying == 0 && self.offered >= self.tail && !self.pumping;
        if self.held.contains(&item.sender) {
            return Live::Held;
        }
        if eligible && quiet && self.has_room(item.bytes) && !self.in_flight.contains_key(&item.msg_id) {
            self.insert(item, 0);
            self.copying += 1;
            Live::Sent
        } else {
            self.owed += 1;
            Live::Owed
        }
    }

    /// A message was written at `seq`. `live` is what [`Delivery::live`] said on this very connection, if it was
    /// asked; `may_send` whether the socket has room.
    pub(crate) fn committed(
        &mut self,
        item: Item,
        seq: u64,
        (live, may_send): (Option<Live>, bool),
    ) -> Committed {
        if live == Some(Live::Owed) {
            self.owed = self.owed.saturating_sub(1);
        }
        self.tail = self.tail.max(seq);
        if live == Some(Live::Sent)
            && let Some(sent) = self.in_flight.get_mut(&item.msg_id)
            && sent.sender == item.sender
        {
            sent.seq = seq;
        }
        let behind_a_copy = self.copying > 0 && live != Some(Live::Sent);
        if seq != self.offered + 1 || !self.open || self.pumping || behind_a_copy {
            return if self.wants_pump() { Committed::Pump } else { Committed::Nothing };
        }
        if live == Some(Live::Sent) {
            self.offered = seq;
            return Committed::Nothing;
        }
        if self.held.contains(&item.sender) {
            self.offered = seq;
            return if self.wants_pump() { Committed::Pump } else { Committed::Nothing };
        }
        if may_send && self.has_room(item.bytes) && !self.in_flight.contains_key(&item.msg_id) {
            self.insert(item, seq);
            self.offered = seq;
            return Committed::Deliver;
        }
        if self.wants_pump() { Committed::Pump } else { Committed::Nothing }
    }

    /// A live copy is in the queue of the socket. Whether the pump has to run, for what was committed meanwhile.
    pub(crate) fn copied(&mut self) -> bool {
        self.copying = self.copying.saturating_sub(1);
        self.wants_pump()
    }

    /// A message was not written after all.
    pub(crate) fn failed(&mut self, item: Item, live: Live) {
        match live {
            Live::Owed => self.owed = self.owed.saturating_sub(1),
            Live::Sent => {
                self.remove(&item.msg_id);
            }
            Live::Held => {}
        }
    }

    fn wants_pump(&self) -> bool {
        let free = self.open && self.copying == 0 && !self.pumping && !self.blocked;
        free && self.offered < self.tail && self.has_room(0)
    }

    /// Starts reading a page, if something waits and the window has room: after which seq, how much, and the tail
    /// that a complete page reaches.
    pub(crate) fn start_page(&mut self) -> Option<(u64, PageLimit, u64)> {
        if !self.wants_pump() {
            return None;
        }
        self.pumping = true;
        Some((self.offered, PageLimit { rows: PUMP_ROWS, bytes: PUMP_BYTES }, self.tail))
    }

    /// Takes a page in, and returns the rows to send.
    pub(crate) fn end_page(&mut self, page: Page, tail: u64) -> Vec<Row> {
        self.pumping = false;
        let mut sent = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            let item = Item { msg_id: row.msg_id, sender: row.sender, bytes: row.blob.len() };
            let seq = row.seq;
            if self.held.contains(&row.sender) {
                self.offered = seq;
                continue;
            }
            if let Some(known) = self.in_flight.get_mut(&row.msg_id) {
                // Another sender's message with this id is on the way: wait for its ACK.
                if known.sender != row.sender {
                    self.blocked = true;
                    return sent;
                }
                // Its live copy is on the way.
                known.seq = row.seq;
            } else if self.has_room(item.bytes) {
                self.insert(item, row.seq);
                sent.push(row);
            } else {
                self.blocked = true;
                return sent;
            }
            self.offered = seq;
        }
        // What a complete page does not hold, up to the tail, is gone.
        if page.complete {
            self.offered = self.offered.max(tail);
        }
        sent
    }

    /// The page could not be read.
    pub(crate) fn abandon_page(&mut self) {
        self.pumping = false;
    }

    /// Messages are stored by the device; returns the rows to delete.
    pub(crate) fn acknowledge(&mut self, ack: &Ack) -> Acknowledged {
        let mut acked = Acknowledged::default();
        if ack.mailbox_epoch != self.epoch {
            return acked;
        }
        if let Some(up_to) = ack.up_to {
            let known = self.in_flight.get(&up_to.msg_id).is_some_and(|sent| sent.seq == up_to.seq);
            if known {
                let covered = |sent: &InFlight| sent.seq != 0 && sent.seq <= up_to.seq;
                let ids: Vec<MessageId> =
                    self.in_flight.iter().filter(|(_, sent)| covered(sent)).map(|(id, _)| *id).collect();
                for msg_id in ids {
                    if let Some(sent) = self.remove(&msg_id) {
                        acked.known.push(AckRow { place: Place::Seq(sent.seq), msg_id });
                    }
                }
            } else {
                // Not ours to cover: only that one row, if it is what the device says.
                acked.strays.push(AckRow { place: Place::Seq(up_to.seq), msg_id: up_to.msg_id });
            }
        }
        for one in &ack.single {
            let sent = self.in_flight.get(&one.msg_id).copied();
            let place = match (one.seq, sent) {
                (0, Some(sent)) if sent.seq == 0 => Place::From(sent.sender),
                (0, Some(sent)) => Place::Seq(sent.seq),
                // A copy of an earlier connection: it is offered again, with its seq.
                (0, None) => continue,
                (seq, _) => Place::Seq(seq),
            };
            let row = AckRow { place, msg_id: one.msg_id };
            if sent.is_some_and(|sent| one.seq == 0 || sent.seq == 0 || sent.seq == one.seq) {
                self.remove(&one.msg_id);
                acked.known.push(row);
            } else {
                acked.strays.push(row);
            }
        }
        acked
    }

    /// Holds senders back: what of them is un-ACKed is forgotten here, so that it takes no room in the window.
    pub(crate) fn hold(&mut self, hold: &Hold) {
        for msg_id in &hold.msg_ids {
            let Some(sender) = self.in_flight.get(msg_id).map(|sent| sent.sender) else { continue };
            if self.held.len() >= MAX_HELD {
                return;
            }
            self.held.insert(sender);
            let theirs = self.in_flight.iter().filter(|(_, sent)| sent.sender == sender);
            for msg_id in theirs.map(|(id, _)| *id).collect::<Vec<_>>() {
                let seq = self.remove(&msg_id).map(|sent| sent.seq).filter(|seq| *seq != 0);
                // A live copy comes behind all that was offered.
                let first = seq.unwrap_or(self.offered.saturating_add(1));
                self.held_from = Some(self.held_from.map_or(first, |known| known.min(first)));
            }
        }
    }

    /// Sets the window, within the limits.
    pub(crate) fn credit(&mut self, credit: Credit) {
        self.blocked = false;
        self.window = Credit {
            window_messages: credit.window_messages.min(WINDOW_MESSAGES),
            window_bytes: credit.window_bytes.min(WINDOW_BYTES),
        };
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::{Address, DeviceId, Timestamp, UserId};
    use stvor_wire::client::AckOne;

    use super::*;

    const SENDER: MailboxId = MailboxId(1);

    fn id(number: u8) -> MessageId {
        MessageId::from_bytes([number; 16])
    }

    fn item(number: u8) -> Item {
        Item { msg_id: id(number), sender: SENDER, bytes: 512 }
    }

    fn row(number: u8, seq: u64) -> Row {
        Row {
            seq,
            msg_id: id(number),
            from: Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST),
            sender: SENDER,
            blob: vec![0; 512].into(),
            received_at: Timestamp::from_millis(0),
        }
    }

    fn page(rows: Vec<Row>) -> Page {
        Page { rows, complete: true }
    }

    fn opened() -> Delivery {
        let mut delivery = Delivery::new(5);
        delivery.open(0);
        delivery
    }

    fn ack(ones: &[(u64, u8)]) -> Ack {
        let single = ones.iter().map(|(seq, number)| AckOne { seq: *seq, msg_id: id(*number) }).collect();
        Ack { mailbox_epoch: 5, up_to: None, single }
    }

    #[test]
    fn a_live_copy_is_not_sent_again_after_its_commit() {
        let mut delivery = opened();
        assert_eq!(delivery.live(item(1), true), Live::Sent);
        delivery.copied();
        assert_eq!(delivery.committed(item(1), 1, (Some(Live::Sent), true)), Committed::Nothing);
        assert!(delivery.start_page().is_none());
        let rows = delivery.acknowledge(&ack(&[(0, 1)])).known;
        assert_eq!(rows, [AckRow { place: Place::Seq(1), msg_id: id(1) }]);
    }

    #[test]
    fn nothing_overtakes_a_message_that_waits_for_its_commit() {
        let mut delivery = opened();
        assert_eq!(delivery.live(item(1), false), Live::Owed);
        assert_eq!(delivery.live(item(2), true), Live::Owed);
        assert_eq!(delivery.committed(item(1), 1, (Some(Live::Owed), true)), Committed::Deliver);
        assert_eq!(delivery.live(item(3), true), Live::Owed, "2 is still owed");
        assert_eq!(delivery.committed(item(2), 2, (Some(Live::Owed), true)), Committed::Deliver);
        assert_eq!(delivery.committed(item(3), 3, (Some(Live::Owed), true)), Committed::Deliver);
        assert_eq!(delivery.live(item(4), true), Live::Sent);
        delivery.copied();
    }

    #[test]
    fn nothing_overtakes_a_live_copy_that_is_not_in_the_queue_yet() {
        let mut delivery = opened();
        assert_eq!(delivery.live(item(1), true), Live::Sent);
        assert_eq!(delivery.committed(item(1), 1, (Some(Live::Sent), true)), Committed::Nothing);
        // Of the same lane, by another connection of its sender.
        assert_eq!(delivery.live(item(2), true), Live::Owed);
        assert_eq!(delivery.committed(item(2), 2, (Some(Live::Owed), true)), Committed::Nothing);
        assert!(delivery.start_page().is_none());
        assert!(delivery.copied(), "what follows it is read");
        let (after, _, tail) = delivery.start_page().unwrap();
        assert_eq!((after, tail), (1, 2));
        assert_eq!(delivery.end_page(page(vec![row(2, 2)]), tail).len(), 1);
        assert_eq!(delivery.live(item(3), true), Live::Sent);
    }

    #[test]
    fn a_backlog_is_paged_and_nothing_overtakes_it() {
        let mut delivery = Delivery::new(5);
        assert_eq!(delivery.live(item(9), true), Live::Owed, "not open yet");
        delivery.open(2);
        let (after, _, tail) = delivery.start_page().unwrap();
        assert_eq!((after, tail), (0, 2));
        assert_eq!(delivery.committed(item(9), 3, (Some(Live::Owed), true)), Committed::Nothing);
        assert_eq!(delivery.live(item(10), true), Live::Owed, "the pump is reading");
        let sent = delivery.end_page(page(vec![row(1, 1), row(2, 2), row(9, 3)]), tail);
        assert_eq!(sent.len(), 3);
        assert!(delivery.start_page().is_none());
    }

    #[test]
    fn the_window_closes_at_its_limit_and_an_ack_opens_it() {
        let mut delivery = opened();
        delivery.credit(Credit { window_messages: 2, window_bytes: 1_000_000 });
        assert_eq!(delivery.live(item(1), true), Live::Sent);
        delivery.copied();
        assert_eq!(delivery.live(item(2), true), Live::Sent);
        delivery.copied();
        assert_eq!(delivery.live(item(3), true), Live::Owed);
        for (number, live) in [(1, Live::Sent), (2, Live::Sent), (3, Live::Owed)] {
            assert_eq!(
                delivery.committed(item(number), number.into(), (Some(live), true)),
                Committed::Nothing
            );
        }
        assert!(delivery.start_page().is_none());
        delivery.acknowledge(&ack(&[(1, 1)]));
        let (after, _, tail) = delivery.start_page().unwrap();
        assert_eq!((after, tail), (2, 3));
        assert_eq!(delivery.end_page(page(vec![row(3, 3)]), tail).len(), 1);
    }

    #[test]
    fn a_cumulative_ack_covers_only_what_was_delivered_with_a_seq() {
        let mut delivery = opened();
        assert_eq!(delivery.live(item(1), true), Live::Sent);
        delivery.copied();
        assert_eq!(delivery.committed(item(2), 1, (None, true)), Committed::Deliver);
        let up_to = Some(AckOne { seq: 1, msg_id: id(2) });
        let rows = delivery.acknowledge(&Ack { mailbox_epoch: 5, up_to, single: Vec::new() }).known;
        assert_eq!(rows, [AckRow { place: Place::Seq(1), msg_id: id(2) }]);
        assert_eq!(delivery.in_flight.len(), 1, "the live copy is still un-ACKed");
    }

    #[test]
    fn an_ack_of_another_epoch_deletes_nothing() {
        let mut delivery = opened();
        assert_eq!(delivery.live(item(1), true), Live::Sent);
        delivery.copied();
        let acked = delivery.acknowledge(&Ack { mailbox_epoch: 6, ..ack(&[(0, 1)]) });
        assert!(acked.known.is_empty() && acked.strays.is_empty());
    }

    #[test]
    fn gaps_left_by_expired_rows_do_not_stop_live_copies() {
        let mut delivery = Delivery::new(5);
        delivery.open(40);
        let (_, _, tail) = delivery.start_page().unwrap();
        assert!(delivery.end_page(page(Vec::new()), tail).is_empty());
        assert_eq!(delivery.live(item(1), true), Live::Sent);
        delivery.copied();
        assert_eq!(delivery.committed(item(1), 41, (Some(Live::Sent), true)), Committed::Nothing);
        assert_eq!(delivery.live(item(2), true), Live::Sent);
        delivery.copied();
    }

    #[test]
    fn a_page_cut_short_is_followed_by_another() {
        let mut delivery = Delivery::new(5);
        delivery.open(3);
        let (_, _, tail) = delivery.start_page().unwrap();
        delivery.end_page(Page { rows: vec![row(1, 1)], complete: false }, tail);
        assert_eq!(delivery.start_page().map(|(after, _, tail)| (after, tail)), Some((1, 3)));
    }

    #[test]
    fn a_busy_socket_leaves_the_message_to_the_pump() {
        let mut delivery = opened();
        assert_eq!(delivery.committed(item(1), 1, (None, false)), Committed::Pump);
        assert_eq!(delivery.start_page().map(|(after, _, tail)| (after, tail)), Some((0, 1)));
    }

    #[test]
    fn a_row_that_does_not_fit_waits_for_an_ack_and_is_not_read_again_before() {
        let mut delivery = opened();
        delivery.credit(Credit { window_messages: 10, window_bytes: 600 });
        delivery.open(2);
        let (_, _, tail) = delivery.start_page().unwrap();
        assert_eq!(delivery.end_page(page(vec![row(1, 1), row(2, 2)]), tail).len(), 1);
        assert!(delivery.start_page().is_none());
        delivery.acknowledge(&ack(&[(1, 1)]));
        assert_eq!(delivery.start_page().map(|(after, ..)| after), Some(1));
    }

    #[test]
    fn another_senders_message_with_the_same_id_waits_for_the_ack_of_the_first() {
        let mut delivery = opened();
        delivery.open(2);
        let (_, _, tail) = delivery.start_page().unwrap();
        let other = Row { sender: MailboxId(2), ..row(1, 2) };
        assert_eq!(delivery.end_page(page(vec![row(1, 1), other.clone()]), tail), [row(1, 1)]);
        assert!(delivery.start_page().is_none());
        delivery.acknowledge(&ack(&[(1, 1)]));
        let (_, _, tail) = delivery.start_page().unwrap();
        assert_eq!(delivery.end_page(page(vec![other.clone()]), tail), [other]);
    }

    #[test]
    fn a_held_sender_takes_no_room_in_the_window_and_holds_nobody_up() {
        let mut delivery = Delivery::new(5);
        delivery.credit(Credit { window_messages: 2, window_bytes: 1_000_000 });
        delivery.open(4);
        let other = |number, seq| Row { sender: MailboxId(2), ..row(number, seq) };
        let (_, _, tail) = delivery.start_page().unwrap();
        let rows = vec![row(1, 1), row(2, 2), row(3, 3), other(4, 4)];
        assert_eq!(delivery.end_page(page(rows.clone()), tail).len(), 2, "the window is full");
        assert!(delivery.start_page().is_none());
        delivery.hold(&Hold { msg_ids: vec![id(9)] });
        assert!(delivery.start_page().is_none(), "of what is not on the way nothing follows");
        delivery.hold(&Hold { msg_ids: vec![id(2)] });
        let (after, _, tail) = delivery.start_page().unwrap();
        assert_eq!((after, tail), (2, 4));
        assert_eq!(delivery.end_page(page(rows[2..].to_vec()), tail), [other(4, 4)]);
        // Live messages of the held sender pass by, those of others go out.
        assert_eq!(delivery.live(item(5), true), Live::Held);
        let free = Item { sender: MailboxId(2), ..item(6) };
        assert_eq!(delivery.live(free, true), Live::Sent, "it waits for no commit of the held one");
        delivery.copied();
        assert_eq!(delivery.committed(item(5), 5, (Some(Live::Held), true)), Committed::Nothing);
        assert_eq!(delivery.committed(free, 6, (Some(Live::Sent), true)), Committed::Nothing);
        assert_eq!((delivery.held(), delivery.offered()), (vec![SENDER], 0), "a cursor points before them");
        // What the device stored of it before is still acknowledged, by its place.
        assert_eq!(
            delivery.acknowledge(&ack(&[(1, 1)])).strays,
            [AckRow { place: Place::Seq(1), msg_id: id(1) }]
        );
        assert_eq!(Delivery::new(5).held.len(), 0, "another connection offers all of it");
    }

    #[test]
    fn one_sender_more_than_are_held_takes_room_as_before() {
        let mut delivery = opened();
        for number in 0..=MAX_HELD {
            let number = u8::try_from(number).unwrap();
            let from = Item { sender: MailboxId(number.into()), ..item(number) };
            assert_eq!(delivery.live(from, true), Live::Sent);
            delivery.copied();
            assert_eq!(
                delivery.committed(from, u64::from(number) + 1, (Some(Live::Sent), true)),
                Committed::Nothing
            );
            delivery.hold(&Hold { msg_ids: vec![id(number)] });
        }
        assert_eq!((delivery.held.len(), delivery.in_flight.len()), (MAX_HELD, 1));
    }
}

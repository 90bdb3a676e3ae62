//! What was sent and what arrived, compared by id.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A message that the relay accepted.
#[derive(Debug)]
struct Sent {
    id: String,
    text: String,
}

/// A line that the recipient printed.
#[derive(Debug)]
struct Arrived {
    id: String,
    text: String,
}

/// One direction of a conversation, from the first message to the last.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    sent: Vec<Sent>,
    arrived: Vec<Arrived>,
    /// Texts that were written to the sender and have no receipt yet, oldest first.
    written: std::collections::VecDeque<(String, Instant)>,
    began: HashMap<String, Instant>,
    latencies: Vec<Duration>,
}

/// How sent and arrived compare.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    /// Accepted, and never arrived.
    pub(crate) lost: usize,
    /// Arrived more than once under one id: lines that repeat after a SIGKILL.
    pub(crate) repeated: usize,
    /// One text under two ids: really sent twice.
    pub(crate) doubled: usize,
    /// Arrived with another text than was sent, or never sent at all.
    pub(crate) altered: usize,
    /// First arrivals that came after a later one.
    pub(crate) disordered: usize,
}

impl Balance {
    /// Whether nothing is lost, doubled, altered or out of order.
    pub(crate) fn holds(&self) -> bool {
        self.lost + self.doubled + self.altered + self.disordered == 0
    }
}

impl Tally {
    /// A text was given to the sender.
    pub(crate) fn wrote(&mut self, text: &str) {
        let now = Instant::now();
        self.written.push_back((text.to_owned(), now));
        self.began.insert(text.to_owned(), now);
    }

    /// The sender printed a receipt. Returns false if it is not one of acceptance.
    pub(crate) fn receipt(&mut self, receipt: &Value) -> bool {
        let status = receipt["status"].as_str().unwrap_or_default();
        let Some((text, _)) = self.written.pop_front() else { return false };
        self.sent.push(Sent { id: receipt["id"].as_str().unwrap_or_default().to_owned(), text });
        matches!(status, "accepted" | "delivered" | "read")
    }

    /// The recipient printed a message.
    pub(crate) fn arrival(&mut self, message: &Value, at: Instant) {
        let text = message["text"].as_str().unwrap_or_default().to_owned();
        if let Some(began) = self.began.remove(&text) {
            self.latencies.push(at.saturating_duration_since(began));
        }
        self.arrived.push(Arrived { id: message["id"].as_str().unwrap_or_default().to_owned(), text });
    }

    /// Messages that were accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.sent.len()
    }

    /// Different messages that arrived.
    pub(crate) fn distinct(&self) -> usize {
        self.arrived.iter().map(|arrived| arrived.id.as_str()).collect::<HashSet<_>>().len()
    }

    /// The part of the latencies (0 to 1) that this time covers.
    pub(crate) fn latency(&self, part: f64) -> Option<Duration> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let place = ((sorted.len() as f64 * part).ceil() as usize).saturating_sub(1);
        sorted.get(place).copied()
    }

    /// Compares.
    pub(crate) fn balance(&self) -> Balance {
        let mut balance = Balance::default();
        let place: HashMap<&str, usize> =
            self.sent.iter().enumerate().map(|(place, sent)| (sent.id.as_str(), place)).collect();
        let mut seen = HashSet::new();
        let mut texts = HashMap::new();
        let mut furthest = 0;
        for arrived in &self.arrived {
            if !seen.insert(arrived.id.as_str()) {
                balance.repeated += 1;
                continue;
            }
            if texts.insert(arrived.text.as_str(), arrived.id.as_str()).is_some() {
                balance.doubled += 1;
            }
            match place.get(arrived.id.as_str()) {
                Some(place) if self.sent[*place].text == arrived.text => {
                    if *place < furthest {
                        balance.disordered += 1;
                    }
                    furthest = furthest.max(*place);
                }
                _ => balance.altered += 1,
            }
        }
        balance.lost = self.sent.iter().filter(|sent| !seen.contains(sent.id.as_str())).count();
        balance
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tally(sent: &[(&str, &str)], arrived: &[(&str, &str)]) -> Balance {
        let mut tally = Tally::default();
        for (id, text) in sent {
            tally.wrote(text);
            assert!(tally.receipt(&json!({ "id": id, "status": "accepted" })));
        }
        for (id, text) in arrived {
            tally.arrival(&json!({ "id": id, "text": text }), Instant::now());
        }
        tally.balance()
    }

    #[test]
    fn what_is_sent_and_arrives_once_in_order_balances() {
        let balance = tally(&[("1", "a"), ("2", "b")], &[("1", "a"), ("2", "b")]);
        assert_eq!(balance, Balance::default());
        assert!(balance.holds());
    }

    #[test]
    fn every_way_to_go_wrong_is_counted() {
        assert_eq!(tally(&[("1", "a"), ("2", "b")], &[("2", "b")]).lost, 1);
        assert_eq!(tally(&[("1", "a")], &[("1", "a"), ("1", "a")]).repeated, 1);
        assert_eq!(tally(&[("1", "a"), ("2", "a")], &[("1", "a"), ("2", "a")]).doubled, 1);
        assert_eq!(tally(&[("1", "a")], &[("1", "b")]).altered, 1);
        assert_eq!(tally(&[("1", "a")], &[("1", "a"), ("9", "x")]).altered, 1);
        assert_eq!(tally(&[("1", "a"), ("2", "b")], &[("2", "b"), ("1", "a")]).disordered, 1);
    }

    #[test]
    fn a_refusal_is_no_receipt_of_acceptance() {
        let mut tally = Tally::default();
        tally.wrote("a");
        assert!(!tally.receipt(&json!({ "id": "1", "status": "failed" })));
        assert!(!tally.receipt(&json!({ "id": "1", "status": "accepted" })), "nothing was written for it");
    }
}

//! What became of the messages of one direction.

use std::collections::{HashMap, HashSet};

/// A role and which of its processes.
pub(super) type Life = (usize, usize);

/// How the application of one process got on with a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It was handed out.
    Shown,
    /// The process began to say that it is done with.
    Begun,
    /// It was told that this is on record.
    Consumed,
    /// It was told that the message is another's now.
    Lost,
    /// It was told that nobody knows.
    Unsure,
}

#[derive(Default)]
struct Message {
    taken: bool,
    fates: Vec<(Life, Fate)>,
}

impl Message {
    /// Nothing more has to come of it: it is consumed, or whoever consumed it could not tell any more.
    fn is_settled(&self, dead: &HashSet<Life>) -> bool {
        self.fates.iter().any(|(life, fate)| match fate {
            Fate::Consumed | Fate::Unsure => true,
            Fate::Begun => dead.contains(life),
            Fate::Shown | Fate::Lost => false,
        })
    }
}

/// The history of one direction.
#[derive(Default)]
pub(super) struct Judge {
    messages: HashMap<String, Message>,
    dead: HashSet<Life>,
    /// How many messages were consumed when a process was started.
    consumed_before: HashMap<Life, usize>,
    /// Messages that were consumed, numbered as they were.
    consumed: HashMap<String, usize>,
    /// The number that a process showed last of each sender.
    reached: HashMap<(Life, String), usize>,
    /// Whether one process receives all, so that it shows what a sender sent in order.
    ordered: bool,
    pub(super) taken: usize,
    pub(super) arrived: usize,
    pub(super) again: usize,
    violations: Vec<String>,
}

impl Judge {
    /// Of a direction whose messages one process receives.
    pub(super) fn ordered() -> Self {
        Self { ordered: true, ..Self::default() }
    }

    pub(super) fn sent(&mut self, id: &str) {
        self.messages.insert(id.to_owned(), Message::default());
    }

    pub(super) fn taken(&mut self, id: &str) {
        match self.messages.get_mut(id) {
            Some(message) if !message.taken => {
                message.taken = true;
                self.taken += 1;
            }
            _ => self.violations.push(format!("{id} was taken twice, or without being sent")),
        }
    }

    pub(super) fn consumed(&self) -> usize {
        self.consumed.len()
    }

    pub(super) fn started(&mut self, life: Life) {
        self.consumed_before.insert(life, self.consumed.len());
    }

    pub(super) fn died(&mut self, life: Life) {
        self.dead.insert(life);
    }

    /// What a process said of a message: true if it was something.
    pub(super) fn hear(&mut self, life: Life, word: &str, id: &str) -> bool {
        let fate = match word {
            "shown" => return self.shown(life, id),
            "begun" => Fate::Begun,
            "consumed" => Fate::Consumed,
            "lost" => Fate::Lost,
            "unsure" => Fate::Unsure,
            _ => return false,
        };
        let known = self.messages.get_mut(id);
        match known.and_then(|message| message.fates.iter_mut().rev().find(|(by, _)| *by == life)) {
            Some((_, present)) => *present = fate,
            None => self.violations.push(format!("{id} was {word} by {life:?}, which never had it")),
        }
        let number = self.consumed.len();
        if fate == Fate::Consumed && self.consumed.insert(id.to_owned(), number).is_some() {
            self.violations.push(format!("{id} was consumed twice, now by {life:?}"));
        }
        true
    }

    fn shown(&mut self, life: Life, id: &str) -> bool {
        let Some(message) = self.messages.get_mut(id) else {
            self.violations.push(format!("{id} arrived and was never sent"));
            return true;
        };
        if message.fates.is_empty() {
            self.arrived += 1;
        } else {
            self.again += 1;
        }
        if message.fates.iter().any(|(by, fate)| *by == life && *fate != Fate::Lost) {
            self.violations.push(format!("{id} was handed out twice by {life:?}"));
        }
        message.fates.push((life, Fate::Shown));
        let before = self.consumed_before.get(&life).copied().unwrap_or_default();
        if self.consumed.get(id).is_some_and(|number| *number < before) {
            self.violations
                .push(format!("{id} was handed out by {life:?}, which came after it was consumed"));
        }
        if let Some((sender, number)) = id.split_once('-').filter(|_| self.ordered) {
            let number: usize = number.parse().unwrap_or_default();
            let reached = self.reached.entry((life, sender.to_owned())).or_insert(number);
            if *reached > number {
                self.violations.push(format!("{id} was handed out by {life:?} after {sender}-{reached}"));
            }
            *reached = number.max(*reached);
        }
        true
    }

    /// Messages of which something has to come still.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &str> {
        self.messages
            .iter()
            .filter(|(_, message)| message.taken && !message.is_settled(&self.dead))
            .map(|(id, _)| id.as_str())
    }

    /// Everything that is wrong.
    pub(super) fn verdict(mut self) -> Vec<String> {
        let lost: Vec<String> = self.unsettled().map(|id| format!("{id} was taken and got lost")).collect();
        self.violations.extend(lost);
        for (id, message) in &self.messages {
            // Whoever is not dead and was not told otherwise has it: one at most.
            let has = |(life, fate): &&(Life, Fate)| match fate {
                Fate::Consumed => true,
                Fate::Shown | Fate::Begun => !self.dead.contains(life),
                Fate::Lost | Fate::Unsure => false,
            };
            let holders: Vec<Life> = message.fates.iter().filter(has).map(|(life, _)| *life).collect();
            if holders.len() > 1 {
                self.violations.push(format!("{id} was in the hands of {holders:?} at once"));
            }
        }
        self.violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Life = (1, 1);
    const B: Life = (2, 1);

    fn history(steps: &[(&str, Life)]) -> Vec<String> {
        let mut judge = Judge::ordered();
        for id in ["x-0", "x-1"] {
            judge.sent(id);
        }
        judge.taken("x-0");
        for (step, life) in steps {
            match step.split_once(' ') {
                Some((word, id)) => assert!(judge.hear(*life, word, id)),
                None if *step == "died" => judge.died(*life),
                None => judge.started(*life),
            }
        }
        judge.verdict()
    }

    #[test]
    fn a_message_that_one_consumes_and_one_that_a_killed_one_left_are_right() {
        assert!(history(&[("shown x-0", A), ("begun x-0", A), ("consumed x-0", A)]).is_empty());
        let taken_over =
            [("shown x-0", A), ("died", A), ("shown x-0", B), ("begun x-0", B), ("consumed x-0", B)];
        assert!(history(&taken_over).is_empty());
        assert!(history(&[("shown x-0", A), ("begun x-0", A), ("died", A)]).is_empty());
    }

    #[test]
    fn what_was_taken_and_never_consumed_is_lost() {
        assert_eq!(history(&[]).len(), 1);
        assert_eq!(history(&[("shown x-0", A), ("died", A)]).len(), 1);
    }

    #[test]
    fn what_two_have_at_once_or_consume_is_wrong() {
        let both = [("shown x-0", A), ("shown x-0", B), ("begun x-0", B), ("consumed x-0", B)];
        assert_eq!(history(&both).len(), 1);
        let twice =
            [("shown x-0", A), ("begun x-0", A), ("consumed x-0", A), ("shown x-0", B), ("consumed x-0", B)];
        assert!(history(&twice).len() >= 2);
        let late =
            [("shown x-0", A), ("consumed x-0", A), ("died", A), ("start", B), ("shown x-0", B), ("died", B)];
        assert_eq!(history(&late).len(), 1);
    }

    #[test]
    fn order_and_unknown_messages_are_seen() {
        let swapped = [("shown x-1", A), ("consumed x-1", A), ("shown x-0", A), ("consumed x-0", A)];
        assert_eq!(history(&swapped).len(), 1);
        assert_eq!(history(&[("shown x-0", A), ("consumed x-0", A), ("shown y-0", A)]).len(), 1);
    }
}

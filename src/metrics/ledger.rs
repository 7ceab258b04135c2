//! The ledger of messages by kind: number, bytes, bytes sent and seconds.

use crate::units::{Bytes, Second};

/// Purpose of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The first broadcast of parameters; with local SGD, the averages of parameters and of the optimizer's moments.
    Parameters,
    /// All-reduce of gradient buckets.
    Gradients,
    /// Batch-norm statistics.
    Buffers,
    /// Losses, counts and times gathered for the run file.
    Metrics,
    /// Barriers, checksums, agreement on errors.
    Control,
}

impl Kind {
    /// All kinds, in the order of the tables.
    pub const ALL: [Kind; 5] = [Kind::Parameters, Kind::Gradients, Kind::Buffers, Kind::Metrics, Kind::Control];

    /// Name in tables and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Parameters => "parameters",
            Kind::Gradients => "gradients",
            Kind::Buffers => "buffers",
            Kind::Metrics => "metrics",
            Kind::Control => "control",
        }
    }
}

/// Totals of the messages of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Entry {
    /// Collective calls.
    pub messages: u64,
    /// Bytes of the buffers handed to the collectives on this rank, by any transport. An all-reduce made of two collectives
    /// counts half of its buffer in each.
    pub bytes: Bytes,
    /// Bytes that all ranks together sent for these collectives as messages: `2 (n-1)` buffers per all-reduce, `n-1` per
    /// broadcast. Exchange through shared memory within a host sends no message.
    pub sent: Bytes,
    /// Time inside the calls on this rank.
    pub seconds: Second,
}

impl Entry {
    /// Sum of this entry and `other`.
    pub fn and(self, other: Entry) -> Entry {
        Entry {
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
            sent: self.sent + other.sent,
            seconds: self.seconds + other.seconds,
        }
    }
}

/// Totals of all messages of a communicator, as one rank sees them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    entries: [Entry; Kind::ALL.len()],
}

impl Ledger {
    /// Counts one message.
    pub fn record(&mut self, kind: Kind, bytes: Bytes, sent: Bytes, seconds: Second) {
        let entry = &mut self.entries[kind as usize];
        entry.messages += 1;
        entry.bytes += bytes;
        entry.sent += sent;
        entry.seconds += seconds;
    }

    /// Creates a ledger from `entry`, called for every kind.
    pub fn of(entry: impl Fn(Kind) -> Entry) -> Ledger {
        Ledger { entries: Kind::ALL.map(entry) }
    }

    /// Sum of this ledger and `other`.
    pub fn plus(&self, other: &Ledger) -> Ledger {
        Ledger::of(|kind| self.entry(kind).and(other.entry(kind)))
    }

    /// Totals of one kind.
    pub fn entry(&self, kind: Kind) -> Entry {
        self.entries[kind as usize]
    }

    /// Difference to an `earlier` state of the ledger, for one kind.
    pub fn since(&self, earlier: &Ledger, kind: Kind) -> Entry {
        let (now, then) = (self.entry(kind), earlier.entry(kind));
        Entry {
            messages: now.messages - then.messages,
            bytes: now.bytes - then.bytes,
            sent: now.sent - then.sent,
            seconds: now.seconds - then.seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart() {
        let mut ledger = Ledger::default();
        ledger.record(Kind::Gradients, 100, 200, 0.5);
        let before = ledger.clone();
        ledger.record(Kind::Gradients, 20, 40, 0.25);
        ledger.record(Kind::Control, 8, 0, 0.0);
        assert_eq!(ledger.entry(Kind::Gradients), Entry { messages: 2, bytes: 120, sent: 240, seconds: 0.75 });
        assert_eq!(ledger.since(&before, Kind::Gradients), Entry { messages: 1, bytes: 20, sent: 40, seconds: 0.25 });
        assert_eq!(ledger.entry(Kind::Buffers), Entry::default());
    }
}

//! Records that are not on disk yet (R20). The daemon writes them in batches, so that a flood of them does not block it
//! for long. Each record stays until its write is confirmed.

use std::collections::BTreeMap;

use super::Record;
use super::persist::RecordKey;

/// The most changes that are written at once.
const MAX_BATCH: usize = 2_000;

/// The delay after a failed write, such as to a full disk, in milliseconds.
const RETRY_DELAY: i64 = 1_000;

/// The changes, at most one per record: a later change of a record replaces an earlier one.
///
/// Invariant: a change is in `waiting` or `writing` until a batch with it was written and it was not changed
/// again meanwhile.
#[derive(Debug, Default)]
pub(super) struct DirtyRecords {
    waiting: BTreeMap<RecordKey, Record>,
    /// The batch whose write is not confirmed yet.
    writing: BTreeMap<RecordKey, Record>,
    /// When the next write is allowed, in milliseconds.
    retry_at: i64,
}

impl DirtyRecords {
    pub(super) fn put(&mut self, record: Record) {
        self.waiting.insert(record.key(), record);
    }

    /// Whether a record is not on disk as it is now.
    pub(super) fn contains(&self, key: &RecordKey) -> bool {
        self.waiting.contains_key(key) || self.writing.contains_key(key)
    }

    /// The records to write now, if any; then [`on_written`](Self::on_written).
    pub(super) fn next_batch(&mut self, now: i64) -> Option<Vec<Record>> {
        self.take_back(); // an earlier batch had no result
        if self.waiting.is_empty() || now < self.retry_at {
            return None;
        }
        let rest = self.waiting.keys().nth(MAX_BATCH).cloned();
        let rest = rest.map(|key| self.waiting.split_off(&key)).unwrap_or_default();
        self.writing = std::mem::replace(&mut self.waiting, rest);
        Some(self.writing.values().cloned().collect())
    }

    /// Handles the result of a write.
    pub(super) fn on_written(&mut self, written: bool, now: i64) {
        if written {
            self.writing.clear();
            self.retry_at = 0;
        } else {
            self.take_back();
            self.retry_at = now + RETRY_DELAY;
        }
    }

    /// Allows a write after the clock was set back, so that no record waits for a time far ahead.
    pub(super) fn on_clock_rollback(&mut self) {
        self.retry_at = 0;
    }

    fn take_back(&mut self) {
        for (key, record) in std::mem::take(&mut self.writing) {
            self.waiting.entry(key).or_insert(record);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.writing.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Jail};
    use crate::wire::Ban;

    fn record(n: u32, start: i64) -> Record {
        let address = Address::new(&std::net::Ipv4Addr::from(n).to_string()).unwrap();
        let ban = Ban { start, bantime: 600 };
        Record::PendingDetection((Jail::new("sshd").unwrap(), address), Some(ban))
    }

    #[test]
    fn change_stays_until_it_is_written_as_it_is() {
        let mut dirty = DirtyRecords::default();
        assert_eq!(dirty.next_batch(0), None);
        dirty.put(record(1, 1));
        dirty.put(record(1, 2));
        dirty.put(record(2, 1));
        assert_eq!(dirty.next_batch(0), Some(vec![record(1, 2), record(2, 1)]));
        // One of them changes again before the write ends, and a new one is added.
        dirty.put(record(1, 3));
        dirty.put(record(3, 1));
        assert!(dirty.contains(&record(2, 0).key()));
        dirty.on_written(true, 0);
        assert!(!dirty.contains(&record(2, 0).key()));
        assert_eq!(dirty.next_batch(0), Some(vec![record(1, 3), record(3, 1)]));
        // The disk is full; meanwhile one changes again.
        dirty.put(record(1, 4));
        dirty.on_written(false, 5);
        assert_eq!(dirty.next_batch(1_004), None);
        assert_eq!(dirty.next_batch(1_005), Some(vec![record(1, 4), record(3, 1)]));
        // The batch had no result.
        assert_eq!(dirty.next_batch(1_006), Some(vec![record(1, 4), record(3, 1)]));
        dirty.on_written(true, 1_007);
        assert_eq!((dirty.next_batch(1_007), dirty.len()), (None, 0));
    }

    #[test]
    fn many_changes_are_written_in_batches() {
        let mut dirty = DirtyRecords::default();
        for n in 0..4_500 {
            dirty.put(record(n, 1));
        }
        let mut batches = Vec::new();
        while let Some(batch) = dirty.next_batch(0) {
            batches.push(batch.len());
            dirty.on_written(true, 0);
        }
        assert_eq!(batches, [2_000, 2_000, 500]);
    }
}

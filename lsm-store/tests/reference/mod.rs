//! A second in-memory table, written from the rules and not from `memtable.rs`: the list of accepted writes, from which
//! every answer is found by going through all of it. Slow and plain; it is what the property tests compare with.

/// One accepted write; `value` is `None` for a delete, which then has a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) key: Vec<u8>,
    pub(crate) seq: u64,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) deleted_at: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Reference {
    pub(crate) writes: Vec<Write>,
}

impl Reference {
    /// Whether the write is accepted.
    pub(crate) fn write(&mut self, write: Write) -> bool {
        if self.writes.iter().any(|earlier| earlier.seq >= write.seq) {
            return false;
        }
        self.writes.push(write);
        true
    }

    pub(crate) fn get(&self, key: &[u8], snapshot: u64) -> Option<&Write> {
        let mut best: Option<&Write> = None;
        for write in &self.writes {
            let newer = best.is_none_or(|best| write.seq > best.seq);
            if write.key == key && write.seq <= snapshot && newer {
                best = Some(write);
            }
        }
        best
    }

    pub(crate) fn scan(&self, within: impl Fn(&[u8]) -> bool, snapshot: u64) -> Vec<&Write> {
        let mut found: Vec<&Write> = Vec::new();
        for write in self.writes.iter().filter(|write| within(&write.key)) {
            if self.get(&write.key, snapshot) == Some(write) {
                found.push(write);
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found
    }

    pub(crate) fn sorted(&self) -> Vec<&Write> {
        let mut all: Vec<&Write> = self.writes.iter().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key).then(b.seq.cmp(&a.seq)));
        all
    }

    pub(crate) fn distinct_keys(&self) -> Vec<&[u8]> {
        let mut keys: Vec<&[u8]> = self.writes.iter().map(|write| write.key.as_slice()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

//! The operations in flight of all links of a queue.
//!
//! The invariant: a number names one operation for as long as it is in flight, and then none until its place has been used
//! another 65536 times: an answer that comes twice or late finds nothing.

/// Most operations in flight.
pub(super) const MAX_OPS: usize = 1 << 16;

/// An operation in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    /// The caller's number.
    pub(super) caller: u32,
    /// The connection it went to.
    pub(super) conn: u16,
    /// Bytes of data that the answer has.
    pub(super) answer_bytes: usize,
}

struct Slot {
    sequence: u16,
    op: Option<Op>,
}

/// A table of operations that does not grow.
pub(super) struct Ops {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

impl Ops {
    pub(super) fn new(ops: usize) -> Self {
        let ops = ops.clamp(1, MAX_OPS);
        let slots = (0..ops).map(|_| Slot { sequence: 0, op: None }).collect();
        Self { slots, free: (0..ops).rev().map(|index| index as u16).collect() }
    }

    /// Operations in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Starts an operation; gives its number. `None` if there are too many.
    pub(super) fn start(&mut self, op: Op) -> Option<u32> {
        let index = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        slot.sequence = slot.sequence.wrapping_add(1);
        slot.op = Some(op);
        Some(u32::from(slot.sequence) << 16 | u32::from(index))
    }

    fn slot(&self, id: u32) -> Option<&Slot> {
        self.slots.get((id & 0xffff) as usize).filter(|slot| u32::from(slot.sequence) == id >> 16)
    }

    pub(super) fn get(&self, id: u32) -> Option<Op> {
        self.slot(id)?.op
    }

    /// Ends an operation.
    pub(super) fn finish(&mut self, id: u32) -> Option<Op> {
        self.slot(id)?;
        let op = self.slots.get_mut((id & 0xffff) as usize)?.op.take()?;
        self.free.push(id as u16);
        Some(op)
    }

    /// Whether one in flight is as `wanted` says.
    pub(super) fn any(&self, wanted: impl Fn(&Op) -> bool) -> bool {
        self.slots.iter().filter_map(|slot| slot.op.as_ref()).any(wanted)
    }

    /// An operation of a connection that `of` picks.
    pub(super) fn find(&self, of: impl Fn(u16) -> bool) -> Option<u32> {
        let index = self.slots.iter().position(|slot| slot.op.is_some_and(|op| of(op.conn)))?;
        Some(u32::from(self.slots.get(index)?.sequence) << 16 | index as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_used_once_and_the_table_is_bounded() {
        let op = Op { caller: 5, conn: 1, answer_bytes: 64 };
        let mut ops = Ops::new(2);
        let (first, second) = (ops.start(op).unwrap(), ops.start(Op { conn: 2, ..op }).unwrap());
        assert!(ops.start(op).is_none());
        assert_eq!(ops.find(|conn| conn == 2), Some(second));
        assert_eq!(ops.finish(first).unwrap().caller, 5);
        assert!(ops.finish(first).is_none() && ops.get(first).is_none());
        let third = ops.start(op).unwrap();
        assert_ne!(third, first);
        assert!(ops.finish(first).is_none(), "a late answer");
        assert_eq!(ops.len(), 2);
        assert!(ops.get(u32::MAX).is_none());
    }
}

//! The memory a node lends: one mapping cut into 1 MiB blocks, and who holds which.
//!
//! A client is a random number it chose; its *lease* lasts as long as it has a connection, and a grace time more. When
//! a lease ends its blocks are wiped and free again, so a dead client leaks nothing and nobody reads another's pages.
//! Each lending of a block has a generation of its own, so nothing that was meant for an earlier one touches it.
//!
//! The node lends no more than its *limit*, which may fall below what is lent: then every client is asked for its share,
//! in proportion to what it holds. A lent block is never dropped.
//!
//! Invariant: a block's bytes are touched only under its own lock, after checking there that the lease, the
//! incarnation and the generation that are asked for are current. Locks are taken in the order leases, then one block.
//!
//! Wiping takes long (a second per GiB when memory is locked), so it happens without the lock on the leases: a block
//! that is being wiped is in no lease any more and not free yet.

mod block;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::stats::{ClientReport, Counters, StoreReport};
use crate::error::Error;
use crate::proto::{Hello, INFO_DRAINING, Info, MAX_BLOCKS_PER_MESSAGE, Range, Status};
use crate::units::RemoteBlock;
use block::Block;

struct Lease {
    id: u64,
    incarnation: Arc<AtomicU64>,
    connections: u32,
    gone_since: Option<Instant>,
    goodbye: bool,
    grace: Duration,
    /// Number and generation of each.
    blocks: BTreeMap<u32, u32>,
    counters: Arc<Counters>,
}

struct Leases {
    by_client: HashMap<u64, Lease>,
    free: Vec<u32>,
    /// Free blocks of a locked store whose memory went back to the system.
    parked: Vec<u32>,
    lent: u32,
    /// Most blocks to be lent.
    limit: u32,
    reclaim: Option<Reclaim>,
    draining: Option<Instant>,
    next_lease: u64,
    /// Of clients that are gone.
    retired: Counters,
}

#[derive(Clone, Copy)]
struct Reclaim {
    deadline: Instant,
    warned: bool,
}

/// One connection's right to use its client's blocks.
pub struct Session {
    client_id: u64,
    lease: u64,
    incarnation: u64,
    current: Arc<AtomicU64>,
    pub(super) counters: Arc<Counters>,
}

/// The store of one node.
pub struct Store {
    epoch: u64,
    quota_blocks: u32,
    locked: AtomicBool,
    blocks: Vec<Mutex<Block>>,
    leases: Mutex<Leases>,
}

impl Store {
    /// A store of `memory_bytes`, rounded down to whole blocks. `epoch` tells this start of the node from others.
    ///
    /// # Errors
    /// Less than one block or more than 4 TiB is asked for, or the system has no such memory.
    pub fn new(memory_bytes: u64, epoch: u64) -> Result<Self, Error> {
        let blocks: Vec<_> = block::map(memory_bytes)?.into_iter().map(Mutex::new).collect();
        let count = blocks.len() as u32;
        let leases = Leases {
            by_client: HashMap::new(),
            free: (0..count).rev().collect(),
            parked: Vec::new(),
            lent: 0,
            limit: count,
            reclaim: None,
            draining: None,
            next_lease: 1,
            retired: Counters::default(),
        };
        let leases = Mutex::new(leases);
        Ok(Self { epoch, quota_blocks: 0, locked: AtomicBool::new(false), blocks, leases })
    }

    /// Lends each client at most so many blocks; 0 for no such limit.
    pub fn with_quota(mut self, quota_blocks: u32) -> Self {
        self.quota_blocks = quota_blocks;
        self
    }

    /// The process's memory has been locked: every free block takes memory until it is parked.
    pub fn set_locked(&self) {
        self.locked.store(true, Ordering::SeqCst);
    }

    /// Blocks in all.
    pub fn capacity(&self) -> u32 {
        self.blocks.len() as u32
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self, number: u32) -> Option<MutexGuard<'_, Block>> {
        self.blocks.get(number as usize).map(|block| block.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a connection of a client: joins its lease, or begins one. `grace` is the longest time its blocks are kept
    /// without a connection.
    ///
    /// # Errors
    /// `Stale` when the client has reconnected since; `Draining` for a new client when the node is about to end.
    pub fn open(&self, hello: &Hello, grace: Duration) -> Result<Session, Status> {
        let mut leases = self.leases();
        let id = leases.next_lease;
        if leases.draining.is_some() && !leases.by_client.contains_key(&hello.client_id) {
            return Err(Status::Draining);
        }
        let lease = leases.by_client.entry(hello.client_id).or_insert_with(|| Lease {
            id,
            incarnation: Arc::new(AtomicU64::new(hello.incarnation)),
            connections: 0,
            gone_since: None,
            goodbye: false,
            grace,
            blocks: BTreeMap::new(),
            counters: Arc::default(),
        });
        if lease.incarnation.load(Ordering::SeqCst) > hello.incarnation {
            return Err(Status::Stale);
        }
        lease.incarnation.store(hello.incarnation, Ordering::SeqCst);
        lease.connections += 1;
        (lease.gone_since, lease.goodbye) = (None, false);
        lease.grace = match hello.grace_s {
            0 => grace,
            asked => grace.min(Duration::from_secs(u64::from(asked))),
        };
        let (lease, current) = ((lease.id, Arc::clone(&lease.counters)), Arc::clone(&lease.incarnation));
        leases.next_lease += u64::from(lease.0 == id);
        let (lease, counters) = lease;
        Ok(Session { client_id: hello.client_id, lease, incarnation: hello.incarnation, current, counters })
    }

    /// Closes a connection. After the last one the lease lasts a grace time more, unless the client said goodbye on one
    /// of them, or holds nothing.
    pub fn close(&self, session: &Session, goodbye: bool, now: Instant) {
        let mut leases = self.leases();
        let Some(lease) =
            leases.by_client.get_mut(&session.client_id).filter(|lease| lease.id == session.lease)
        else {
            return;
        };
        lease.connections = lease.connections.saturating_sub(1);
        lease.goodbye |= goodbye;
        if lease.connections > 0 {
            return;
        }
        lease.gone_since = Some(now);
        if lease.goodbye || lease.blocks.is_empty() {
            let ended = leases.end(session.client_id);
            drop(leases);
            drop(self.free(&ended));
        }
    }

    /// Ends the leases of clients that have been gone for longer than their grace time. Gives the number of blocks
    /// taken back.
    pub fn expire(&self, now: Instant) -> u32 {
        let gone = |lease: &Lease| {
            lease.gone_since.is_some_and(|since| now.saturating_duration_since(since) >= lease.grace)
        };
        let mut leases = self.leases();
        let clients: Vec<u64> =
            leases.by_client.iter().filter(|(_, lease)| gone(lease)).map(|(client, _)| *client).collect();
        let expired: Vec<Vec<u32>> = clients.iter().map(|client| leases.end(*client)).collect();
        drop(leases);
        expired.iter().for_each(|blocks| drop(self.free(blocks)));
        expired.iter().map(|blocks| blocks.len() as u32).sum()
    }

    /// Wipes blocks that were taken off their lease, then makes them free. Gives the leases, to look at. The caller
    /// must not hold them.
    fn free(&self, taken: &[u32]) -> MutexGuard<'_, Leases> {
        for number in taken {
            if let Some(mut block) = self.block(*number) {
                block.wipe();
            }
        }
        let mut leases = self.leases();
        leases.free.extend(taken);
        leases
    }

    /// What the node has, as this client sees it.
    pub fn info(&self, session: &Session, now: Instant) -> Info {
        let leases = self.leases();
        let held = leases.by_client.get(&session.client_id).map_or(0, |lease| lease.blocks.len() as u32);
        let deadline = leases.draining.or(leases.reclaim.map(|reclaim| reclaim.deadline));
        let reclaim_blocks = leases.wanted_back(held);
        let left =
            deadline.filter(|_| reclaim_blocks > 0).map(|deadline| deadline.saturating_duration_since(now));
        Info {
            epoch: self.epoch,
            lease: session.lease,
            capacity_blocks: self.capacity(),
            free_blocks: leases.lendable(held, self.quota_blocks),
            held_blocks: held,
            reclaim_blocks,
            reclaim_deadline_ms: left.map_or(0, |left| u32::try_from(left.as_millis()).unwrap_or(u32::MAX)),
            flags: if leases.draining.is_some() { INFO_DRAINING } else { 0 },
            quota_blocks: self.quota_blocks,
        }
    }

    /// Blocks lent now, and clients that hold a lease.
    pub fn lent(&self) -> (u32, u32) {
        let leases = self.leases();
        (leases.lent, leases.by_client.len() as u32)
    }

    /// Lends up to `blocks.len()` blocks, all zero. Gives how many, and how many more this client can have.
    ///
    /// # Errors
    /// `Stale` when the client has reconnected since; `Draining`; `Quota` when it has all it may have.
    pub fn reserve(&self, session: &Session, blocks: &mut [RemoteBlock]) -> Result<(usize, u32), Status> {
        let mut guard = self.leases();
        let leases = &mut *guard;
        let draining = leases.draining.is_some();
        let lease = leases.by_client.get(&session.client_id).filter(|lease| lease.id == session.lease);
        let lease = lease.filter(|_| session.is_current()).ok_or(Status::Stale)?;
        let held = lease.blocks.len() as u32;
        if draining {
            return Err(Status::Draining);
        }
        if self.quota_blocks > 0 && held >= self.quota_blocks && !blocks.is_empty() {
            return Err(Status::Quota);
        }
        let lendable = leases.lendable(held, self.quota_blocks) as usize;
        let mut granted = 0;
        for slot in blocks.iter_mut().take(lendable) {
            let Some(number) = leases.free.pop() else { break };
            let Some(mut block) = self.block(number) else { break };
            *slot = RemoteBlock { number, generation: block.lend(session.lease) };
            if let Some(lease) = leases.by_client.get_mut(&session.client_id) {
                lease.blocks.insert(number, slot.generation);
            }
            granted += 1;
        }
        leases.lent += granted as u32;
        Ok((granted, leases.lendable(held + granted as u32, self.quota_blocks)))
    }

    /// Takes blocks back and wipes them. Gives the number this client can have now.
    ///
    /// # Errors
    /// `NotYours` or `Reused` at the first block the client does not hold in that generation; those before it are
    /// released.
    pub fn release(
        &self,
        session: &Session,
        blocks: impl Iterator<Item = RemoteBlock>,
    ) -> Result<u32, Status> {
        let mut taken = Vec::new();
        let mut wrong = None;
        let held;
        {
            let mut leases = self.leases();
            let lease =
                leases.by_client.get_mut(&session.client_id).filter(|lease| lease.id == session.lease);
            let lease = lease.filter(|_| session.is_current()).ok_or(Status::Stale)?;
            for block in blocks {
                match lease.blocks.get(&block.number) {
                    Some(generation) if *generation == block.generation => {}
                    other => {
                        wrong = Some(if other.is_some() { Status::Reused } else { Status::NotYours });
                        break;
                    }
                }
                lease.blocks.remove(&block.number);
                taken.push(block.number);
            }
            held = lease.blocks.len() as u32;
            leases.lent = leases.lent.saturating_sub(taken.len() as u32);
        }
        let lendable = self.free(&taken).lendable(held, self.quota_blocks);
        wrong.map_or(Ok(lendable), Err)
    }

    /// Fills `found` with blocks that the client holds, from number `from` on. Gives how many, and the number to go on
    /// from; 0 when that was all.
    ///
    /// # Errors
    /// `Stale` when the client has reconnected since.
    pub fn list(
        &self,
        session: &Session,
        from: u32,
        found: &mut [RemoteBlock; MAX_BLOCKS_PER_MESSAGE],
    ) -> Result<(usize, u32), Status> {
        let leases = self.leases();
        let lease = leases.by_client.get(&session.client_id).filter(|lease| lease.id == session.lease);
        let lease = lease.filter(|_| session.is_current()).ok_or(Status::Stale)?;
        let mut blocks = lease.blocks.range(from..);
        let mut count = 0;
        for (slot, (number, generation)) in found.iter_mut().zip(&mut blocks) {
            *slot = RemoteBlock { number: *number, generation: *generation };
            count += 1;
        }
        // `zip` took none too many: it asks its first side first.
        Ok((count, blocks.next().map_or(0, |(number, _)| *number)))
    }

    fn held(&self, session: &Session, wanted: RemoteBlock) -> Result<MutexGuard<'_, Block>, Status> {
        let block = self.block(wanted.number).ok_or(Status::NotYours)?;
        if !block.is_lent_to(session.lease) {
            return Err(Status::NotYours);
        }
        if !session.is_current() {
            return Err(Status::Stale);
        }
        if block.generation() == wanted.generation { Ok(block) } else { Err(Status::Reused) }
    }

    /// Writes into a block.
    ///
    /// # Errors
    /// `NotYours`, `Reused`, `Stale`, or `BadRequest` when `data` is not as long as the range.
    pub fn write(&self, session: &Session, range: &Range, data: &[u8]) -> Result<(), Status> {
        let mut block = self.held(session, range.block)?;
        let from = range.offset_bytes as usize;
        let to = block.bytes.get_mut(from..from + range.len_bytes as usize).ok_or(Status::BadRequest)?;
        if to.len() != data.len() {
            return Err(Status::BadRequest);
        }
        to.copy_from_slice(data);
        Ok(())
    }

    /// Reads from a block into `out`, which is as long as the range.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn read(&self, session: &Session, range: &Range, out: &mut [u8]) -> Result<(), Status> {
        let block = self.held(session, range.block)?;
        let from = range.offset_bytes as usize;
        let source = block.bytes.get(from..from + range.len_bytes as usize).ok_or(Status::BadRequest)?;
        if source.len() != out.len() {
            return Err(Status::BadRequest);
        }
        out.copy_from_slice(source);
        Ok(())
    }

    /// Lends nothing more; everything is wanted back until `deadline`.
    pub fn drain(&self, deadline: Instant) {
        self.leases().draining.get_or_insert(deadline);
    }

    /// Lends at most `limit` blocks from now on. What is lent beyond that is wanted back within `patience`.
    pub fn set_limit(&self, limit: u32, now: Instant, patience: Duration) {
        let mut leases = self.leases();
        leases.limit = limit.min(self.capacity());
        let new = Reclaim { deadline: now + patience, warned: false };
        leases.reclaim = (leases.excess() > 0).then(|| leases.reclaim.unwrap_or(new));
    }

    /// Blocks whose time to come back has passed, once they are first found late; after that `None` until the limit is
    /// kept again.
    pub fn newly_overdue(&self, now: Instant) -> Option<u32> {
        let mut leases = self.leases();
        let excess = leases.excess();
        if excess == 0 {
            leases.reclaim = None;
        }
        let reclaim = leases.reclaim.as_mut().filter(|reclaim| !reclaim.warned && reclaim.deadline <= now)?;
        reclaim.warned = true;
        Some(excess)
    }

    /// Blocks that take memory of the machine, as far as the node knows: those lent, and of a locked store the free ones.
    pub fn holding(&self) -> u32 {
        let leases = self.leases();
        if self.locked.load(Ordering::SeqCst) {
            self.capacity() - leases.parked.len() as u32
        } else {
            leases.lent
        }
    }

    /// Of a locked store: gives the memory of free blocks above the limit back to the system, or takes it again below.
    /// (That of other stores went back when the blocks were released.) Gives how many changed.
    pub fn park(&self) -> u32 {
        let mut changed = 0;
        while self.locked.load(Ordering::SeqCst) {
            let mut leases = self.leases();
            let backed = leases.lent + leases.free.len() as u32;
            let (number, park) = match backed.cmp(&leases.limit) {
                std::cmp::Ordering::Greater => (leases.free.pop(), true),
                std::cmp::Ordering::Less => (leases.parked.pop(), false),
                std::cmp::Ordering::Equal => (None, false),
            };
            drop(leases);
            let Some(number) = number else { break };
            let done =
                self.block(number).is_some_and(|mut block| if park { block.park() } else { block.unpark() });
            let mut leases = self.leases();
            // What could not be changed stays what it was, for the next round to try.
            if done == park {
                leases.parked.push(number);
            } else {
                leases.free.push(number);
            }
            if !done {
                break;
            }
            changed += 1;
        }
        changed
    }

    /// Everything that statistics tell of the store.
    pub fn report(&self, now: Instant) -> StoreReport {
        let leases = self.leases();
        let client = |(id, lease): (&u64, &Lease)| ClientReport {
            client_id: format!("{id:016x}"),
            connections: lease.connections,
            held_blocks: lease.blocks.len() as u32,
            reclaim_blocks: leases.wanted_back(lease.blocks.len() as u32),
            counters: lease.counters.report(),
        };
        let mut clients: Vec<ClientReport> = leases.by_client.iter().map(client).collect();
        clients.sort_by(|a, b| a.client_id.cmp(&b.client_id));
        let total = Counters::default();
        total.add(&leases.retired);
        leases.by_client.values().for_each(|lease| total.add(&lease.counters));
        let excess = leases.excess();
        StoreReport {
            epoch: self.epoch,
            draining: leases.draining.is_some(),
            capacity_blocks: self.capacity(),
            lent_blocks: leases.lent,
            free_blocks: leases.free.len() as u32,
            parked_blocks: leases.parked.len() as u32,
            limit_blocks: leases.limit,
            quota_blocks: self.quota_blocks,
            reclaim_blocks: excess,
            overdue_blocks: leases.reclaim.filter(|reclaim| reclaim.deadline <= now).map_or(0, |_| excess),
            total: total.report(),
            clients,
        }
    }
}

impl Leases {
    /// Takes a lease away; its blocks are to be wiped and freed.
    fn end(&mut self, client_id: u64) -> Vec<u32> {
        let Some(lease) = self.by_client.remove(&client_id) else { return Vec::new() };
        self.retired.add(&lease.counters);
        self.lent = self.lent.saturating_sub(lease.blocks.len() as u32);
        lease.blocks.into_keys().collect()
    }

    /// Blocks lent beyond the limit.
    fn excess(&self) -> u32 {
        self.lent.saturating_sub(self.limit)
    }

    /// What of `held` blocks is wanted back: a client's share in the excess, rounded up.
    fn wanted_back(&self, held: u32) -> u32 {
        if self.draining.is_some() {
            return held;
        }
        let share = u64::from(self.excess()) * u64::from(held);
        share.div_ceil(u64::from(self.lent.max(1))) as u32
    }

    /// What a client that holds `held` blocks could borrow now.
    fn lendable(&self, held: u32, quota: u32) -> u32 {
        if self.draining.is_some() {
            return 0;
        }
        let within_quota = if quota == 0 { u32::MAX } else { quota.saturating_sub(held) };
        (self.free.len() as u32).min(self.limit.saturating_sub(self.lent)).min(within_quota)
    }
}

impl Session {
    fn is_current(&self) -> bool {
        self.current.load(Ordering::SeqCst) == self.incarnation
    }

    /// The client's number.
    pub fn client_id(&self) -> u64 {
        self.client_id
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The address range stays; its memory does not.
        for block in &self.blocks {
            block.lock().unwrap_or_else(PoisonError::into_inner).wipe();
        }
    }
}

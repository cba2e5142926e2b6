//! The memory a node lends: one mapping cut into 1 MiB blocks, and who holds which.
//!
//! A client is a random number it chose; its *lease* lasts as long as it has a connection, and a grace time more. When
//! a lease ends its blocks are wiped and free again, so a dead client leaks nothing and nobody reads another's pages.
//!
//! Invariant: a block's bytes are touched only under its own lock, after checking there that the lease and the
//! incarnation of the asking connection are current. Locks are taken in the order leases, then one block.
//!
//! Wiping takes long (a second per GiB when memory is locked), so it happens without the lock on the leases: a block
//! that is being wiped is in no lease any more and not free yet.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::proto::{Hello, Info, Range, Status};
use crate::units::BLOCK_BYTES;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// Most memory one node lends: its tables take 160 MiB then.
const MAX_MEMORY_BYTES: u64 = 4 << 40;

struct Block {
    holder: Option<u64>,
    bytes: &'static mut [u8],
}

struct Lease {
    id: u64,
    incarnation: Arc<AtomicU64>,
    connections: u32,
    gone_since: Option<Instant>,
    blocks: Vec<u32>,
}

struct Leases {
    by_client: HashMap<u64, Lease>,
    free: Vec<u32>,
    next_lease: u64,
}

/// One connection's right to use its client's blocks.
pub struct Session {
    client_id: u64,
    lease: u64,
    incarnation: u64,
    current: Arc<AtomicU64>,
}

/// The store of one node.
pub struct Store {
    epoch: u64,
    blocks: Vec<Mutex<Block>>,
    leases: Mutex<Leases>,
}

impl Store {
    /// A store of `memory_bytes`, rounded down to whole blocks. `epoch` tells this start of the node from others.
    ///
    /// # Errors
    /// Less than one block or more than 4 TiB is asked for, or the system has no such memory.
    pub fn new(memory_bytes: u64, epoch: u64) -> Result<Self, Error> {
        if memory_bytes > MAX_MEMORY_BYTES {
            return Err(Error::Option(format!("memory {memory_bytes}: at most 4 TiB is possible")));
        }
        let count = u32::try_from(memory_bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX);
        let bytes = count as usize * BLOCK_BYTES;
        let Some(len) = NonZeroUsize::new(bytes) else {
            return Err(Error::Option("memory: at least 1 MiB is needed".to_owned()));
        };
        let no_memory = |source: nix::Error| Error::System {
            what: format!("{bytes} bytes of memory"),
            source: source.into(),
        };
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice disturbs nothing.
        let start = unsafe { mmap_anonymous(None, len, prot, flags) }.map_err(no_memory)?;
        // SAFETY: the mapping is `bytes` long, zeroed, used through this slice alone, and never unmapped.
        let memory: &'static mut [u8] =
            unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), bytes) };
        let blocks = memory
            .chunks_exact_mut(BLOCK_BYTES)
            .map(|bytes| Mutex::new(Block { holder: None, bytes }))
            .collect();
        let leases = Leases { by_client: HashMap::new(), free: (0..count).rev().collect(), next_lease: 1 };
        Ok(Self { epoch, blocks, leases: Mutex::new(leases) })
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

    /// Opens a connection of a client: joins its lease, or begins one.
    ///
    /// # Errors
    /// `Stale` when the client has reconnected since.
    pub fn open(&self, hello: &Hello) -> Result<Session, Status> {
        let mut leases = self.leases();
        let id = leases.next_lease;
        let lease = leases.by_client.entry(hello.client_id).or_insert_with(|| Lease {
            id,
            incarnation: Arc::new(AtomicU64::new(hello.incarnation)),
            connections: 0,
            gone_since: None,
            blocks: Vec::new(),
        });
        if lease.incarnation.load(Ordering::SeqCst) > hello.incarnation {
            return Err(Status::Stale);
        }
        lease.incarnation.store(hello.incarnation, Ordering::SeqCst);
        lease.connections += 1;
        lease.gone_since = None;
        let (lease, current) = (lease.id, Arc::clone(&lease.incarnation));
        leases.next_lease += u64::from(lease == id);
        Ok(Session { client_id: hello.client_id, lease, incarnation: hello.incarnation, current })
    }

    /// Closes a connection. After the last one the lease lasts a grace time more, unless the client said goodbye.
    pub fn close(&self, session: &Session, goodbye: bool, now: Instant) {
        let mut leases = self.leases();
        let Some(lease) =
            leases.by_client.get_mut(&session.client_id).filter(|lease| lease.id == session.lease)
        else {
            return;
        };
        lease.connections = lease.connections.saturating_sub(1);
        if lease.connections > 0 {
            return;
        }
        lease.gone_since = Some(now);
        if goodbye {
            let ended = leases.by_client.remove(&session.client_id);
            drop(leases);
            ended.into_iter().for_each(|lease| drop(self.free(&lease.blocks)));
        }
    }

    /// Ends the leases of clients that have been gone for longer than `grace`. Gives the number of blocks taken back.
    pub fn expire(&self, now: Instant, grace: Duration) -> u32 {
        let gone = |lease: &Lease| lease.gone_since.is_some_and(|since| now.duration_since(since) >= grace);
        let expired: Vec<Lease> =
            self.leases().by_client.extract_if(|_, lease| gone(lease)).map(|(_, lease)| lease).collect();
        expired.iter().for_each(|lease| drop(self.free(&lease.blocks)));
        expired.iter().map(|lease| lease.blocks.len() as u32).sum()
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
    pub fn info(&self, session: &Session) -> Info {
        let leases = self.leases();
        let held = leases.by_client.get(&session.client_id).map_or(0, |lease| lease.blocks.len());
        Info {
            epoch: self.epoch,
            lease: session.lease,
            capacity_blocks: self.capacity(),
            free_blocks: leases.free.len() as u32,
            held_blocks: held as u32,
        }
    }

    /// Blocks lent now, and clients that hold a lease.
    pub fn lent(&self) -> (u32, u32) {
        let leases = self.leases();
        (self.capacity() - leases.free.len() as u32, leases.by_client.len() as u32)
    }

    /// Lends up to `count` blocks, all zero; fills `numbers`. Gives how many, and how many are free after that.
    ///
    /// # Errors
    /// `Stale` when the client has reconnected since.
    pub fn reserve(
        &self,
        session: &Session,
        count: u32,
        numbers: &mut [u32],
    ) -> Result<(usize, u32), Status> {
        let mut guard = self.leases();
        let leases = &mut *guard;
        let lease = leases.by_client.get_mut(&session.client_id).filter(|lease| lease.id == session.lease);
        let lease = lease.filter(|_| session.is_current()).ok_or(Status::Stale)?;
        let mut granted = 0;
        for slot in numbers.iter_mut().take(count as usize) {
            let Some(number) = leases.free.pop() else { break };
            if let Some(mut block) = self.block(number) {
                block.holder = Some(session.lease);
            }
            lease.blocks.push(number);
            *slot = number;
            granted += 1;
        }
        Ok((granted, leases.free.len() as u32))
    }

    /// Takes blocks back and wipes them. Gives the number of free blocks.
    ///
    /// # Errors
    /// `NotYours` at the first block the client does not hold; those before it are released.
    pub fn release(&self, session: &Session, numbers: impl Iterator<Item = u32>) -> Result<u32, Status> {
        let mut taken = Vec::new();
        let mut all_held = true;
        {
            let mut leases = self.leases();
            let lease =
                leases.by_client.get_mut(&session.client_id).filter(|lease| lease.id == session.lease);
            let lease = lease.filter(|_| session.is_current()).ok_or(Status::Stale)?;
            for number in numbers {
                let Some(at) = lease.blocks.iter().position(|held| *held == number) else {
                    all_held = false;
                    break;
                };
                lease.blocks.swap_remove(at);
                taken.push(number);
            }
        }
        let free = self.free(&taken).free.len() as u32;
        if all_held { Ok(free) } else { Err(Status::NotYours) }
    }

    fn held(&self, session: &Session, number: u32) -> Result<MutexGuard<'_, Block>, Status> {
        let block = self.block(number).ok_or(Status::NotYours)?;
        if block.holder != Some(session.lease) {
            return Err(Status::NotYours);
        }
        if session.is_current() { Ok(block) } else { Err(Status::Stale) }
    }

    /// Writes into a block.
    ///
    /// # Errors
    /// `NotYours`, `Stale`, or `BadRequest` when `data` is not as long as the range.
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
}

impl Session {
    fn is_current(&self) -> bool {
        self.current.load(Ordering::SeqCst) == self.incarnation
    }
}

impl Block {
    /// Forgets holder and content. The memory goes back to the system, unless it is locked: then it is overwritten.
    fn wipe(&mut self) {
        self.holder = None;
        let start = std::ptr::NonNull::from(&mut *self.bytes).cast();
        // SAFETY: the block's own pages of a private anonymous mapping, exclusively borrowed: they read as zeros after.
        let dropped = unsafe { madvise(start, BLOCK_BYTES, MmapAdvise::MADV_DONTNEED) };
        if dropped.is_err() {
            self.bytes.fill(0);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(client_id: u64, incarnation: u64) -> Hello {
        Hello { client_id, incarnation, block_bytes: BLOCK_BYTES as u32 }
    }

    fn range(block: u32) -> Range {
        Range { block, offset_bytes: 10, len_bytes: 4 }
    }

    #[test]
    fn a_block_belongs_to_one_client_and_is_zero_for_the_next() {
        let store = Store::new(2 << 20, 1).unwrap();
        let (a, b) = (store.open(&hello(1, 1)).unwrap(), store.open(&hello(2, 1)).unwrap());
        let mut numbers = [0; 4];
        assert_eq!(store.reserve(&a, 4, &mut numbers), Ok((2, 0)));
        let block = numbers[0];
        store.write(&a, &range(block), b"mine").unwrap();
        assert_eq!(store.write(&b, &range(block), b"what"), Err(Status::NotYours));
        assert_eq!(store.read(&b, &range(block), &mut [0; 4]), Err(Status::NotYours));
        assert_eq!(store.release(&b, [block].into_iter()), Err(Status::NotYours));
        assert_eq!(store.write(&a, &range(99), b"what"), Err(Status::NotYours));
        store.release(&a, [block].into_iter()).unwrap();
        assert_eq!(store.reserve(&b, 4, &mut numbers), Ok((1, 0)));
        let mut out = [1; 4];
        store.read(&b, &range(numbers[0]), &mut out).unwrap();
        assert_eq!(out, [0; 4]);
    }

    #[test]
    fn a_dead_client_leaks_nothing_after_the_grace_time_and_a_returning_one_loses_nothing_before() {
        let store = Store::new(4 << 20, 1).unwrap();
        let start = Instant::now();
        let grace = Duration::from_secs(10);
        let first = store.open(&hello(1, 1)).unwrap();
        let lane = store.open(&hello(1, 1)).unwrap();
        store.reserve(&first, 3, &mut [0; 4]).unwrap();
        store.close(&first, false, start);
        assert_eq!(store.expire(start + grace * 2, grace), 0, "one connection is left");
        store.close(&lane, false, start);
        assert_eq!(store.expire(start + grace / 2, grace), 0);
        let back = store.open(&hello(1, 2)).unwrap();
        assert_eq!((store.info(&back).lease, store.info(&back).held_blocks), (1, 3));
        store.close(&back, false, start);
        assert_eq!(store.expire(start + grace, grace), 3);
        let later = store.open(&hello(1, 3)).unwrap();
        assert_eq!((store.info(&later).held_blocks, store.info(&later).free_blocks), (0, 4));
        assert_ne!(store.info(&later).lease, 1, "the client can see that its blocks are gone");
    }

    #[test]
    fn a_client_that_says_goodbye_gives_everything_back_at_once() {
        let store = Store::new(4 << 20, 1).unwrap();
        let session = store.open(&hello(1, 1)).unwrap();
        store.reserve(&session, 3, &mut [0; 4]).unwrap();
        store.close(&session, true, Instant::now());
        assert_eq!(store.lent(), (0, 0));
    }

    #[test]
    fn a_late_write_of_an_earlier_connection_is_fenced_off() {
        let store = Store::new(1 << 20, 1).unwrap();
        let old = store.open(&hello(1, 1)).unwrap();
        let mut numbers = [0; 1];
        store.reserve(&old, 1, &mut numbers).unwrap();
        let new = store.open(&hello(1, 2)).unwrap();
        store.write(&new, &range(numbers[0]), b"good").unwrap();
        assert_eq!(store.write(&old, &range(numbers[0]), b"late"), Err(Status::Stale));
        assert_eq!(store.open(&hello(1, 1)).err(), Some(Status::Stale));
        let mut out = [0; 4];
        store.read(&new, &range(numbers[0]), &mut out).unwrap();
        assert_eq!(&out, b"good");
    }

    /// Does `wipe` while one block of client 1 cannot be wiped, and checks that client 2 is served meanwhile.
    fn check_served_while(wipe: impl FnOnce(&Store, &Session, &[u32]) + Send) {
        let store = Store::new(8 << 20, 1).unwrap();
        let (going, staying) = (store.open(&hello(1, 1)).unwrap(), store.open(&hello(2, 1)).unwrap());
        let mut numbers = [0; 3];
        store.reserve(&going, 3, &mut numbers).unwrap();
        store.write(&going, &range(numbers[1]), b"mine").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let busy = store.block(numbers[1]).unwrap();
            let wiper = scope.spawn(|| wipe(&store, &going, &numbers));
            scope.spawn(|| {
                while store.info(&going).held_blocks == 3 {
                    std::thread::yield_now();
                }
                tell.send(store.reserve(&staying, 8, &mut [0; 8])).unwrap();
            });
            let served = told.recv_timeout(Duration::from_secs(10));
            assert!(!wiper.is_finished(), "the block is busy");
            drop(busy);
            wiper.join().unwrap();
            assert_eq!(served, Ok(Ok((5, 0))), "served meanwhile, and given no block that is not wiped");
        });
        let mut freed = [0; 3];
        assert_eq!(store.reserve(&staying, 3, &mut freed), Ok((3, 0)));
        let mut out = [9; 4];
        store.read(&staying, &range(numbers[1]), &mut out).unwrap();
        assert_eq!(out, [0; 4], "wiped before it is lent again");
    }

    #[test]
    fn others_are_served_while_the_blocks_of_a_client_that_said_goodbye_are_wiped() {
        check_served_while(|store, session, _| store.close(session, true, Instant::now()));
    }

    #[test]
    fn others_are_served_while_the_blocks_of_a_client_that_is_gone_are_wiped() {
        check_served_while(|store, session, _| {
            let now = Instant::now();
            store.close(session, false, now);
            assert_eq!(store.expire(now + Duration::from_secs(1), Duration::from_secs(1)), 3);
        });
    }

    #[test]
    fn others_are_served_while_released_blocks_are_wiped() {
        check_served_while(|store, session, numbers| {
            store.release(session, numbers.iter().copied()).unwrap();
        });
    }

    #[test]
    fn a_release_ends_at_the_first_block_that_is_not_held_and_one_named_twice_is_freed_once() {
        let store = Store::new(4 << 20, 1).unwrap();
        let session = store.open(&hello(1, 1)).unwrap();
        let mut numbers = [0; 3];
        store.reserve(&session, 3, &mut numbers).unwrap();
        let [a, b, _] = numbers;
        assert_eq!(store.release(&session, [a, a, b].into_iter()), Err(Status::NotYours));
        assert_eq!((store.lent(), store.info(&session).held_blocks), ((2, 1), 2));
        assert_eq!(store.release(&session, [b, 77].into_iter()), Err(Status::NotYours));
        assert_eq!((store.lent(), store.info(&session).held_blocks), ((1, 1), 1));
    }
}

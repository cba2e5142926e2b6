//! A queue that panics in the middle of a read gives back what the read held.

use super::*;
use crate::links::{LinkMemory, LinkStart};
use crate::proto::Info;
use crate::remote::{RemoteError, Reserved};
use crate::units::RemoteBlock;

/// A node whose connections to queues panic when told to.
struct Jumpy {
    inner: MemNode,
    panic: Arc<AtomicBool>,
}

struct JumpyLink {
    inner: Arc<dyn LinkMemory>,
    panic: Arc<AtomicBool>,
}

impl LinkMemory for JumpyLink {
    fn read(&self, block: RemoteBlock, offset_bytes: u32, data: &mut [u8]) -> Result<(), RemoteError> {
        assert!(!self.panic.swap(false, Ordering::SeqCst), "on purpose, where an answer is taken");
        self.inner.read(block, offset_bytes, data)
    }

    fn write(&self, block: RemoteBlock, offset_bytes: u32, data: &[u8]) -> Result<(), RemoteError> {
        self.inner.write(block, offset_bytes, data)
    }
}

impl RemoteNode for Jumpy {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn connect(&self) -> Result<Info, RemoteError> {
        self.inner.connect()
    }

    fn disconnect(&self) {
        self.inner.disconnect();
    }

    fn reserve(&self, lane: Lane, blocks: &mut [RemoteBlock]) -> Result<Reserved, RemoteError> {
        self.inner.reserve(lane, blocks)
    }

    fn release(&self, lane: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError> {
        self.inner.release(lane, blocks)
    }

    fn start_write(&self, lane: Lane, block: RemoteBlock, at: u32, data: &[u8]) -> Result<u64, RemoteError> {
        self.inner.start_write(lane, block, at, data)
    }

    fn finish_write(&self, lane: Lane, ticket: u64) -> Result<(), RemoteError> {
        self.inner.finish_write(lane, ticket)
    }

    fn read_at(&self, lane: Lane, block: RemoteBlock, at: u32, data: &mut [u8]) -> Result<(), RemoteError> {
        self.inner.read_at(lane, block, at, data)
    }

    fn stat(&self, lane: Lane) -> Result<Info, RemoteError> {
        self.inner.stat(lane)
    }

    fn held(&self, lane: Lane, found: &mut dyn FnMut(RemoteBlock)) -> Result<(), RemoteError> {
        RemoteNode::held(&self.inner, lane, found)
    }

    fn open_link(&self, queue: u16) -> Result<LinkStart, RemoteError> {
        match self.inner.open_link(queue)? {
            LinkStart::Memory(inner) => {
                Ok(LinkStart::Memory(Arc::new(JumpyLink { inner, panic: Arc::clone(&self.panic) })))
            }
            other => Ok(other),
        }
    }
}

/// A device whose pages 0 to 511 are in remote memory, and what makes its node's connections panic.
fn jumpy() -> (Device, Arc<AtomicBool>) {
    let config = Config { node_timeout: Duration::from_millis(50), ..small(2048) };
    let panic = Arc::new(AtomicBool::new(false));
    let node = Jumpy { inner: MemNode::new("mem:jumpy", 64), panic: Arc::clone(&panic) };
    let memory = Memory::anonymous(memory_bytes(&config)).unwrap();
    let engine = Engine::open(config, memory, 7, [9; 32], vec![Arc::new(node)]).unwrap();
    let mut device = Device::over(engine, Vec::new());
    for page in 0..512 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    (device, panic)
}

/// Six reads are submitted, and `panic` is called before the queue turns: all end, with or without an error, and nothing
/// of them is left.
fn panics_in_the_middle(panic: impl Fn(&mut Device, &AtomicBool)) {
    let (mut device, flag) = jumpy();
    let Device { engine, queue, writer, buffer, nodes, threads } = device;
    drop(queue.finish().unwrap());
    let queue = LocalQueue::new(engine.queue(0, 8), 8, MAX_REQUEST_PAGES * PAGE_BYTES).unwrap();
    device = Device { engine, queue, writer, buffer, nodes, threads };
    connect_again(&device.engine.shared, NodeId(0));
    device.queue.turn(Duration::ZERO).unwrap();
    for page in 0..6u64 {
        device.queue.submit(Op::Read, page * 64, 8, None).unwrap();
    }
    panic(&mut device, &flag);
    let (mut ended, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(30));
    while ended.len() < 6 || device.queue.handler().under_way() > 0 {
        device.queue.turn(Duration::from_millis(10)).unwrap();
        ended.extend(std::iter::from_fn(|| device.queue.take_done()));
        assert!(Instant::now() < deadline, "a request or a read hangs: {ended:?}");
    }
    assert!(
        ended.iter().any(|(_, result)| *result == Err(Errno::EIO)),
        "one of them met the panic: {ended:?}"
    );
    // Longer than a node may take for an answer that will never come.
    let later = Instant::now() + Duration::from_millis(120);
    while Instant::now() < later {
        device.queue.turn(Duration::from_millis(5)).unwrap();
    }
    assert_eq!(device.engine.report().nodes[0].state, "up", "the node has done nothing wrong");
    for page in 0..512 {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 2));
    }
    device.discard(0, 512);
    device.engine.shared.state().model.blocks.seal(crate::model::Stream::New);
    device.engine.shared.state().model.blocks.seal(crate::model::Stream::Moved);
    assert_eq!(device.engine.shared.state().model.blocks.totals().used, 0, "no pin keeps a block");
    device.check();
}

#[test]
fn a_read_that_was_begun_and_never_sent_is_given_up_with_its_request() {
    panics_in_the_middle(|device, _| device.queue.handler().panic_before_send());
}

#[test]
fn a_read_whose_answer_was_being_taken_is_given_up_with_its_request() {
    panics_in_the_middle(|_, flag| flag.store(true, Ordering::SeqCst));
}

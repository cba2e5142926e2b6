//! Nodes that are announced somewhere join while the device runs.
//!
//! A node that is no longer announced does not leave: what announces it may be what has gone. A node leaves by draining, or
//! by not answering.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::discover::{EtcdList, EtcdUrl, Membership};
use crate::engine::Engine;
use crate::error::Error;
use crate::remote::RemoteNode;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(3);

/// The addresses announced under `url` now.
///
/// # Errors
/// The URL is wrong, or nobody answers there.
pub fn announced(url: &str) -> Result<Vec<String>, Error> {
    use crate::discover::Discovery as _;
    let members = EtcdList::new(EtcdUrl::parse(url)?).poll()?;
    Ok(members.into_iter().map(|member| member.node.addr).collect())
}

/// Looks again and again for nodes that the engine does not know, until it is gone. `make` makes a node of an address.
///
/// # Errors
/// The URL is wrong, or no thread can be started.
pub fn follow(
    url: &str,
    engine: &Arc<Engine>,
    make: impl Fn(&str) -> Result<Arc<dyn RemoteNode>, Error> + Send + 'static,
) -> Result<(), Error> {
    let mut members = Membership::new(Box::new(EtcdList::new(EtcdUrl::parse(url)?)));
    let engine: Weak<Engine> = Arc::downgrade(engine);
    let look = move || {
        while let Some(engine) = engine.upgrade().filter(|engine| !engine.is_stopping()) {
            members.poll();
            // All of them each time: one that could not join may be able to later.
            for (_, node) in members.members() {
                let address = &node.addr;
                match make(address).and_then(|node| engine.join(node)) {
                    Ok(true) => log::warn!("node {address}: announced, joins"),
                    Ok(false) => {}
                    Err(error) => log::warn!("node {address}: announced, but {error}"),
                }
            }
            drop(engine);
            std::thread::sleep(PERIOD);
        }
    };
    let thread = std::thread::Builder::new().name("dpuswap-members".to_owned()).stack_size(256 << 10);
    let failed = |source| Error::System { what: "thread dpuswap-members".to_owned(), source };
    thread.spawn(look).map(drop).map_err(failed)
}

//! Nodes whose names mean nothing at the moment.

use super::*;
use crate::remote::NodeOptions;
use crate::secure::Security;

/// Longer than a label of a name can be: no resolver is asked.
fn nowhere(prefix: &str, suffix: &str) -> String {
    format!("{prefix}{}.invalid:7999{suffix}", "x".repeat(64))
}

fn options() -> NodeOptions {
    NodeOptions { timeout: Duration::from_millis(200), security: Security::Plaintext }
}

#[test]
fn a_device_is_recovered_while_the_name_of_a_node_cannot_be_resolved() {
    for name in [nowhere("", ""), nowhere("nbd://", "/e")] {
        let config = Config { sealed: false, ..small(1024) };
        let file = tempfile::tempfile().unwrap();
        let bytes = memory_bytes(&config);
        file.set_len(bytes as u64).unwrap();
        let nodes = [Arc::new(MemNode::new("mem:0", 64)), Arc::new(MemNode::new(&name, 64))];
        let remotes = nodes.iter().map(|node| Arc::clone(node) as Arc<dyn RemoteNode>).collect();
        let memory = Memory::shared(&file, bytes).unwrap();
        let engine = Engine::open(config.clone(), memory, 7, [3; 32], remotes).unwrap();
        engine.halt();
        std::mem::forget(engine);
        let memory = Memory::shared(&file, bytes).unwrap();
        let remake = |name: &str, client: u64| match name {
            "mem:0" => Ok(Arc::clone(&nodes[0]) as Arc<dyn RemoteNode>),
            name => options().open(name, client),
        };
        let (engine, _) = Engine::recover(config, memory, remake).unwrap();
        let states: Vec<_> = engine.report().nodes.into_iter().map(|node| node.state).collect();
        assert_eq!(states, ["up", "down"]);
        let why = engine.shared.keep_node(NodeId(1)).unwrap().to_string();
        assert!(why.contains("its name cannot be resolved"), "{why}");
        let mut device = Device::over(engine, Vec::new());
        device.write(3, 12).unwrap();
        assert_eq!(device.read(3).unwrap(), content(12));
    }
}

#[test]
fn a_new_device_with_a_node_whose_name_cannot_be_resolved_is_refused_in_one_line() {
    for name in [nowhere("", ""), nowhere("nbd://", "/e")] {
        let config = Config { sealed: false, ..small(1024) };
        let memory = Memory::anonymous(memory_bytes(&config)).unwrap();
        let opened =
            options().open(&name, 7).and_then(|node| Engine::open(config, memory, 7, [3; 32], vec![node]));
        let line = opened.err().unwrap().to_string();
        assert!(line.starts_with(&format!("node {name}: its name cannot be resolved: ")), "{line}");
        assert!(!line.contains('\n'));
    }
}

#[test]
fn a_name_that_can_never_be_a_nodes_is_refused_when_it_is_made() {
    for name in
        ["127.0.0.1", ":7999", "host:", "host:70000", "host:x", "nbd://127.0.0.1:99999/e", "nbd://h:x/"]
    {
        let line = options().open(name, 7).err().unwrap_or_else(|| panic!("{name}")).to_string();
        assert!(line.starts_with(&format!("node {name}: ")), "{line}");
    }
}

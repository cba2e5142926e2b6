//! System tests: the real binaries on a real kernel, one file per promise.

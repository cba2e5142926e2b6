//! A file system on zones: format, allocator, recovery; the FUSE mount is a thin front.

//! The readers of what the kernel says, for fuzz targets alone: they are private to everybody else.

use crate::{ports, procfs, tree};

/// Gives bytes to every reader. None may panic.
pub fn all(bytes: &[u8]) {
    procfs::fuzz(bytes);
    tree::fuzz(bytes);
    ports::fuzz(bytes);
}

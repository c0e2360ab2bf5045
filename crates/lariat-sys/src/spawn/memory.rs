//! The memory that a child uses until it has executed a program: a stack, and a place for its report.

use std::ffi::c_void;
use std::ptr::NonNull;

use super::child::Report;
use super::gate::Gate;
use crate::{Errno, Result};

/// How much stack the child has. It calls nothing deeper than a few frames; unoptimized code needs most.
const STACK: usize = 64 << 10;
/// Below the stack, and never touched: an overflow faults instead of overwriting a neighbour.
const GUARD: usize = 64 << 10;

/// A mapping of its own, shared over clone, so that the report reaches the parent also from a copied child.
///
/// Dropping it unmaps it; by then the child must have executed its program or exited.
pub(super) struct ChildMemory {
    base: NonNull<c_void>,
}

impl ChildMemory {
    const SIZE: usize = GUARD + STACK;

    /// Maps it, with an empty report.
    pub(super) fn new() -> Result<ChildMemory> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), ChildMemory::SIZE, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(crate::call::errno());
        }
        let memory = ChildMemory { base: NonNull::new(base).ok_or(Errno::NOMEM)? };
        // SAFETY: the range is the upper part of the mapping made above.
        crate::call::check(unsafe {
            libc::mprotect(memory.at(GUARD), STACK, libc::PROT_READ | libc::PROT_WRITE)
        })?;
        Ok(memory)
    }

    /// Returns where the child writes its report: the topmost place.
    pub(super) fn report(&mut self) -> *mut Report {
        self.at(ChildMemory::SIZE - REPORT_ROOM).cast()
    }

    /// Returns where the child's stack begins: below the report, growing down.
    pub(super) fn stack_top(&mut self) -> *mut c_void {
        self.at(ChildMemory::SIZE - REPORT_ROOM)
    }

    /// Returns the gate between parent and child: a word behind the report.
    pub(super) fn gate(&self) -> &Gate {
        // SAFETY: the place is mapped and aligned, began as zeroes, which are a closed gate, and is touched as an atomic
        // only, for as long as the mapping is borrowed.
        unsafe { &*self.at(ChildMemory::SIZE - REPORT_ROOM + GATE_AT).cast() }
    }

    /// Returns what the child reported; `None` if it executed its program.
    pub(super) fn report_text(&mut self) -> Option<Report> {
        Some(self.read()).filter(|report| report.step != 0)
    }

    /// Says whether the child has run at all.
    pub(super) fn has_run(&mut self) -> bool {
        self.read().has_run
    }

    fn read(&mut self) -> Report {
        // SAFETY: the place is mapped, aligned, and began as zeroes, which are a valid report. It is read as volatile
        // because the writer is a process that the compiler does not know of.
        unsafe { self.report().read_volatile() }
    }

    fn at(&self, offset: usize) -> *mut c_void {
        debug_assert!(offset < ChildMemory::SIZE);
        // SAFETY: every offset used is inside of the mapping.
        unsafe { self.base.as_ptr().byte_add(offset) }
    }
}

/// Room for the report, a multiple of what every machine wants stacks to be aligned to.
const REPORT_ROOM: usize = 64;
/// Where the gate is in it.
const GATE_AT: usize = 32;
const _: () = assert!(size_of::<Report>() <= GATE_AT && GATE_AT + size_of::<Gate>() <= REPORT_ROOM);

impl Drop for ChildMemory {
    fn drop(&mut self) {
        // The result is ignored: it fails only for a range that is no mapping.
        // SAFETY: the mapping is ours, and the child no longer uses it, as the type demands.
        let _ = unsafe { libc::munmap(self.base.as_ptr(), ChildMemory::SIZE) };
    }
}

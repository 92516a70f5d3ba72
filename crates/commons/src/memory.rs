//! The allocator of the program.
#![allow(unsafe_code)]

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// Tensors come and go by the hundred megabytes: this allocator keeps their pages, where the system's
/// gives them back and takes them again at every step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h`.
const PURGE_DELAY: mi_option_t = 15;

/// Longer than a training step of the models this program trains, milliseconds.
const KEEP: core::ffi::c_long = 30_000;

/// Has freed pages stay with the process for half a minute instead of a second, unless
/// `MIMALLOC_PURGE_DELAY` says otherwise. Steps that take longer than a second would give back
/// everything they need again: a tenth of the step of a model of 135 M parameters.
///
/// To be called first, while the program has one thread.
pub(crate) fn keep_freed_pages() {
    // SAFETY: the option exists in every version of the allocator that is linked; the call is
    // unsynchronised, and there is one thread.
    unsafe { mi_option_set_default(PURGE_DELAY, KEEP) }
}

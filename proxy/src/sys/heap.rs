//! Memory that the allocator keeps for later.

/// Gives freed memory back to the kernel: after something large has been read once, the allocator keeps its pages.
pub fn trim() {
    // SAFETY: the call takes no pointer and touches only memory that is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

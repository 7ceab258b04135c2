//! Memory of the transformed values, kept from call to call.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

/// Alignment, and the size of a large page.
const PAGE: usize = 2 << 20;
/// Floats of a cache line, to which each part is aligned.
const LINE: usize = 16;

/// Scratch memory for any number of convolutions, one at a time. It grows to what the largest needs and is then only reused, so that
/// a step allocates nothing and its pages stay mapped.
pub struct Workspace {
    memory: *mut f32,
    floats: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for Workspace {}

impl Workspace {
    /// Workspace without memory.
    pub const fn new() -> Workspace {
        Workspace { memory: std::ptr::null_mut(), floats: 0 }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.floats * size_of::<f32>()
    }

    fn layout(floats: usize) -> Layout {
        Layout::from_size_align(floats * size_of::<f32>(), PAGE).expect("sizes of tensors fit")
    }

    /// Parts of the given numbers of floats, with any finite values in them.
    pub(super) fn parts<const COUNT: usize>(&mut self, floats: [usize; COUNT]) -> [*mut f32; COUNT] {
        let padded = floats.map(|floats| floats.next_multiple_of(LINE));
        let needed = padded.iter().sum::<usize>();
        if needed > self.floats {
            self.free();
            let needed = needed.next_multiple_of(PAGE / size_of::<f32>());
            let layout = Self::layout(needed);
            // SAFETY: the layout is not empty. Zeros make the memory initialized; large pages save misses of the TLB, and are
            // requested before the first write maps small ones. A refusal changes nothing.
            unsafe {
                let memory = alloc(layout);
                if memory.is_null() {
                    handle_alloc_error(layout);
                }
                #[cfg(target_os = "linux")]
                libc::madvise(memory.cast(), layout.size(), libc::MADV_HUGEPAGE);
                memory.write_bytes(0, layout.size());
                (self.memory, self.floats) = (memory.cast(), needed);
            }
        }
        let mut offset = 0;
        padded.map(|floats| {
            // SAFETY: the sum of all parts lies within the memory.
            let part = unsafe { self.memory.add(offset) };
            offset += floats;
            part
        })
    }

    fn free(&mut self) {
        if !self.memory.is_null() {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.memory.cast(), Self::layout(self.floats)) };
            (self.memory, self.floats) = (std::ptr::null_mut(), 0);
        }
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Workspace::new()
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.free();
    }
}

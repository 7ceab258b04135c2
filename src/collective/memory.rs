//! Host memory that tensors and collectives share: a flat tensor whose elements can be read as a slice.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Tensor};

use super::Element;
use super::window::Window;

/// `[elements]` of one type, contiguous, on the host. Tensors made by [`HostBuffer::view`] share its memory, so what
/// autograd writes into a view is what an all-reduce of the buffer sends.
///
/// [`HostBuffer::region`] hands out parts, no two of which overlap; while one is out, the buffer itself gives no slice.
pub struct HostBuffer<T: Element = f32> {
    whole: Elements<T>,
    handed_out: Arc<HandedOut>,
}

impl<T: Element> HostBuffer<T> {
    /// A buffer of zeros in ordinary memory.
    pub fn zeros(elements: usize) -> HostBuffer<T> {
        HostBuffer::of(Tensor::zeros([elements as i64], (T::KIND, Device::Cpu)), elements, None)
    }

    /// A buffer in this rank's part of `window`, which has room for `elements` of T.
    pub(super) fn in_window(window: Window, elements: usize) -> HostBuffer<T> {
        let base = window.base(window.rank());
        // SAFETY: the part is that long and aligned to pages, and its addresses stay valid until the process ends, so that no
        // tensor can outlive them.
        let flat = unsafe { Tensor::from_blob(base, &[elements as i64], &[1], T::KIND, Device::Cpu) };
        HostBuffer::of(flat, elements, Some(Arc::new(window)))
    }

    fn of(flat: Tensor, elements: usize, window: Option<Arc<Window>>) -> HostBuffer<T> {
        let whole = Elements { flat, range: 0..elements, window, element: PhantomData };
        HostBuffer { whole, handed_out: Arc::default() }
    }

    /// A tensor of the given `shape` over the elements from `offset` on.
    ///
    /// With `channels_last` a shape `[o, i, h, w]` is laid out as `[o, h, w, i]` in memory, the layout in which
    /// libtorch's convolutions want their weights; the tensor's own shape stays `[o, i, h, w]`.
    ///
    /// # Safety
    /// No call of libtorch, autograd's included, touches the elements of this tensor or of another that shares its memory while
    /// a slice of them is borrowed from this buffer or from a [`Region`] of it, on whichever thread; reading is allowed beside
    /// a shared borrow.
    pub unsafe fn view(&self, offset: usize, shape: &[i64], channels_last: bool) -> Tensor {
        view(&self.whole.flat, offset, shape, channels_last)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.whole.range.len()
    }

    /// Whether the buffer has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All elements of the buffer.
    ///
    /// # Panics
    /// Panics if a [`Region`] of the buffer is handed out.
    pub fn as_slice(&self) -> &[T] {
        self.handed_out.check_free(&self.whole.range);
        // SAFETY: no region is out, and none can be made while `self` is borrowed.
        unsafe { self.whole.slice() }
    }

    /// All elements of the buffer, mutable.
    ///
    /// # Panics
    /// Panics if a [`Region`] of the buffer is handed out.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self.handed_out.check_free(&self.whole.range);
        // SAFETY: no region is out, and none can be made while `self` is borrowed.
        unsafe { self.whole.slice_mut() }
    }

    /// Sets every element to zero.
    ///
    /// # Panics
    /// Panics if a [`Region`] of the buffer is handed out.
    pub fn zero(&mut self) {
        self.as_mut_slice().fill(T::default());
    }

    /// The part `range` as an owned handle that can travel to another thread. It is handed out until the handle is dropped.
    ///
    /// # Panics
    /// Panics if the range ends beyond the buffer, or overlaps a region that is handed out.
    pub fn region(&mut self, range: Range<usize>) -> Region<T> {
        let elements = self.whole.range.len();
        assert!(
            range.start <= range.end && range.end <= elements,
            "elements {range:?} are no part of a buffer of {elements} elements"
        );
        self.handed_out.add(range.clone());
        let Elements { flat, window, .. } = &self.whole;
        let part = Elements { flat: flat.shallow_clone(), range, window: window.clone(), element: PhantomData };
        Region { part, handed_out: self.handed_out.clone() }
    }
}

/// A part of a [`HostBuffer`] that a collective works on: the only access to these elements until it is dropped. Keeps the
/// memory alive.
pub struct Region<T: Element = f32> {
    part: Elements<T>,
    handed_out: Arc<HandedOut>,
}

impl<T: Element> Region<T> {
    /// The region's elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: no other region overlaps this one, and the buffer gives no slice while it is out.
        unsafe { self.part.slice() }
    }

    /// The region's elements, mutable.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`.
        unsafe { self.part.slice_mut() }
    }

    /// Range of these elements in the buffer.
    pub fn range(&self) -> Range<usize> {
        self.part.range.clone()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.part.range.len() * size_of::<T>()
    }

    /// The window that the region lies in; `None` in ordinary memory, which the other ranks of the host do not map.
    pub(super) fn window(&self) -> Option<Arc<Window>> {
        self.part.window.clone()
    }

    /// Address of the region's first element in `rank`'s part of the window.
    pub(super) fn in_part_of(&self, window: &Window, rank: usize) -> *mut T {
        window.base(rank).cast::<T>().wrapping_add(self.part.range.start)
    }
}

impl<T: Element> Drop for Region<T> {
    fn drop(&mut self) {
        self.handed_out.remove(&self.part.range);
    }
}

/// Elements of a flat tensor, without any check of other uses.
struct Elements<T: Element> {
    flat: Tensor,
    range: Range<usize>,
    window: Option<Arc<Window>>,
    element: PhantomData<T>,
}

impl<T: Element> Elements<T> {
    /// The elements as a slice.
    ///
    /// # Safety
    /// No mutable slice of them lives as long as this one. Tensors that share the memory keep to the contract of
    /// [`HostBuffer::view`]; other ranks write to a window only inside a collective, which borrows its region mutably.
    unsafe fn slice(&self) -> &[T] {
        // SAFETY: `range` lies inside the storage that `flat` (or the window) keeps alive, of T's kind and contiguous; the rest
        // is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start(), self.range.len()) }
    }

    /// The elements as a mutable slice.
    ///
    /// # Safety
    /// No other slice of them lives as long as this one; tensors and other ranks keep to the contract of
    /// [`slice`](Self::slice).
    unsafe fn slice_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `slice`.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.range.len()) }
    }

    /// Address of the first element. An empty range has a dangling, aligned one: libtorch's is null, which no slice may be.
    fn start(&self) -> *mut T {
        if self.range.is_empty() {
            return std::ptr::dangling_mut();
        }
        self.flat.data_ptr().cast::<T>().wrapping_add(self.range.start)
    }
}

/// The ranges of one buffer's [`Region`]s that have not been dropped: disjoint, and none of them empty. A handful at most: one
/// per bucket in flight.
#[derive(Default)]
struct HandedOut(Mutex<Vec<Range<usize>>>);

impl HandedOut {
    /// Panics if a part of `range` is handed out.
    fn check_free(&self, range: &Range<usize>) {
        check_free(&self.ranges(), range);
    }

    fn add(&self, range: Range<usize>) {
        let mut ranges = self.ranges();
        check_free(&ranges, &range);
        if !range.is_empty() {
            ranges.push(range);
        }
    }

    fn remove(&self, range: &Range<usize>) {
        let mut ranges = self.ranges();
        if let Some(index) = ranges.iter().position(|other| other == range) {
            ranges.swap_remove(index);
        }
    }

    /// Locks the ranges. A refusal poisons the lock but leaves the ranges as they were, so poison is ignored.
    fn ranges(&self) -> MutexGuard<'_, Vec<Range<usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_free(handed_out: &[Range<usize>], range: &Range<usize>) {
    let overlaps = |other: &&Range<usize>| range.start < other.end && other.start < range.end && !range.is_empty();
    if let Some(other) = handed_out.iter().find(overlaps) {
        panic!(
            "elements {range:?} of a buffer are borrowed while its region {other:?} is handed out: drop that one first (wait \
             for the all-reduce that has it)"
        );
    }
}

/// A tensor of the given `shape` that shares the elements of `flat`, a contiguous tensor, from `offset` on. `channels_last` lays
/// it out as [`HostBuffer::view`] explains.
///
/// # Panics
/// Panics if the view ends beyond `flat`.
pub fn view(flat: &Tensor, offset: usize, shape: &[i64], channels_last: bool) -> Tensor {
    let elements = shape.iter().product::<i64>() as usize;
    assert!(offset + elements <= flat.numel(), "a view must lie inside its buffer");
    let strides = match *shape {
        [_, i, h, w] if channels_last => vec![i * h * w, 1, w * i, i],
        _ => row_major(shape),
    };
    tch::no_grad(|| flat.as_strided(shape, strides, offset as i64))
}

fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn views_share_the_buffers_memory_in_both_layouts() {
        let mut buffer = HostBuffer::<f32>::zeros(2 * 3 * 2 * 2 + 5);
        // SAFETY: no slice is kept beyond the line that borrows it.
        let (mut weight, mut bias) = unsafe { (buffer.view(0, &[2, 3, 2, 2], true), buffer.view(24, &[5], false)) };
        let _ = bias.fill_(7.0);
        weight.copy_(&Tensor::arange(24, (Kind::Float, Device::Cpu)).view([2, 3, 2, 2]));
        assert_eq!(buffer.as_slice()[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]); // channel by channel at pixel 0, then 1
        assert_eq!(buffer.as_slice()[24..], [7.0; 5]);
        buffer.as_mut_slice()[1] = -1.0;
        assert_eq!(weight.double_value(&[0, 1, 0, 0]), -1.0);
        buffer.region(24..29).as_mut_slice().fill(2.0);
        assert_eq!(bias.sum(Kind::Float).double_value(&[]), 10.0);
    }

    /// The message of the panic that `misuse` ends with.
    fn refusal(misuse: impl FnOnce()) -> String {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(misuse)).expect_err("it is refused");
        *panic.downcast::<String>().expect("a panic with values in its message")
    }

    #[test]
    fn regions_that_overlap_are_refused_and_both_are_named() {
        let mut buffer = HostBuffer::<f32>::zeros(10);
        let first = buffer.region(2..5);
        for range in [0..3, 2..5, 3..4, 4..10, 0..10] {
            let message = refusal(|| drop(buffer.region(range.clone())));
            assert!(message.contains(&format!("elements {range:?} ")) && message.contains("region 2..5 "), "{message}");
        }
        let (before, after, nothing) = (buffer.region(0..2), buffer.region(5..10), buffer.region(3..3));
        drop(first);
        drop(buffer.region(2..5)); // it came back
        assert!(refusal(|| drop(buffer.region(2..6))).contains("region 5..10 "));
        drop((before, after, nothing));
        drop(buffer.region(0..10));
        assert!(refusal(|| drop(buffer.region(4..11))).contains("4..11 are no part of a buffer of 10"));
    }

    #[test]
    fn the_buffer_gives_no_slice_while_a_region_is_out() {
        let mut buffer = HostBuffer::<f32>::zeros(6);
        let mut region = buffer.region(1..3);
        region.as_mut_slice().fill(1.0);
        let named = |message: String| assert!(message.contains("0..6") && message.contains("1..3"), "{message}");
        named(refusal(|| _ = buffer.as_slice()));
        named(refusal(|| _ = buffer.as_mut_slice()));
        named(refusal(|| buffer.zero()));
        assert_eq!(buffer.len(), 6);
        // On another thread, as a collective has it.
        std::thread::spawn(move || region.as_mut_slice()[0] = 2.0).join().unwrap();
        assert_eq!(buffer.as_slice(), [0.0, 2.0, 1.0, 0.0, 0.0, 0.0]);
        let nothing = buffer.region(0..0);
        buffer.zero();
        drop(nothing);
    }
}

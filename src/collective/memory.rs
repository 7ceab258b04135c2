//! Host memory that tensors and collectives share: a flat tensor whose elements can be read as a slice.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::Element;
use super::window::Window;

/// `[elements]` of one type, contiguous, on the host. Tensors made by [`HostBuffer::view`] share its memory, so what
/// autograd writes into a view is what an all-reduce of the buffer sends.
pub struct HostBuffer<T: Element = f32> {
    whole: Region<T>,
}

impl<T: Element> HostBuffer<T> {
    /// A buffer of zeros in ordinary memory.
    pub fn zeros(elements: usize) -> HostBuffer<T> {
        let flat = Tensor::zeros([elements as i64], (T::KIND, Device::Cpu));
        HostBuffer { whole: Region { flat, range: 0..elements, window: None, element: PhantomData } }
    }

    /// This rank's part of `window`, which holds `elements` of T.
    pub(super) fn in_window(window: Window, elements: usize) -> HostBuffer<T> {
        let base = window.base(window.rank());
        // SAFETY: the part is that long and aligned to pages, and its addresses stay valid until the process ends, so that no
        // tensor can outlive them.
        let flat = unsafe { Tensor::from_blob(base, &[elements as i64], &[1], T::KIND, Device::Cpu) };
        HostBuffer { whole: Region { flat, range: 0..elements, window: Some(Arc::new(window)), element: PhantomData } }
    }

    /// A tensor of this `shape` over the elements from `offset` on.
    ///
    /// With `channels_last` a shape `[o, i, h, w]` is laid out as `[o, h, w, i]` in memory, the layout in which
    /// libtorch's convolutions want their weights; the tensor's own shape stays `[o, i, h, w]`.
    pub fn view(&self, offset: usize, shape: &[i64], channels_last: bool) -> Tensor {
        view(&self.whole.flat, offset, shape, channels_last)
    }

    /// All elements.
    pub fn as_slice(&self) -> &[T] {
        self.whole.as_slice()
    }

    /// All elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self.whole.as_mut_slice()
    }

    /// Sets every element to zero.
    pub fn zero(&mut self) {
        self.as_mut_slice().fill(T::default());
    }

    /// The part `range` as an owned handle that can travel to another thread. Until it comes back nobody may write to
    /// these elements: that is the caller's promise (the reducer hands a bucket out when its gradients are complete).
    pub fn region(&self, range: Range<usize>) -> Region<T> {
        assert!(range.end <= self.whole.range.len(), "a region must lie inside its buffer");
        Region { flat: self.whole.flat.shallow_clone(), range, window: self.whole.window.clone(), element: PhantomData }
    }
}

/// A part of a [`HostBuffer`] in the hands of a collective. Keeps the memory alive.
pub struct Region<T: Element = f32> {
    flat: Tensor,
    range: Range<usize>,
    window: Option<Arc<Window>>,
    element: PhantomData<T>,
}

impl<T: Element> Region<T> {
    /// Its elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: as `as_mut_slice`.
        unsafe { std::slice::from_raw_parts(self.start(), self.range.len()) }
    }

    /// Its elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `range` lies inside the storage that `flat` (or the window) keeps alive, of T's kind and contiguous. Tensors
        // that share the memory are written to only by libtorch calls on the thread that owns the buffer, none of which
        // touches these elements while they are borrowed or handed out (`region`'s contract); other ranks write to a
        // window only inside a collective, which holds the region.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.range.len()) }
    }

    /// Which elements of the buffer it was made from.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.range.len() * size_of::<T>()
    }

    /// The window that it lies in, if all ranks of the host see it.
    pub(super) fn window(&self) -> Option<Arc<Window>> {
        self.window.clone()
    }

    /// The first of the same elements in `rank`'s part of the window.
    pub(super) fn in_part_of(&self, window: &Window, rank: usize) -> *mut T {
        window.base(rank).cast::<T>().wrapping_add(self.range.start)
    }

    fn start(&self) -> *mut T {
        self.flat.data_ptr().cast::<T>().wrapping_add(self.range.start)
    }
}

/// The same of any flat tensor.
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
        let mut weight = buffer.view(0, &[2, 3, 2, 2], true);
        let mut bias = buffer.view(24, &[5], false);
        let _ = bias.fill_(7.0);
        weight.copy_(&Tensor::arange(24, (Kind::Float, Device::Cpu)).view([2, 3, 2, 2]));
        assert_eq!(buffer.as_slice()[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]); // channel by channel at pixel 0, then 1
        assert_eq!(buffer.as_slice()[24..], [7.0; 5]);
        buffer.as_mut_slice()[1] = -1.0;
        assert_eq!(weight.double_value(&[0, 1, 0, 0]), -1.0);
        buffer.region(24..29).as_mut_slice().fill(2.0);
        assert_eq!(bias.sum(Kind::Float).double_value(&[]), 10.0);
    }
}

//! The arithmetic of an all-reduce: arrays summed element by element, as wide as the processor's vectors are.

use super::Element;

/// Elements summed at a time: their float32 sums, 4 KiB, stay in the first-level cache.
const BLOCK: usize = 1024;

/// Writes the sum of all `sources` to each of `targets`; a source may be a target.
///
/// Additions follow the order of `sources`, in float32, and the sum is rounded once: equal sources in equal order give equal
/// bits.
///
/// # Safety
/// Every pointer is valid for `elements` elements of T, aligned, and nobody else touches any of them during the call.
/// A target that overlaps a source begins exactly where the source does.
pub(super) unsafe fn sum_into<T: Element>(sources: &[*const T], targets: &[*mut T], elements: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has the feature; the rest is the caller's promise.
            return unsafe { sum_into_avx512(sources, targets, elements) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { sum_into_avx2(sources, targets, elements) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { sum_into_any(sources, targets, elements) }
}

/// [`sum_into_any`], compiled for AVX-512.
///
/// # Safety
/// The contract of [`sum_into`], on a processor with AVX-512 F and BW.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn sum_into_avx512<T: Element>(sources: &[*const T], targets: &[*mut T], elements: usize) {
    // SAFETY: the caller's promise.
    unsafe { sum_into_any(sources, targets, elements) }
}

/// [`sum_into_any`], compiled for AVX2.
///
/// # Safety
/// The contract of [`sum_into`], on a processor with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_into_avx2<T: Element>(sources: &[*const T], targets: &[*mut T], elements: usize) {
    // SAFETY: the caller's promise.
    unsafe { sum_into_any(sources, targets, elements) }
}

/// The loops of [`sum_into`], inlined into its variants so that each has them compiled for its own vectors.
///
/// # Safety
/// The contract of [`sum_into`].
#[inline(always)]
unsafe fn sum_into_any<T: Element>(sources: &[*const T], targets: &[*mut T], elements: usize) {
    let mut sums = [0f32; BLOCK];
    let mut start = 0;
    while start < elements {
        let count = BLOCK.min(elements - start);
        let sums = &mut sums[..count];
        // SAFETY: `start + count <= elements`; the slices of sources are gone before those of targets are made.
        let source = |index: usize| unsafe { std::slice::from_raw_parts(sources[index].add(start), count) };
        match sources.len() {
            0 => sums.fill(0.0),
            1 => {
                for (sum, value) in sums.iter_mut().zip(source(0)) {
                    *sum = value.to_f32();
                }
            }
            _ => {
                for ((sum, first), second) in sums.iter_mut().zip(source(0)).zip(source(1)) {
                    *sum = first.to_f32() + second.to_f32();
                }
            }
        }
        for index in 2..sources.len() {
            for (sum, value) in sums.iter_mut().zip(source(index)) {
                *sum += value.to_f32();
            }
        }
        for &target in targets {
            // SAFETY: as above.
            let target = unsafe { std::slice::from_raw_parts_mut(target.add(start), count) };
            for (value, sum) in target.iter_mut().zip(&*sums) {
                *value = T::from_f32(*sum);
            }
        }
        start += count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bf16;
    use super::*;

    fn sums_are_right<T: Element + std::fmt::Debug>(elements: usize, ranks: usize) {
        let value = |rank: usize, index: usize| ((rank + 1) * (index % 5)) as f32;
        let mut arrays: Vec<Vec<T>> =
            (0..ranks).map(|rank| (0..elements).map(|index| T::from_f32(value(rank, index))).collect()).collect();
        let sources: Vec<*const T> = arrays.iter().map(|array| array.as_ptr()).collect();
        let targets: Vec<*mut T> = arrays.iter_mut().map(|array| array.as_mut_ptr()).collect();
        // SAFETY: the arrays are as long as `elements` says and live until the end of this function.
        unsafe { sum_into(&sources, &targets, elements) };
        for array in &arrays {
            for (index, &sum) in array.iter().enumerate() {
                assert_eq!(sum.to_f32(), (0..ranks).map(|rank| value(rank, index)).sum::<f32>());
            }
        }
    }

    #[test]
    fn every_length_and_number_of_ranks_sums_exactly() {
        for ranks in [1, 2, 3, 4, 7] {
            for elements in [0, 1, 5, 1023, 1024, 1025, 3000] {
                sums_are_right::<f32>(elements, ranks);
                sums_are_right::<Bf16>(elements, ranks);
            }
        }
    }
}

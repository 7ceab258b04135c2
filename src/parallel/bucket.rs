//! Buckets: the stages whose gradients are all-reduced together.

use std::ops::Range;

/// Consecutive stages whose gradients are sent as one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Stages of the model, in the order of the forward pass.
    pub stages: Range<usize>,
    /// Elements of these stages in the flat gradient buffer.
    pub elements: Range<usize>,
}

impl Bucket {
    /// Cuts the stages into buckets of at least `bytes`, in the order of the backward pass: the last stages first.
    ///
    /// `stage_elements` are the ranges of each stage's float32 gradients in the flat buffer. The remaining stages at the front of
    /// the network form a bucket of any size: no computation is left to hide its all-reduce, so a small one is an advantage.
    pub fn plan(stage_elements: &[Range<usize>], bytes: f64) -> Vec<Bucket> {
        let mut buckets = Vec::new();
        let mut end = stage_elements.len();
        for start in (0..stage_elements.len()).rev() {
            let elements = stage_elements[start].start..stage_elements[end - 1].end;
            if (elements.len() * size_of::<f32>()) as f64 >= bytes || start == 0 {
                buckets.push(Bucket { stages: start..end, elements });
                end = start;
            }
        }
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cut_from_the_end_and_cover_everything() {
        let stages = [0..10, 10..30, 30..40, 40..100];
        let plan = |bytes| Bucket::plan(&stages, bytes);
        assert_eq!(plan(1e9), [Bucket { stages: 0..4, elements: 0..100 }]);
        assert_eq!(
            plan(100.0), // 25 elements
            [
                Bucket { stages: 3..4, elements: 40..100 },
                Bucket { stages: 1..3, elements: 10..40 },
                Bucket { stages: 0..1, elements: 0..10 },
            ]
        );
        assert_eq!(plan(1.0).len(), 4);
    }
}

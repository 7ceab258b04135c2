//! Buckets: the parameters whose gradients are all-reduced together, and the order in which they are reduced.

use std::ops::Range;

use crate::config::Plan;

/// Most bytes that the bucket of the last parameters needs to be complete, as DistributedDataParallel's first bucket: its
/// all-reduce starts while most of the backward pass is left.
const FIRST_BYTES: f64 = 1e6;

/// Consecutive parameters whose gradients are sent as one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Number of the bucket, from 0.
    pub number: usize,
    /// Parameters, by their numbers in the model's order.
    pub parameters: Range<usize>,
    /// Elements of these parameters in the flat gradient buffer.
    pub elements: Range<usize>,
}

impl Bucket {
    /// Least bytes of the buckets of `plan` on `ranks` ranks; infinite where nothing is reduced.
    pub fn least_bytes(plan: &Plan, ranks: usize) -> f64 {
        if ranks > 1 && plan.parallel.local_steps == 1 { plan.parallel.bucket_mb * 1e6 } else { f64::INFINITY }
    }

    /// Cuts the parameters into buckets of at least `bytes`, the last parameters first, whose gradients the backward pass of most
    /// networks completes first; their bucket is complete with 1 MB, unless `bytes` is infinite: then there is one bucket.
    ///
    /// `elements` are the ranges of each parameter's float32 gradients in the flat buffer, one after the other. The remaining
    /// parameters at the front of the network form a bucket of any size: no computation is left to hide its all-reduce, so a
    /// small one is an advantage.
    pub fn plan(elements: &[Range<usize>], bytes: f64) -> Vec<Bucket> {
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut end = elements.len();
        for start in (0..elements.len()).rev() {
            let cut = elements[start].start..elements[end - 1].end;
            let enough = if buckets.is_empty() && bytes.is_finite() { bytes.min(FIRST_BYTES) } else { bytes };
            if (cut.len() * size_of::<f32>()) as f64 >= enough || start == 0 {
                let number = buckets.len();
                buckets.push(Bucket { number, parameters: start..end, elements: cut });
                end = start;
            }
        }
        buckets
    }
}

/// Order in which buckets are reduced, and the gradients that are complete in a backward pass under way.
///
/// All ranks reduce the buckets in one order, whatever order their gradients are completed in: at first that of
/// [`Bucket::plan`], then the order in which rank 0's first backward pass completed them. A bucket with a gradient that a pass does
/// not compute is reduced after it.
#[derive(Debug)]
pub struct Readiness {
    /// Bucket of each parameter.
    bucket_of: Vec<usize>,
    /// Gradients left until each bucket is complete.
    left: Vec<usize>,
    parameters: Vec<usize>,
    order: Vec<usize>,
    /// Buckets handed over in this pass: the first of `order`.
    given: usize,
    /// Buckets in the order in which this pass completed them.
    completed: Vec<usize>,
}

impl Readiness {
    /// No gradient is complete; the order is that of `buckets`.
    pub fn new(buckets: &[Bucket]) -> Readiness {
        let mut bucket_of = vec![0; buckets.iter().map(|bucket| bucket.parameters.end).max().unwrap_or(0)];
        for (index, bucket) in buckets.iter().enumerate() {
            bucket_of[bucket.parameters.clone()].fill(index);
        }
        let parameters: Vec<usize> = buckets.iter().map(|bucket| bucket.parameters.len()).collect();
        let (left, order, completed) = (parameters.clone(), (0..buckets.len()).collect(), Vec::new());
        Readiness { bucket_of, left, parameters, order, given: 0, completed }
    }

    /// Counts the gradient of `parameter` as complete. Returns the buckets that can be reduced now, in order; the last bucket of
    /// the order is not among them, since nothing is left to hide it.
    pub fn complete(&mut self, parameter: usize) -> &[usize] {
        let bucket = self.bucket_of[parameter];
        self.left[bucket] = self.left[bucket].saturating_sub(1);
        if self.left[bucket] == 0 {
            self.completed.push(bucket);
        }
        let from = self.given;
        while self.given + 1 < self.order.len() && self.left[self.order[self.given]] == 0 {
            self.given += 1;
        }
        &self.order[from..self.given]
    }

    /// Ends the pass: returns the buckets that are not handed over yet, in order, and makes ready for the next pass.
    pub fn end(&mut self) -> Vec<usize> {
        self.left.copy_from_slice(&self.parameters);
        self.order[std::mem::take(&mut self.given)..].to_vec()
    }

    /// Buckets in the order in which the passes since the last call completed them; those that none completed come last.
    pub fn take_completed(&mut self) -> Vec<usize> {
        let mut order = std::mem::take(&mut self.completed);
        let rest: Vec<usize> = (0..self.order.len()).filter(|bucket| !order.contains(bucket)).collect();
        order.extend(rest);
        order
    }

    /// Sets the order of the passes to come, equal on all ranks.
    pub fn set_order(&mut self, order: Vec<usize>) {
        assert_eq!(order.len(), self.order.len(), "an order names each bucket once");
        self.order = order;
        self.completed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cut_from_the_end_and_cover_everything() {
        let parameters = [0..10, 10..30, 30..40, 40..100];
        let plan = |bytes| Bucket::plan(&parameters, bytes);
        assert_eq!(plan(1e9), [Bucket { number: 0, parameters: 0..4, elements: 0..100 }]);
        assert_eq!(
            plan(100.0), // 25 elements
            [
                Bucket { number: 0, parameters: 3..4, elements: 40..100 },
                Bucket { number: 1, parameters: 1..3, elements: 10..40 },
                Bucket { number: 2, parameters: 0..1, elements: 0..10 },
            ]
        );
        assert_eq!(plan(1.0).len(), 4);
        let large = [0..1_000_000, 1_000_000..2_000_000, 2_000_000..2_200_000, 2_200_000..2_300_000];
        let ends: Vec<usize> = Bucket::plan(&large, 8e6).iter().map(|bucket| bucket.parameters.start).collect();
        assert_eq!(ends, [2, 0]); // 1.2 MB, then what is left
        assert_eq!(Bucket::plan(&large, f64::INFINITY).len(), 1);
    }

    #[test]
    fn buckets_are_handed_over_in_order_and_the_last_one_at_the_end() {
        let buckets = Bucket::plan(&[0..1, 1..2, 2..3, 3..4, 4..5], 8.0); // parameters 3 4, 1 2, 0
        let mut ready = Readiness::new(&buckets);
        let mut given = |parameters: &[usize]| -> Vec<Vec<usize>> {
            let mut all: Vec<Vec<usize>> =
                parameters.iter().map(|&parameter| ready.complete(parameter).to_vec()).collect();
            all.push(ready.end());
            all
        };
        assert_eq!(given(&[4, 3, 2, 1, 0]), [vec![], vec![0], vec![], vec![1], vec![], vec![2]]);
        assert_eq!(given(&[2, 1, 4, 3, 0]), [vec![], vec![], vec![], vec![0, 1], vec![], vec![2]]);
        assert_eq!(given(&[4, 2, 1, 0]), [vec![], vec![], vec![], vec![], vec![0, 1, 2]]); // 3 is not used
        assert_eq!(given(&[4, 3]), [vec![], vec![0], vec![1, 2]]);
    }

    #[test]
    fn the_order_of_a_pass_becomes_that_of_the_next_ones() {
        let mut ready = Readiness::new(&Bucket::plan(&[0..1, 1..2, 2..3], 4.0));
        assert!(ready.complete(0).is_empty() && ready.complete(2).len() == 1);
        ready.end();
        let order = ready.take_completed();
        assert_eq!(order, [2, 0, 1]); // parameter 0 first, then 2; 1 is not used
        ready.set_order(order);
        assert_eq!(ready.complete(0), [2]);
        assert!(ready.complete(1).is_empty());
        assert_eq!(ready.complete(2), [0]); // the last of the order waits for the end
        assert_eq!(ready.end(), [1]);
    }
}

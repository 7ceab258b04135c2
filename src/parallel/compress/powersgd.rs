//! Low-rank gradients: each gradient matrix is sent as a product of two thin matrices.
//!
//! Source: Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization, 2019,
//! algorithms 1 and 2.

use std::ops::Range;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::Compressor;
use crate::collective::{AllReduce, HostBuffer, Region, WaitPolicy, Waits};
use crate::error::Result;
use crate::metrics::Kind;
use crate::parallel::norm;

/// Fraction of a column's length below which its remainder, after projecting out the columns before it, is rounding error.
const DEPENDENT: f64 = 1e-5;

/// PowerSGD: one step of power iteration for each matrix of a bucket, warm-started from the step before.
///
/// With M the sum over the ranks of gradients and errors, as `[rows, columns]`: `P = M Q` with its columns made orthonormal,
/// `Q = M^T P`, and the result is `P Q^T`, the best approximation in P's column space. P and Q are sums over the ranks of
/// each rank's own products, so plain all-reduces carry them. Each rank keeps the part of its summand outside P's column
/// space. Vectors, and matrices whose P and Q are no smaller, are sent uncompressed together with P.
///
/// The products are plain loops: every rank must compute the same bits from the sums, and a library's product starts
/// threads, for which the thread that computes beside this one leaves no core.
pub struct PowerSgd {
    tensors: Vec<Part>,
    /// `[elements]`: this rank's gradient plus its error; 0 for tensors sent uncompressed.
    error: Vec<f32>,
    /// All P `[rows, rank]` and all uncompressed tensors, in the model's order.
    left: HostBuffer,
    /// All Q, transposed: `[rank, columns]`.
    right: HostBuffer,
    /// `right` after the last step, with which the next one starts.
    start: Vec<f32>,
    seed: u64,
}

/// One parameter's gradient and its place in the buffers.
struct Part {
    elements: Range<usize>,
    /// Elements of `left`, sent in the first all-reduce.
    left: Range<usize>,
    /// Elements of `right`, sent in the second all-reduce.
    right: Range<usize>,
    /// Shape of the low-rank product; `None`: sent uncompressed.
    matrix: Option<Shape>,
}

/// A gradient `[rows, columns]` and the number of columns that P and Q have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    rows: usize,
    columns: usize,
    rank: usize,
}

impl Shape {
    /// Shape of P and Q for a parameter of `shape`: rows are the outputs, columns all else, in memory order. `None` if P and Q
    /// would be no smaller than the gradient.
    fn of(shape: &[i64], rank: usize) -> Option<Shape> {
        let (&rows, rest) = shape.split_first()?;
        let (rows, columns) = (rows as usize, rest.iter().product::<i64>() as usize);
        let rank = rank.min(rows).min(columns);
        (rank * (rows + columns) < rows * columns).then_some(Shape { rows, columns, rank })
    }
}

impl PowerSgd {
    /// Creates the state for parameters of these `shapes`; every matrix gets P and Q of at most `rank` columns.
    ///
    /// # Errors
    /// The buffers cannot be allocated.
    pub fn new(all_reduce: &AllReduce, shapes: &[Vec<i64>], rank: usize, seed: u64) -> Result<PowerSgd> {
        let (tensors, [elements, left, right]) = plan(shapes, rank);
        let (left, start) = (all_reduce.buffer(left)?, vec![0.0; right]);
        let (right, error) = (all_reduce.buffer(right)?, vec![0.0; elements]);
        Ok(PowerSgd { tensors, error, left, right, start, seed })
    }

    /// Indices of a bucket's tensors.
    fn of_bucket(&self, elements: &Range<usize>) -> Range<usize> {
        let within = |part: &Part| elements.start <= part.elements.start && part.elements.end <= elements.end;
        let first = self.tensors.iter().position(within).unwrap_or(0);
        first..first + self.tensors[first..].iter().take_while(|part| within(part)).count()
    }

    /// Ranges of `left` and of `right` that `tensors` fill.
    fn sent(&self, tensors: &Range<usize>) -> (Range<usize>, Range<usize>) {
        let Some((first, last)) = self.tensors[tensors.clone()].first().zip(self.tensors[tensors.clone()].last())
        else {
            return (0..0, 0..0);
        };
        (first.left.start..last.left.end, first.right.start..last.right.end)
    }

    /// Computes this rank's summand of P, from its gradient plus error.
    fn project(&mut self, index: usize, gradient: &[f32]) {
        let Part { elements, left, right, matrix } = &self.tensors[index];
        let own = &mut self.left.as_mut_slice()[left.clone()];
        let Some(shape) = matrix else { return own.copy_from_slice(gradient) };
        let error = &mut self.error[elements.clone()];
        let start = &mut self.start[right.clone()];
        normalize(start, shape.columns, self.seed.wrapping_add(right.start as u64));
        let rows = error.chunks_mut(shape.columns).zip(gradient.chunks(shape.columns));
        for ((row, gradient), p) in rows.zip(own.chunks_mut(shape.rank)) {
            row.iter_mut().zip(gradient).for_each(|(error, gradient)| *error += gradient);
            p.iter_mut().zip(start.chunks(shape.columns)).for_each(|(p, direction)| *p = dot(row, direction));
        }
    }

    /// Makes P's columns orthonormal, computes this rank's summand of Q, and keeps the part outside P's column space as error.
    fn project_back(&mut self, index: usize) {
        let Part { elements, left, right, matrix } = &self.tensors[index];
        let Some(shape) = matrix else { return };
        let p = &mut self.left.as_mut_slice()[left.clone()];
        orthonormalize(p, shape.rank);
        let q = &mut self.right.as_mut_slice()[right.clone()];
        let error = &mut self.error[elements.clone()];
        q.fill(0.0);
        for (weights, row) in p.chunks(shape.rank).zip(error.chunks(shape.columns)) {
            weights.iter().zip(q.chunks_mut(shape.columns)).for_each(|(&weight, q)| add(weight, row, q));
        }
        add_product(p, q, -1.0, *shape, error);
    }

    /// Restores the sum over the ranks into `gradient`.
    fn restore(&mut self, index: usize, gradient: &mut [f32]) {
        let Part { left, right, matrix, .. } = &self.tensors[index];
        let p = &self.left.as_slice()[left.clone()];
        let Some(shape) = matrix else { return gradient.copy_from_slice(p) };
        let q = &self.right.as_slice()[right.clone()];
        gradient.fill(0.0);
        add_product(p, q, 1.0, *shape, gradient);
        self.start[right.clone()].copy_from_slice(q);
    }
}

impl Compressor for PowerSgd {
    fn reduce(
        &mut self,
        all_reduce: &AllReduce,
        gradients: &mut Region,
        policy: WaitPolicy,
        waits: &mut Waits,
    ) -> Result<()> {
        let tensors = self.of_bucket(&gradients.range());
        let offset = gradients.range().start;
        let (left, right) = self.sent(&tensors);
        let place = |part: &Part| part.elements.start - offset..part.elements.end - offset;
        for index in tensors.clone() {
            self.project(index, &gradients.as_slice()[place(&self.tensors[index])]);
        }
        waits.extend(&all_reduce.reduce(Kind::Gradients, &mut self.left.region(left), policy)?.waits);
        if !right.is_empty() {
            tensors.clone().for_each(|index| self.project_back(index));
            waits.extend(&all_reduce.reduce(Kind::Gradients, &mut self.right.region(right), policy)?.waits);
        }
        for index in tensors {
            let place = place(&self.tensors[index]);
            self.restore(index, &mut gradients.as_mut_slice()[place]);
        }
        Ok(())
    }

    fn bytes(&self, elements: &Range<usize>) -> u64 {
        let (left, right) = self.sent(&self.of_bucket(elements));
        ((left.len() + right.len()) * size_of::<f32>()) as u64
    }

    fn state(&mut self) -> Vec<(&'static str, &mut [f32])> {
        vec![("powersgd.error", &mut self.error), ("powersgd.start", &mut self.start)]
    }
}

/// Plans each tensor's gradient, P and Q, and the lengths of the three buffers.
fn plan(shapes: &[Vec<i64>], rank: usize) -> (Vec<Part>, [usize; 3]) {
    let (mut element, mut left, mut right) = (0, 0, 0);
    let next = |place: &mut usize, length: usize| {
        *place += length;
        *place - length..*place
    };
    let tensors = shapes
        .iter()
        .map(|shape| {
            let length = shape.iter().product::<i64>() as usize;
            let matrix = Shape::of(shape, rank);
            Part {
                elements: next(&mut element, length),
                left: next(&mut left, matrix.map_or(length, |shape| shape.rows * shape.rank)),
                right: next(&mut right, matrix.map_or(0, |shape| shape.rank * shape.columns)),
                matrix,
            }
        })
        .collect();
    (tensors, [element, left, right])
}

/// Gives each row of `rows` `[_, columns]` length 1. A row of zero length (before the first step, or where the last
/// gradients had a lower rank) becomes random, with identical values on all ranks.
fn normalize(rows: &mut [f32], columns: usize, seed: u64) {
    for (number, row) in rows.chunks_mut(columns).enumerate() {
        let mut length = norm(row);
        if length == 0.0 || !length.is_finite() {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_add((number as u64) << 48));
            // Uniform in [-1, 1), from the upper 24 bits: identical float32 values on every machine.
            row.fill_with(|| (random.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0);
            length = norm(row);
        }
        row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

/// Makes the columns of `matrix` `[_, columns]` orthonormal, in order; a column that depends on earlier ones becomes 0.
///
/// Gram-Schmidt in float64, each column twice.
fn orthonormalize(matrix: &mut [f32], columns: usize) {
    let rows = matrix.len() / columns;
    let mut done: Vec<Vec<f64>> = Vec::with_capacity(columns);
    for column in 0..columns {
        let mut values: Vec<f64> = (0..rows).map(|row| f64::from(matrix[row * columns + column])).collect();
        let length = |values: &[f64]| dot64(values, values).sqrt();
        let before = length(&values);
        for _ in 0..2 {
            for other in &done {
                let along = dot64(&values, other);
                values.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
            }
        }
        let left = length(&values);
        // A NaN passes through, and shows in the loss.
        let inverse = if left <= DEPENDENT * before { 0.0 } else { 1.0 / left };
        values.iter_mut().for_each(|value| *value *= inverse);
        for (row, value) in values.iter().enumerate() {
            matrix[row * columns + column] = *value as f32;
        }
        done.push(values);
    }
}

/// `sums += sign p q`, with `p` `[rows, rank]`, `q` `[rank, columns]`.
fn add_product(p: &[f32], q: &[f32], sign: f32, shape: Shape, sums: &mut [f32]) {
    for (weights, row) in p.chunks(shape.rank).zip(sums.chunks_mut(shape.columns)) {
        weights.iter().zip(q.chunks(shape.columns)).for_each(|(&weight, direction)| add(sign * weight, direction, row));
    }
}

/// `sums += weight values`.
fn add(weight: f32, values: &[f32], sums: &mut [f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
}

/// Dot product, in as many partial sums as keep wide vectors busy.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    const SUMS: usize = 32;
    let mut sums = [0f32; SUMS];
    let (ones, others) = (one.chunks_exact(SUMS), other.chunks_exact(SUMS));
    let rest: f32 = ones.remainder().iter().zip(others.remainder()).map(|(a, b)| a * b).sum();
    for (ones, others) in ones.zip(others) {
        sums.iter_mut().zip(ones.iter().zip(others)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + rest
}

fn dot64(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values, made by `tests/fixtures/compression.py` with NumPy.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/compression.txt");

    /// Gradient of the test: the script's function.
    fn gradient(rank: usize, step: usize, index: usize) -> f32 {
        ((step * 7 + index * 13 + rank * 5 + index * index) % 64) as f32 / 32.0 - 1.0
    }

    /// State of one rank.
    fn powersgd(shapes: &[Vec<i64>], rank: usize) -> PowerSgd {
        let (tensors, [elements, left, right]) = plan(shapes, rank);
        let start = vec![0.0; right];
        let error = vec![0.0; elements];
        let [left, right] = [left, right].map(HostBuffer::zeros);
        PowerSgd { tensors, error, left, right, start, seed: 1 }
    }

    /// Runs one step of `ranks` with one tensor, without the wire; returns the gradients' sum as every rank gets it.
    fn step(ranks: &mut [PowerSgd], gradients: &[Vec<f32>]) -> Vec<f32> {
        fn sum(ranks: &mut [PowerSgd], buffer: fn(&mut PowerSgd) -> &mut [f32]) {
            let mut total = vec![0.0; buffer(&mut ranks[0]).len()];
            for rank in &mut *ranks {
                total.iter_mut().zip(buffer(rank)).for_each(|(total, value)| *total += *value);
            }
            ranks.iter_mut().for_each(|rank| buffer(rank).copy_from_slice(&total));
        }
        ranks.iter_mut().zip(gradients).for_each(|(rank, gradient)| rank.project(0, gradient));
        sum(ranks, |rank| rank.left.as_mut_slice());
        ranks.iter_mut().for_each(|rank| rank.project_back(0));
        sum(ranks, |rank| rank.right.as_mut_slice());
        let mut results = vec![vec![0.0; gradients[0].len()]; ranks.len()];
        ranks.iter_mut().zip(&mut results).for_each(|(rank, result)| rank.restore(0, result));
        assert!(results.iter().all(|result| *result == results[0]));
        results.swap_remove(0)
    }

    fn largest_difference(one: &[f32], two: &[f32]) -> f32 {
        one.iter().zip(two).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn six_steps_of_two_ranks_equal_numpys() {
        let shapes = [vec![6, 5]];
        let mut ranks = [powersgd(&shapes, 2), powersgd(&shapes, 2)];
        assert!(ranks[0].tensors[0].matrix.is_some());
        for rank in &mut ranks {
            rank.start = (0..10).map(|index| gradient(0, 100, index)).collect();
        }
        let lines = EXPECTED.lines().filter_map(|line| line.strip_prefix("powersgd : "));
        let mut steps = 0;
        for (number, line) in lines.enumerate() {
            let expected: Vec<f32> = line.split(' ').map(|value| value.parse().unwrap()).collect();
            let gradients = [0, 1].map(|rank| (0..30).map(|index| gradient(rank, number, index)).collect());
            let difference = largest_difference(&step(&mut ranks, &gradients), &expected);
            assert!(difference < 2e-5, "step {number}: {difference}"); // float32, of values up to 5
            steps += 1;
        }
        assert_eq!(steps, 6);
    }

    #[test]
    fn a_matrix_of_no_higher_rank_arrives_whole_and_after_it_a_higher_one() {
        // Two ranks' gradients, each of rank 1 with its own column space: a sum of rank 2.
        let product = |rank: usize| -> Vec<f32> {
            (0..12 * 20).map(|i| gradient(rank, 1, i / 20) * gradient(rank, 2, i % 20 + 40)).collect()
        };
        let shapes = [vec![12, 5, 2, 2]];
        let mut ranks = [powersgd(&shapes, 4), powersgd(&shapes, 4)];
        for scale in [1.0, 1e-3, 0.0, 1.0] {
            let gradients = [0, 1].map(|rank| product(rank).iter().map(|value| scale * value).collect::<Vec<f32>>());
            let sum: Vec<f32> = gradients[0].iter().zip(&gradients[1]).map(|(a, b)| a + b).collect();
            let result = step(&mut ranks, &gradients);
            // Rounding error, plus that of the step before, which is sent now.
            assert!(largest_difference(&result, &sum) < 1e-5, "{scale}");
        }
        // A gradient of higher rank arrives in parts, each step some of what is left.
        let full: Vec<f32> = (0..240).map(|i| gradient(0, 3, i * i)).collect();
        let (zero, mut owed) = (vec![0.0; 240], full.clone());
        let mut gradients = [full, zero.clone()];
        let mut left = Vec::new();
        for _ in 0..8 {
            let result = step(&mut ranks, &gradients);
            owed.iter_mut().zip(&result).for_each(|(owed, value)| *owed -= value);
            left.push(norm(&owed));
            gradients = [zero.clone(), zero.clone()];
        }
        assert!(left.windows(2).all(|pair| pair[1] <= pair[0] + 1e-6 * left[0]), "{left:?}"); // to rounding
        assert!(left[7] < 0.01 * left[0], "{left:?}");
    }

    #[test]
    fn what_was_sent_and_what_is_kept_back_are_all_the_gradients() {
        let shapes = [vec![16, 24]];
        let mut ranks: Vec<PowerSgd> = (0..3).map(|_| powersgd(&shapes, 2)).collect();
        let mut owed = vec![0f64; 384];
        for number in 0..30 {
            let gradients: Vec<Vec<f32>> =
                (0..3).map(|rank| (0..384).map(|index| gradient(rank, number, index)).collect()).collect();
            let result = step(&mut ranks, &gradients);
            for (index, owed) in owed.iter_mut().enumerate() {
                *owed +=
                    gradients.iter().map(|values| f64::from(values[index])).sum::<f64>() - f64::from(result[index]);
            }
        }
        for (index, owed) in owed.iter().enumerate() {
            let kept: f64 = ranks.iter().map(|rank| f64::from(rank.error[index])).sum();
            assert!((owed - kept).abs() < 1e-3, "{index}: {owed} {kept}"); // rounding of 30 steps of values up to 30
        }
    }

    #[test]
    fn small_matrices_and_vectors_go_as_they_are() {
        assert_eq!(Shape::of(&[64], 4), None);
        assert_eq!(Shape::of(&[6, 8], 4), None); // 4 x 14 is more than 48
        assert_eq!(Shape::of(&[64, 16, 3, 3], 4), Some(Shape { rows: 64, columns: 144, rank: 4 }));
        assert_eq!(Shape::of(&[2, 300], 4), None); // rank 2 at most: both matrices are larger
        let mut one = [powersgd(&[vec![5]], 4)];
        let values: Vec<f32> = (0..5).map(|index| gradient(0, 0, index)).collect();
        assert_eq!(step(&mut one, std::slice::from_ref(&values)), values);
    }

    #[test]
    fn columns_become_orthonormal_and_dependent_ones_vanish() {
        // [4, 3]; the third column is the sum of the others.
        let mut matrix = [1.0, 0.0, 1.0, 1.0, 1.0, 2.0, 0.0, 2.0, 2.0, 1.0, -1.0, 0.0];
        orthonormalize(&mut matrix, 3);
        let product = |a: usize, b: usize| (0..4).map(|row| matrix[row * 3 + a] * matrix[row * 3 + b]).sum::<f32>();
        for (a, b, expected) in [(0, 0, 1.0), (1, 1, 1.0), (0, 1, 0.0), (2, 2, 0.0)] {
            assert!((product(a, b) - expected).abs() < 1e-6, "{a} {b}");
        }
    }
}

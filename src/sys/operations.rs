//! Multiplications and additions of what libtorch is called for.

use super::libtorch::failure_text;

unsafe extern "C" {
    fn hpml_operations_begin() -> bool;
    fn hpml_operations_end(operations: *mut u64) -> bool;
}

/// Multiplications and additions of the convolutions, matrix products and attention that `work` calls on this thread, two per
/// multiplication, by the shapes of their operands; and what `work` returns. A backward pass on the CPU runs on the thread that
/// calls it.
///
/// The count is an error, libtorch's name of an operation, if there are others that consist of products (`aten::mkldnn_rnn_layer`).
///
/// # Panics
/// `work` counts too.
pub fn count_operations<T>(work: impl FnOnce() -> T) -> (Result<u64, String>, T) {
    /// Ends the count when `work` panics, too.
    struct Counting;
    impl Drop for Counting {
        fn drop(&mut self) {
            let mut operations = 0;
            // SAFETY: writes one number.
            unsafe { hpml_operations_end(&raw mut operations) };
        }
    }
    // SAFETY: takes nothing; changes what this thread records only.
    let begun = unsafe { hpml_operations_begin() };
    assert!(begun, "{}", failure_text());
    let counting = Counting;
    let result = work();
    std::mem::forget(counting);
    let mut operations = 0;
    // SAFETY: writes one number.
    let known = unsafe { hpml_operations_end(&raw mut operations) };
    (if known { Ok(operations) } else { Err(failure_text()) }, result)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    fn zeros(sizes: &[i64]) -> Tensor {
        Tensor::zeros(sizes, tch::kind::FLOAT_CPU)
    }

    #[test]
    fn products_are_counted_once_with_their_groups_and_strides() {
        let count = |work: &dyn Fn() -> Tensor| count_operations(work).0;
        let (image, vector) = (zeros(&[2, 4, 9, 9]), zeros(&[5]));
        assert_eq!(count(&|| zeros(&[3, 4]).matmul(&zeros(&[4, 5]))), Ok(2 * 3 * 4 * 5));
        assert_eq!(count(&|| zeros(&[6, 3, 4]).matmul(&zeros(&[6, 4, 5]))), Ok(2 * 6 * 3 * 4 * 5));
        assert_eq!(count(&|| zeros(&[3, 4]).linear(&zeros(&[5, 4]), Some(&vector))), Ok(2 * 3 * 4 * 5));
        let conv = |groups: i64, stride: i64| {
            let weight = zeros(&[8, 4 / groups, 3, 3]);
            count(&|| image.conv2d(&weight, None::<&Tensor>, [stride], [1], [1], groups))
        };
        assert_eq!(conv(1, 1), Ok(2 * 2 * 81 * 8 * 4 * 9));
        assert_eq!(conv(4, 2), Ok(2 * 2 * 25 * 8 * 9));
        assert_eq!(count(&|| image.relu() + 1.0), Ok(0));
    }

    #[test]
    fn each_factor_with_a_gradient_has_a_product_in_the_backward_pass() {
        let weight = zeros(&[8, 1, 3, 3]).set_requires_grad(true);
        for (needs, products) in [(false, 1), (true, 2)] {
            let image = zeros(&[2, 4, 9, 9]).set_requires_grad(needs);
            let sum = image.conv2d(&weight, None::<&Tensor>, [1], [1], [1], 4).sum(Kind::Float);
            let (count, ()) = count_operations(|| sum.backward());
            assert_eq!(count, Ok(products * 2 * 2 * 81 * 8 * 9));
        }
    }

    #[test]
    fn products_of_an_operation_that_is_not_counted_are_unknown_and_named() {
        let (count, _) = count_operations(|| zeros(&[3, 4]).mv(&zeros(&[4])));
        assert!(count.as_ref().is_err_and(|name| name.contains("mv")), "{count:?}");
        assert_eq!(count_operations(|| 7), (Ok(0), 7));
    }
}

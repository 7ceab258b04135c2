//! Operations per second.

/// Multiplications and additions per second of a training, from those of one sample's `forward` pass: the backward pass has twice
/// as many by convention, a product for each factor of a product.
///
/// Source: Chowdhery et al., PaLM (2022), appendix B, which calls its share of the peak model FLOP/s utilization; Kaplan et al.,
/// Scaling Laws for Neural Language Models (2020), section 2.1.
///
/// ```
/// assert_eq!(hpml::metrics::flops(2e9, 100.0), 600e9);
/// ```
pub fn flops(forward: f64, samples_per_second: f64) -> f64 {
    3.0 * forward * samples_per_second
}

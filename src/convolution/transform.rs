//! Winograd's transforms for the points 0, 3/4, -3/4, 3/2, -3/2 and infinity: 6 = 4 + 3 - 1 of them, for four outputs of three
//! taps as for three outputs (a kernel's gradient) of four taps (an output tile's gradient).
//!
//! With `B`, `G` and `A` of these points, outputs `Y = A^T [(G g G^T) * (B^T d B)] A`. The usual points 0, 1, -1, 2, -2 give four
//! times the rounding error: their powers lie further apart. The constants of `A` and `B` are exact in float32.
//! Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, section 4; Barabasz et al., "Error Analysis
//! and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020, on the choice of points.

use super::vector::Vector;

/// Smaller point.
const P: f32 = 0.75;
/// Larger point.
const Q: f32 = 1.5;
const P2: f32 = P * P;
const Q2: f32 = Q * Q;
/// Denominator of the rows of `G` at the points `P` and `-P`.
const AT_P: f32 = 2.0 * P2 * (P2 - Q2);
/// Denominator of the rows of `G` at the points `Q` and `-Q`.
const AT_Q: f32 = 2.0 * Q2 * (Q2 - P2);

/// Multiplies `B^T` `[6, 6]` by six inputs.
///
/// # Safety
/// The vector's instruction set is enabled; this holds for all functions of this module.
#[inline(always)]
pub unsafe fn inputs<V: Vector>(d: [V; 6]) -> [V; 6] {
    // SAFETY: the caller's.
    unsafe {
        let [p, q, p2, q2] = [V::splat(P), V::splat(Q), V::splat(P2), V::splat(Q2)];
        let [sum, product] = [V::splat(P2 + Q2), V::splat(P2 * Q2)];
        let (even_p, odd_p) = (q2.neg_mul_add(d[2], d[4]), q2.neg_mul_add(d[1], d[3]));
        let (even_q, odd_q) = (p2.neg_mul_add(d[2], d[4]), p2.neg_mul_add(d[1], d[3]));
        [
            product.mul_add(d[0], sum.neg_mul_add(d[2], d[4])),
            p.mul_add(odd_p, even_p),
            p.neg_mul_add(odd_p, even_p),
            q.mul_add(odd_q, even_q),
            q.neg_mul_add(odd_q, even_q),
            product.mul_add(d[1], sum.neg_mul_add(d[3], d[5])),
        ]
    }
}

/// Multiplies `G` `[6, 3]` by three taps of a kernel.
///
/// # Safety
/// See [`inputs`].
#[inline(always)]
pub unsafe fn taps<V: Vector>(g: [V; 3]) -> [V; 6] {
    // SAFETY: the caller's.
    unsafe {
        let even_p = V::splat(P2 / AT_P).mul_add(g[2], V::splat(1.0 / AT_P).mul(g[0]));
        let even_q = V::splat(Q2 / AT_Q).mul_add(g[2], V::splat(1.0 / AT_Q).mul(g[0]));
        let (odd_p, odd_q) = (V::splat(P / AT_P).mul(g[1]), V::splat(Q / AT_Q).mul(g[1]));
        [
            V::splat(1.0 / (P2 * Q2)).mul(g[0]),
            even_p.add(odd_p),
            even_p.sub(odd_p),
            even_q.add(odd_q),
            even_q.sub(odd_q),
            g[2],
        ]
    }
}

/// Multiplies `G` `[6, 4]` by four values of an output's gradient.
///
/// # Safety
/// See [`inputs`].
#[inline(always)]
pub unsafe fn gradients<V: Vector>(g: [V; 4]) -> [V; 6] {
    // SAFETY: the caller's.
    unsafe {
        let [p2, q2] = [V::splat(P2), V::splat(Q2)];
        let even_p = V::splat(1.0 / AT_P).mul(p2.mul_add(g[2], g[0]));
        let odd_p = V::splat(P / AT_P).mul(p2.mul_add(g[3], g[1]));
        let even_q = V::splat(1.0 / AT_Q).mul(q2.mul_add(g[2], g[0]));
        let odd_q = V::splat(Q / AT_Q).mul(q2.mul_add(g[3], g[1]));
        [
            V::splat(1.0 / (P2 * Q2)).mul(g[0]),
            even_p.add(odd_p),
            even_p.sub(odd_p),
            even_q.add(odd_q),
            even_q.sub(odd_q),
            g[3],
        ]
    }
}

/// Multiplies `A^T` `[4, 6]` by six products: four outputs.
///
/// # Safety
/// See [`inputs`].
#[inline(always)]
pub unsafe fn outputs<V: Vector>(m: [V; 6]) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe {
        let (even_p, odd_p, even_q, odd_q) = (m[1].add(m[2]), m[1].sub(m[2]), m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(even_p).add(even_q),
            V::splat(Q).mul_add(odd_q, V::splat(P).mul(odd_p)),
            V::splat(Q2).mul_add(even_q, V::splat(P2).mul(even_p)),
            V::splat(Q * Q2).mul_add(odd_q, V::splat(P * P2).mul_add(odd_p, m[5])),
        ]
    }
}

/// Multiplies `A^T` `[3, 6]` by six products: three taps of a kernel's gradient.
///
/// # Safety
/// See [`inputs`].
#[inline(always)]
pub unsafe fn tap_gradients<V: Vector>(m: [V; 6]) -> [V; 3] {
    // SAFETY: the caller's.
    unsafe {
        let (even_p, odd_p, even_q, odd_q) = (m[1].add(m[2]), m[1].sub(m[2]), m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(even_p).add(even_q),
            V::splat(Q).mul_add(odd_q, V::splat(P).mul(odd_p)),
            V::splat(Q2).mul_add(even_q, V::splat(P2).mul_add(even_p, m[5])),
        ]
    }
}

//! The kernels against plain loops, on shapes that reach every branch: tails of pixels and of channels, blocks of 4, 2 and
//! 1 registers, stride 2, padding, max-pool, residual, logits. Buffers are exactly as long as they must be.
#![allow(dead_code)]

#[path = "../../../src/quantize/kernel/mod.rs"]
mod kernel;

#[cfg(test)]
mod tests {
    use super::kernel::{Convolution, Isa, Packing, Prepare, Scale, avx2::Avx2, vnni::Vnni};

    struct Case {
        inputs: usize,
        outputs: usize,
        kernel: [usize; 2],
        stride: usize,
        padding: usize,
        size: [usize; 2],
        pool: bool,
        residual: bool,
        last: bool,
    }

    const CASES: [Case; 11] = [
        Case {
            inputs: 3,
            outputs: 6,
            kernel: [4, 4],
            stride: 1,
            padding: 0,
            size: [9, 9],
            pool: true,
            residual: false,
            last: false,
        },
        Case {
            inputs: 8,
            outputs: 20,
            kernel: [1, 1],
            stride: 1,
            padding: 0,
            size: [4, 4],
            pool: true,
            residual: false,
            last: false,
        },
        Case {
            inputs: 4,
            outputs: 64,
            kernel: [3, 3],
            stride: 1,
            padding: 1,
            size: [2, 2],
            pool: false,
            residual: true,
            last: false,
        },
        Case {
            inputs: 8,
            outputs: 36,
            kernel: [2, 2],
            stride: 2,
            padding: 1,
            size: [4, 4],
            pool: false,
            residual: false,
            last: false,
        },
        Case {
            inputs: 8,
            outputs: 24,
            kernel: [1, 1],
            stride: 2,
            padding: 0,
            size: [4, 4],
            pool: false,
            residual: true,
            last: false,
        },
        Case {
            inputs: 24,
            outputs: 116,
            kernel: [1, 1],
            stride: 1,
            padding: 0,
            size: [1, 1],
            pool: false,
            residual: false,
            last: false,
        },
        Case {
            inputs: 20,
            outputs: 10,
            kernel: [1, 1],
            stride: 1,
            padding: 0,
            size: [1, 1],
            pool: false,
            residual: false,
            last: true,
        },
        // The stem of ImageNet's ResNets, on an image that is no square.
        Case {
            inputs: 3,
            outputs: 20,
            kernel: [7, 7],
            stride: 2,
            padding: 3,
            size: [9, 6],
            pool: false,
            residual: false,
            last: false,
        },
        // A linear layer over an image that is no square.
        Case {
            inputs: 8,
            outputs: 36,
            kernel: [2, 3],
            stride: 1,
            padding: 0,
            size: [2, 3],
            pool: false,
            residual: false,
            last: false,
        },
        // Winograd's form on AVX2.
        Case {
            inputs: 16,
            outputs: 8,
            kernel: [3, 3],
            stride: 1,
            padding: 1,
            size: [2, 6],
            pool: false,
            residual: false,
            last: false,
        },
        Case {
            inputs: 16,
            outputs: 16,
            kernel: [3, 3],
            stride: 1,
            padding: 1,
            size: [4, 4],
            pool: false,
            residual: true,
            last: false,
        },
    ];
    const IMAGES: usize = 2;
    /// Value of the padding, which the kernels do not read everywhere.
    const BORDER: u8 = 77;
    const SCALE: Scale =
        Scale { offset: (1 << 35) + (7 << 36) - 3 * (1 << 30), shift: 36, residual_multiplier: 1 << 27 };

    /// The xorshift generator: every value of u8 and i8 comes up, and sums of both signs.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 >> 20
        }
    }

    fn check<I: Prepare>(case: &Case) {
        assert!(I::detected());
        let mut random = Random(88_172_645_463_325_252);
        let Case { inputs, outputs, kernel: [rows, columns], stride, padding, size, .. } = *case;
        let stored = if inputs == 3 { 4 } else { inputs.next_multiple_of(I::CHANNELS) };
        let padded = size.map(|side| side + 2 * padding);
        let (row, image) = (padded[1] * stored, padded[0] * padded[1] * stored);
        let inside = |axis: usize, at: usize| (padding..padding + size[axis]).contains(&at);
        let value = |at: usize| match inside(0, at % image / row) && inside(1, at % row / stored) {
            true => random.next() as u8,
            false => BORDER,
        };
        let input: Vec<u8> = (0..IMAGES * image).map(value).collect();
        let weight: Vec<i8> = (0..outputs * inputs * rows * columns).map(|_| random.next() as u8 as i8).collect();
        let start: Vec<i32> = (0..outputs).map(|_| random.next() as i32 % 3000).collect();
        let multiplier: Vec<i32> = (0..outputs).map(|_| (random.next() % (1 << 29)) as i32).collect();
        let pool = if case.pool { 2 } else { 1 };
        let results = [0, 1].map(|axis| ((padded[axis] - case.kernel[axis]) / stride + 1) / pool);
        let [height, width] = results;
        let out_stored = if case.last { outputs } else { outputs.next_multiple_of(I::CHANNELS) };
        let positions: Vec<_> =
            (0..IMAGES).flat_map(|n| (0..height).flat_map(move |y| (0..width).map(move |x| (n, y, x)))).collect();
        let corner = |&(n, y, x): &(usize, usize, usize)| n * image + (y * row + x * stored) * stride * pool;
        let residual: Vec<u8> = (0..positions.len() * out_stored).map(|_| random.next() as u8).collect();
        let compact: Vec<u32> = (0..positions.len()).map(|at| (at * out_stored) as u32).collect();
        let (right, down) = (stride * stored, stride * row);
        let packing = || Packing {
            weight: &weight,
            start: start.clone(),
            multiplier: if case.last { &[] } else { &multiplier },
            scale: SCALE,
            kernel: case.kernel,
            stride,
            size: results,
            padding,
            border: BORDER,
            input_size: size,
            input_channels: stored,
            row_stride: row,
            window: case.pool.then_some([0, right, down, right + down]),
            inputs: positions.iter().map(|position| corner(position) as u32).collect(),
            outputs: compact.clone(),
            residuals: if case.residual { compact.clone() } else { vec![] },
            output_channels: out_stored,
            per_image: height * width,
        };
        let sum = |at: usize, o: usize| {
            let taps =
                (0..rows * columns * inputs).map(|tap| (tap / (columns * inputs), tap / inputs % columns, tap % inputs));
            let product = |(ky, kx, c): (usize, usize, usize)| {
                input[at + ky * row + kx * stored + c] as i32
                    * weight[((o * inputs + c) * rows + ky) * columns + kx] as i32
            };
            start[o] + taps.map(product).sum::<i32>()
        };
        let memory: Vec<I::Input> = input.iter().map(|&value| I::input(value)).collect();
        if case.last {
            let mut logits = vec![0; positions.len() * outputs];
            Convolution::<I>::new(packing()).run_last(IMAGES, &memory, &mut logits);
            for (p, position) in positions.iter().enumerate() {
                (0..outputs).for_each(|o| assert_eq!(logits[p * outputs + o], sum(corner(position), o)));
            }
            return;
        }
        // One image is divided into other zones than two.
        (1..=IMAGES).for_each(|images| {
            let skip: Vec<I::Input> = residual.iter().map(|&value| I::input(value)).collect();
            let mut output = vec![I::input(0); positions.len() * out_stored];
            I::prepare(packing()).run(images, &memory, case.residual.then_some(&skip), &mut output);
            let mut seen = [0; 256];
            for (p, position) in positions.iter().enumerate().take(images * height * width) {
                for o in 0..outputs {
                    let steps = if case.pool { vec![0, right, down, right + down] } else { vec![0] };
                    let acc = steps.iter().map(|step| sum(corner(position) + step, o)).max().unwrap() as i64;
                    let added = if case.residual { (residual[p * out_stored + o] as i64) << 8 } else { 0 };
                    let total = acc * multiplier[o] as i64 + added * SCALE.residual_multiplier as i64 + SCALE.offset;
                    let expected = (total >> SCALE.shift).clamp(0, 255) as u8;
                    assert_eq!(I::value(output[p * out_stored + o]), expected, "position {p}, channel {o}");
                    seen[expected as usize] += 1;
                }
            }
            assert!(seen[0] > 0 && seen[1..255].iter().sum::<i32>() > 0, "clamped and not");
        });
    }

    #[test]
    fn vnni_equals_plain_loops() {
        if Vnni::detected() {
            CASES.iter().for_each(check::<Vnni>);
        } else {
            eprintln!("this CPU has no AVX-512 VNNI: run under Miri");
        }
    }

    #[test]
    fn avx2_equals_plain_loops() {
        CASES.iter().for_each(check::<Avx2>);
    }
}

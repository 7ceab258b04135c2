//! 3x3 convolutions by Winograd against libtorch's direct ones (oneDNN), shape by shape: forward and both gradients.
//!
//!     cargo bench --bench convolution -- [--batch 32] [--threads 1] [--rounds 7]
//!
//! float32, channels last, as in a training step of a ResNet. The two forms take turns, so that a busy machine slows both alike;
//! the ratio is the claim. Errors are relative to the largest value (max) and to the root mean square (RMS) of a direct convolution
//! in float64 over at most 4 images. Rates count the operations of a direct convolution, so that Winograd's can exceed that of a
//! product of matrices, which is close to the peak of direct arithmetic. AVX2 on a CPU with AVX-512:
//! `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2`.

use std::time::Instant;

use hpml::sys::{ConvolutionPass, Winograd, seeded};
use tch::{Device, Kind, Tensor};

/// Channels and side of the images: ResNet-18 on 32x32, ResNet-50 on 64x64 and on 224x224, ResNet-18 of width 16.
const SHAPES: [(i64, i64); 14] = [
    (64, 32),
    (128, 16),
    (256, 8),
    (512, 4),
    (64, 16),
    (128, 8),
    (256, 4),
    (512, 2),
    (64, 56),
    (128, 28),
    (256, 14),
    (512, 7),
    (16, 32),
    (32, 16),
];

fn main() {
    let argument = |name: &str, default: i64| {
        let given = std::env::args().skip_while(|argument| argument != name).nth(1);
        given.map_or(default, |given| given.parse().unwrap_or_else(|_| panic!("{name} {given}: expected a number")))
    };
    let (batch, threads, rounds) = (argument("--batch", 32), argument("--threads", 1), argument("--rounds", 7));
    tch::set_num_threads(threads as i32);
    let Some(winograd) = Winograd::detected() else {
        return println!("# no AVX2: hpml leaves convolutions to libtorch");
    };
    let instructions = winograd.instructions().as_str();
    println!(
        "# batch {batch}, {threads} thread(s), {instructions}, medians of {rounds} rounds in turn, errors against float64"
    );
    println!("# product of matrices: {:.0} GFLOP/s", 1e-9 * product_rate());
    println!(
        "# channels  side  pass     direct/ms  winograd/ms  ratio   direct/(GFLOP/s)  winograd   max direct  winograd   \
         RMS direct  winograd"
    );
    for (channels, side) in SHAPES {
        let pair = Pair::new(winograd, channels, side, batch);
        let few = Pair::new(winograd, channels, side, batch.min(4));
        for pass in ConvolutionPass::ALL {
            let mut seconds = [Vec::new(), Vec::new()];
            for round in 0..=rounds {
                for (seconds, direct) in seconds.iter_mut().zip([true, false]) {
                    let started = Instant::now();
                    drop(pair.run(pass, direct));
                    if round > 0 {
                        seconds.push(started.elapsed().as_secs_f64()); // the first round warms up
                    }
                }
            }
            let [direct, own] = seconds.map(|mut seconds| {
                seconds.sort_by(f64::total_cmp);
                1e3 * seconds[seconds.len() / 2]
            });
            let expected = few.expected(pass);
            let [[max_direct, rms_direct], [max_own, rms_own]] =
                [true, false].map(|direct| errors(&few.run(pass, direct), &expected));
            let operations = (2 * 9 * channels * channels * side * side * batch) as f64;
            let [rate, own_rate] = [direct, own].map(|milliseconds| 1e-6 * operations / milliseconds);
            println!(
                "{channels:>10} {side:>5}  {:<7} {direct:>10.2} {own:>12.2} {:>6.2} {rate:>18.0} {own_rate:>9.0} \
                 {max_direct:>12.1e} {max_own:>9.1e} \
                 {rms_direct:>12.1e} {rms_own:>9.1e}",
                name(pass),
                direct / own,
            );
        }
    }
}

/// Operations per second of the fastest of ten products of large matrices by libtorch, on its threads: close to the peak of direct
/// arithmetic.
fn product_rate() -> f64 {
    const SIDE: i64 = 2048;
    let [one, other] = seeded(2, || [(); 2].map(|()| Tensor::randn([SIDE, SIDE], (Kind::Float, Device::Cpu))));
    let seconds = || {
        let started = Instant::now();
        drop(one.matmul(&other));
        started.elapsed().as_secs_f64()
    };
    2.0 * (SIDE as f64).powi(3) / (0..10).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}

fn name(pass: ConvolutionPass) -> &'static str {
    match pass {
        ConvolutionPass::Forward => "forward",
        ConvolutionPass::InputGradient => "input",
        ConvolutionPass::WeightGradient => "weight",
    }
}

/// Tensors of a convolution, and the two ways to compute it.
struct Pair {
    winograd: Winograd,
    input: Tensor,
    weight: Tensor,
    gradient: Tensor,
}

impl Pair {
    fn new(winograd: Winograd, channels: i64, side: i64, images: i64) -> Pair {
        let random = |shape: [i64; 4]| {
            let values = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            values.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
        };
        seeded(1, || {
            let input = random([images, channels, side, side]).relu();
            let weight = random([channels, channels, 3, 3]) * (2.0 / (9 * channels) as f64).sqrt();
            let gradient = random([images, channels, side, side]);
            Pair { winograd, input, weight, gradient }
        })
    }

    /// The pass by Winograd or, if `direct`, by libtorch.
    fn run(&self, pass: ConvolutionPass, direct: bool) -> Tensor {
        let Pair { winograd, input, weight, gradient } = self;
        let winograd = (!direct).then_some(*winograd);
        match pass {
            ConvolutionPass::Forward => pass.compute(winograd, input, weight),
            ConvolutionPass::InputGradient => pass.compute(winograd, gradient, weight),
            ConvolutionPass::WeightGradient => pass.compute(winograd, input, gradient),
        }
    }

    /// The pass in float64.
    fn expected(&self, pass: ConvolutionPass) -> Tensor {
        let [input, weight, gradient] =
            [&self.input, &self.weight, &self.gradient].map(|tensor| tensor.to_kind(Kind::Double));
        Pair { winograd: self.winograd, input, weight, gradient }.run(pass, true)
    }
}

/// Largest and root mean square error of `found`, relative to those of `expected`.
fn errors(found: &Tensor, expected: &Tensor) -> [f64; 2] {
    let apart = found.to_kind(Kind::Double) - expected;
    let ratio = |one: Tensor, other: Tensor| (one / other).double_value(&[]);
    [
        ratio(apart.abs().max(), expected.abs().max()),
        ratio(apart.square().mean(Kind::Double), expected.square().mean(Kind::Double)).sqrt(),
    ]
}

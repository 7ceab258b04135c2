//! hpml's batch norm with shortcut and ReLU on CPU cores against libtorch's operations, forward and backward, on one thread.
//!
//!     cargo bench --bench batch_norm
//!
//! Shapes are those of ResNet-18 on CIFAR-10 and of ResNet-50's first stage on images of 64x64, channels last. Each figure is the
//! median of calls in turn, after calls that are not counted, in which the outcomes are compared. GB/s count each tensor once per
//! pass that must read or write it: forward x twice, y and the shortcut; backward the gradient and x twice, y, both gradients
//! written. HPML_THREADS: threads (1); an argument picks the number type, bf16 beside float32.

use std::sync::Mutex;
use std::time::Instant;

use hpml::sys::{self, BatchNorm};
use tch::{Device, Kind, Tensor};

#[global_allocator]
static ALLOCATOR: sys::Allocator = sys::Allocator;

/// Calls of each form that are timed.
const CALLS: usize = 15;

/// Operands of a batch norm.
struct Case {
    x: Tensor,
    shortcut: Option<Tensor>,
    given: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
}

impl Case {
    fn new(shape: [i64; 4], with_shortcut: bool, kind: Kind) -> Case {
        let random = || {
            let values = Tensor::randn([shape[0], shape[2], shape[3], shape[1]], (Kind::Float, Device::Cpu));
            values.to_kind(kind).permute([0, 3, 1, 2])
        };
        let row = |value: f64| Tensor::full([shape[1]], value, (Kind::Float, Device::Cpu));
        let shortcut = with_shortcut.then(random);
        Case {
            x: random(),
            shortcut,
            given: random(),
            weight: row(1.1),
            bias: row(0.1),
            mean: row(0.0),
            variance: row(1.0),
        }
    }

    fn fused(&self) -> Tensor {
        let Case { weight, bias, mean: running_mean, variance: running_variance, .. } = self;
        let norm = BatchNorm { weight, bias, running_mean, running_variance, momentum: 0.1, epsilon: 1e-5 };
        norm.apply(&self.x, self.shortcut.as_ref(), true).expect("the kernels take these tensors")
    }

    fn libtorch(&self) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let mut y = self.x.batch_norm(weight, bias, Some(&self.mean), Some(&self.variance), true, 0.1, 1e-5, true);
        if let Some(shortcut) = &self.shortcut {
            y = y.g_add_(shortcut);
        }
        y.relu_()
    }

    /// A case in this one's memory, without gradients of earlier passes.
    fn fresh(&self) -> Case {
        let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
        Case {
            x: leaf(&self.x),
            shortcut: self.shortcut.as_ref().map(leaf),
            given: self.given.copy(),
            weight: leaf(&self.weight),
            bias: leaf(&self.bias),
            mean: self.mean.shallow_clone(),
            variance: self.variance.shallow_clone(),
        }
    }

    /// Seconds of the forward and of the backward pass, and the gradient of `x`.
    fn run(&self, forward: impl Fn(&Case) -> Tensor) -> ([f64; 2], Tensor) {
        let mut case = self.fresh();
        // The gradient has one owner, as one that a convolution has made.
        let given = Mutex::new(Some(std::mem::replace(&mut case.given, Tensor::new())));
        let started = Instant::now();
        let y = forward(&case);
        let forward_seconds = started.elapsed().as_secs_f64();
        let loss = sys::differentiable(&y, &Tensor::from(0f32), move |_| {
            given.lock().ok().and_then(|mut given| given.take()).expect("one backward pass")
        });
        let started = Instant::now();
        loss.backward();
        ([forward_seconds, started.elapsed().as_secs_f64()], case.x.grad())
    }
}

fn main() {
    sys::keep_freed_memory();
    let threads = std::env::var("HPML_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    tch::set_num_threads(threads);
    let kind = if std::env::args().any(|argument| argument == "bf16") { Kind::BFloat16 } else { Kind::Float };
    println!("# {kind:?}, threads: {threads}; ms, median of {CALLS} calls (GB/s)");
    println!(
        "# {:>20} {:>8} {:>16} {:>9} {:>6} {:>16} {:>9} {:>6}",
        "shape", "shortcut", "forward", "libtorch", "ratio", "backward", "libtorch", "ratio"
    );
    let shapes = [
        [32, 64, 32, 32],
        [32, 128, 16, 16],
        [32, 256, 8, 8],
        [32, 512, 4, 4],
        [128, 64, 32, 32],
        [128, 128, 16, 16],
        [128, 256, 8, 8],
        [128, 512, 4, 4],
        [32, 256, 16, 16],
    ];
    for shape in shapes {
        for shortcut in [false, true] {
            let case = Case::new(shape, shortcut, kind);
            let mut seconds = [const { Vec::new() }; 4];
            for call in 0..CALLS + 2 {
                let (own, gradient) = case.run(Case::fused);
                let (libtorch, expected) = case.run(Case::libtorch);
                if call < 2 {
                    let apart =
                        (&gradient - &expected).to_kind(Kind::Float).norm() / expected.to_kind(Kind::Float).norm();
                    let apart = apart.double_value(&[]);
                    // A value whose sign is a matter of rounding passes ReLU's gradient in one form and not in the other.
                    assert!(apart < if kind == Kind::Float { 1e-2 } else { 5e-2 }, "{shape:?}: {apart}");
                    continue;
                }
                let all = [own[0], libtorch[0], own[1], libtorch[1]];
                seconds.iter_mut().zip(all).for_each(|(seconds, value)| seconds.push(value));
            }
            let [forward, libtorch_forward, backward, libtorch_backward] = seconds.map(median);
            let bytes = case.x.numel() as f64 * if kind == Kind::Float { 4.0 } else { 2.0 };
            let (forward_passes, backward_passes) = if shortcut { (4.0, 7.0) } else { (3.0, 5.0) };
            let own =
                |seconds: f64, passes: f64| format!("{:.3} ({:.1})", seconds * 1e3, passes * bytes / seconds / 1e9);
            println!(
                "{:>22} {shortcut:>8} {:>16} {:>9.3} {:>6.2} {:>16} {:>9.3} {:>6.2}",
                format!("{shape:?}"),
                own(forward, forward_passes),
                libtorch_forward * 1e3,
                libtorch_forward / forward,
                own(backward, backward_passes),
                libtorch_backward * 1e3,
                libtorch_backward / backward,
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

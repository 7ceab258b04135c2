//! Published scaling against the model with published constants; docs/prediction.md has the table, the sources and what was assumed.

use super::cost::{Cost, Network};
use super::machine::Machine;
use super::overlap::Bucket;
use super::points::{Measured, Point};
use super::spread::Spread;

/// Values and multiplications of the layers, from the first to the last.
type Layers = Vec<(f64, f64)>;

fn convolution(inputs: usize, outputs: usize, kernel: usize, size: usize) -> (f64, f64) {
    let values = (inputs * outputs * kernel * kernel) as f64;
    (values, values * (size * size) as f64)
}

fn linear(inputs: usize, outputs: usize) -> (f64, f64) {
    let values = (inputs * outputs) as f64;
    (values, values)
}

/// VGG-16, Simonyan and Zisserman, arXiv 1409.1556, configuration D.
fn vgg16() -> Layers {
    let blocks = [(64, 2, 224), (128, 2, 112), (256, 3, 56), (512, 3, 28), (512, 3, 14)];
    let (mut layers, mut inputs) = (Layers::new(), 3);
    for (outputs, count, size) in blocks {
        for _ in 0..count {
            layers.push(convolution(inputs, outputs, 3, size));
            inputs = outputs;
        }
    }
    layers.extend([linear(25_088, 4096), linear(4096, 4096), linear(4096, 1000)]);
    layers
}

/// ResNets of bottlenecks, He et al., arXiv 1512.03385, table 1.
fn resnet(blocks: [usize; 4]) -> Layers {
    let (mut layers, mut inputs) = (vec![convolution(3, 64, 7, 112)], 64);
    for (stage, count) in blocks.into_iter().enumerate() {
        let (width, size) = (64 << stage, 56 >> stage);
        for block in 0..count {
            layers.push(convolution(inputs, width, 1, size));
            layers.push(convolution(width, width, 3, size));
            layers.push(convolution(width, 4 * width, 1, size));
            if block == 0 {
                layers.push(convolution(inputs, 4 * width, 1, size));
            }
            inputs = 4 * width;
        }
    }
    layers.push(linear(2048, 1000));
    layers
}

/// Inception V3, Szegedy et al., arXiv 1512.00567: just under 25 million values, here spread evenly over the backward pass.
fn inception() -> Layers {
    vec![(25e6 / 48.0, 1.0); 48]
}

/// Most bytes of fused tensors: Horovod's HOROVOD_FUSION_THRESHOLD.
const FUSION: f64 = 64.0 * 1048576.0;

/// Whole tensors, the last first, up to `most` bytes; each alone if it is 0.
fn fused(layers: &Layers, most: f64) -> Vec<Bucket> {
    let all: f64 = layers.iter().map(|(_, products)| products).sum();
    let (mut buckets, mut bytes, mut done) = (Vec::new(), 0.0, 0.0);
    for (values, products) in layers.iter().rev() {
        if bytes > 0.0 && bytes + 4.0 * values > most {
            buckets.push(Bucket { bytes, ready: done / all });
            bytes = 0.0;
        }
        (bytes, done) = (bytes + 4.0 * values, done + products);
    }
    buckets.push(Bucket { bytes, ready: 1.0 });
    buckets
}

/// The model of a network whose step takes `seconds` on one rank, `backward` of them in the backward pass.
fn cost(machine: &Machine, (layers, fusion): (&Layers, f64), seconds: f64, backward: f64, deviation: f64) -> Cost {
    let gradient_bytes = layers.iter().map(|(values, _)| 4.0 * values).sum::<f64>() as u64;
    let point = Point {
        model: "net".into(),
        timing: "overlap".into(),
        ranks: 1,
        batch_per_rank: 64,
        step: seconds,
        backward,
        comm: 0.0,
        comm_wait: 0.0,
        comm_exposed: 0.0,
        lag: f64::NAN,
        overlap: f64::NAN,
        gradient_bytes,
        deviations: Vec::new(),
    };
    let buckets = [("net".to_owned(), fused(layers, fusion))].into();
    let measured = Measured { points: vec![point], buckets, ..Measured::default() };
    let mut cost = Cost::fit(&measured, &Network::Machine(machine.clone())).unwrap();
    cost.spread = Spread::normal(deviation);
    cost
}

fn machine(name: &str) -> Machine {
    let path = format!("{}/configs/machines/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Machine::load(path.as_ref()).unwrap()
}

/// Standard deviation of a rank's own work between ranks, fitted to Inception V3 on 16 of Horovod's GPUs.
const DEVIATION: f64 = 0.0058;

#[test]
fn horovods_efficiency_on_16_to_512_gpus_is_met_within_5_points_but_for_one_case() {
    let machine = machine("horovod-2017");
    // Images per second of one GPU at batch 64; percent on 16 (README of October 2017: images per second over 16 times those of
    // one), on 128 and on 512 GPUs (docs/benchmarks.md).
    let cases: [(&str, Layers, f64, [f64; 3]); 3] = [
        ("Inception V3", inception(), 134.4, [94.1, 90.0, 90.0]),
        ("ResNet-101", resnet([3, 4, 23, 3]), 119.4, [91.4, 90.0, 90.0]),
        ("VGG-16", vgg16(), 130.9, [85.3, 79.0, 68.0]),
    ];
    for (name, layers, rate, published) in cases {
        let seconds = 64.0 / rate;
        let cost = cost(&machine, (&layers, FUSION), seconds, 2.0 / 3.0 * seconds, DEVIATION);
        for (ranks, published) in [16, 128, 512].into_iter().zip(published) {
            let predicted = 100.0 * cost.efficiency(ranks, 64);
            println!("{name}, {ranks} GPUs: predicted {predicted:.2} %, published {published} %");
            let bound = match (name, ranks) {
                ("Inception V3" | "VGG-16", 16) => 0.3, // the spread and the bandwidth between hosts are fitted to these
                ("VGG-16", 512) => 8.0,
                _ => 5.0,
            };
            assert!((predicted - published).abs() <= bound, "{name}, {ranks} GPUs: {predicted}, {published}");
        }
    }
}

#[test]
fn goyals_efficiency_is_missed_by_what_the_paper_does_not_say() {
    let machine = machine("big-basin-2017");
    // 256 images a step; "over 16 minutes" an epoch of 1.28 million on 8 GPUs; backpropagation takes 120 ms.
    let seconds = 16.0 * 60.0 * 256.0 / 1.28e6;
    let efficiency = |deviation: f64, ranks: usize| {
        // Each tensor is reduced by itself (section 4.2).
        let cost = cost(&machine, (&resnet([3, 4, 6, 3]), 0.0), seconds, 0.12, deviation);
        100.0 * cost.step(8, 64) / cost.step(ranks, 64)
    };
    // Published: about 90 % from 8 to 256 GPUs, and 12 % more time a step on 352 than on 8.
    for (ranks, published) in [(256, 90.0), (352, 100.0 / 1.12)] {
        let [of_horovod, wide] = [DEVIATION, 0.05].map(|deviation| efficiency(deviation, ranks));
        println!(
            "ResNet-50, {ranks} GPUs: predicted {of_horovod:.1} %, {wide:.1} % if ranks differ by 5 %, published {published:.1} %"
        );
        assert!((5.0..11.0).contains(&(of_horovod - published)), "{ranks} GPUs: {of_horovod}");
        assert!((wide - published).abs() < 5.0, "{ranks} GPUs: {wide}");
    }
}

#[test]
fn the_shipped_machines_are_machines() {
    for name in ["horovod-2017", "big-basin-2017", "dgx-h100"] {
        let machine = machine(name);
        let times: Vec<f64> = (1..14).map(|power| machine.all_reduce(1 << power, 1e8).0).collect();
        assert!(times.windows(2).all(|pair| pair[0] <= pair[1]), "{name}: {times:?}");
    }
}

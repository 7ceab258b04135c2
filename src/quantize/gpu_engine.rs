//! The integer network as int8 matrix products on a device: im2col and `_int_mm`, which runs on a GPU's int8 matrix units.
//! Element for element it computes the integers of every other execution.
//!
//! The units multiply i8 by i8, so u8 activations are stored less 128, and the accumulators' initial values compensate.
//! Tensors are `[n, height, width, channels]`. `_int_mm` wants more than 16 rows and multiples of 8 elsewhere: matrices are
//! padded with zeros accordingly.

use tch::{Device, Kind, Tensor};

use super::graph::{Geometry, Layer, Node, Operation, Spec, Window};
use super::integer::{IntNet, Integers, RESIDUAL_SHIFT};

/// Offset subtracted from a u8 to make it an i8.
pub(super) const HALF: i64 = 128;
/// Least number of rows of a product.
const ROWS: usize = 17;

/// An integer network ready to run on a device.
pub struct GpuEngine {
    spec: Spec,
    device: Device,
    /// `[256]` int8 per channel: from a pixel to the network's input.
    table: Vec<Tensor>,
    steps: Vec<Step>,
}

struct Step {
    input: usize,
    residual: Option<usize>,
    /// The convolution; `None` for a pool.
    product: Option<Product>,
    /// Max-pool, after the convolution if there is one.
    max_pool: Option<Window>,
    /// `None` for a max-pool alone and for the last layer.
    requantization: Option<Requantize>,
}

/// A convolution as a matrix product.
struct Product {
    geometry: Geometry,
    /// Value of a padding pixel, less [`HALF`].
    padding: i64,
    /// `[outputs, taps]` int8, both padded to multiples of 8, taps as `[rows, columns, inputs]`.
    weight: Tensor,
    /// Initial accumulators, `[outputs]` int32.
    start: Tensor,
}

/// Requantization of int32 accumulators to 8 bits.
struct Requantize {
    /// `[outputs]` int64 (one value for the average pool).
    multiplier: Tensor,
    residual_multiplier: i64,
    offset: i64,
    shift: i64,
}

impl GpuEngine {
    /// Copies the network to `device`.
    pub fn new(net: &IntNet, device: Device) -> GpuEngine {
        let signed = |values: &[u8; 256]| values.map(|value| (i64::from(value) - HALF) as i8);
        let table = net.input_table();
        let table = table.iter().map(|values| Tensor::from_slice(&signed(values)).to_device(device)).collect();
        let steps = net.nodes.iter().map(|node| Step::new(net, node, device)).collect();
        GpuEngine { spec: net.spec.clone(), device, table, steps }
    }

    /// Computes logits `[n, classes]`, at the last layer's output scale, from pixels `[n, channels, height, width]`.
    pub fn run(&self, pixels: &[u8]) -> Vec<i32> {
        self.trace(pixels).1
    }

    /// Every u8 tensor less 128, as `[n, height, width, channels]` int8 (0: the quantized images), and the logits.
    pub fn trace(&self, pixels: &[u8]) -> (Vec<Tensor>, Vec<i32>) {
        tch::no_grad(|| {
            let images = self.spec.pixel_tensor(pixels).to_device(self.device);
            let plane = |(channel, table): (usize, &Tensor)| {
                let plane = images.select(1, channel as i64);
                let places = plane.flatten(0, -1).to_kind(Kind::Int64);
                table.index_select(0, &places).view_as(&plane)
            };
            let planes: Vec<Tensor> = self.table.iter().enumerate().map(plane).collect();
            let mut tensors = vec![Tensor::stack(&planes, -1)];
            let (last, before) = self.steps.split_last().expect("a network has layers");
            for step in before {
                let input = &tensors[step.input];
                let output = match &step.requantization {
                    Some(requantize) => requantize.apply(&step.sums(input), step.residual.map(|index| &tensors[index])),
                    None => input.shallow_clone(),
                };
                tensors.push(step.max_pool.map_or_else(|| output.shallow_clone(), |window| max_pool(&output, window)));
            }
            let sums = last.sums(&tensors[last.input]).contiguous();
            let mut logits = vec![0i32; sums.numel()];
            sums.copy_data(&mut logits, sums.numel());
            (tensors, logits)
        })
    }
}

impl Step {
    fn new(net: &IntNet, node: &Node<Integers>, device: Device) -> Step {
        let requantization = node.numbers().requantization.as_ref().map(|numbers| {
            let multiplier: Vec<i64> = numbers.multiplier.iter().map(|&value| i64::from(value)).collect();
            Requantize {
                multiplier: Tensor::from_slice(&multiplier).to_device(device),
                residual_multiplier: i64::from(numbers.residual_multiplier),
                offset: net.offset(node),
                shift: i64::from(numbers.shift),
            }
        });
        let product = node.layer().map(|layer| Product::new(net, node, layer, device));
        let max_pool = match &node.operation {
            Operation::Convolution(layer) => layer.max_pool.then_some(Window::HALVING),
            Operation::MaxPool { window, .. } => Some(*window),
            Operation::AveragePool { .. } => None,
        };
        Step {
            input: node.input,
            residual: node.layer().and_then(|layer| layer.residual),
            product,
            max_pool,
            requantization,
        }
    }

    /// Accumulators int32 `[n, height, width, outputs]`; for the average pool the sums over the image.
    fn sums(&self, input: &Tensor) -> Tensor {
        match &self.product {
            Some(product) => product.sums(input),
            None => {
                let pixels = input.size()[1] * input.size()[2];
                input.sum_dim_intlist([1i64, 2].as_slice(), true, Kind::Int) + pixels * HALF
            }
        }
    }
}

impl Product {
    fn new(net: &IntNet, node: &Node<Integers>, layer: &Layer<Integers>, device: Device) -> Product {
        let (outputs, taps) = (layer.geometry.outputs, layer.geometry.taps());
        let shape = layer.geometry.weight_shape().map(|extent| extent as i64);
        let weight = Tensor::from_slice(&layer.numbers.weight).view(shape);
        let weight = weight.permute([0, 2, 3, 1]).reshape([outputs as i64, taps as i64]);
        // Compensates for activations that are stored less 128.
        let sums = layer.numbers.weight.chunks(taps).map(|taps| taps.iter().map(|&tap| i32::from(tap)).sum::<i32>());
        let start: Vec<i32> = net.start(node).iter().zip(sums).map(|(start, sum)| start + HALF as i32 * sum).collect();
        Product {
            geometry: layer.geometry,
            padding: i64::from(net.quantization(node.input).zero_point) - HALF,
            weight: padded(&weight, outputs.next_multiple_of(8), taps.next_multiple_of(8)).to_device(device),
            start: Tensor::from_slice(&start).to_device(device),
        }
    }

    fn sums(&self, input: &Tensor) -> Tensor {
        let Geometry { inputs, outputs, kernel, stride, padding, .. } = self.geometry;
        let [c, s, p] = [inputs, stride, padding].map(|value| value as i64);
        let ([rows, columns], [height, width]) = (kernel, self.geometry.out_size());
        let [rows, columns, height, width] = [rows, columns, height, width].map(|extent| extent as i64);
        let input = match p {
            0 => input.contiguous(),
            _ => bordered(input, p, self.padding),
        };
        let n = input.size()[0];
        let taps = windows(&input, [rows, columns], s, [height, width]);
        let taps = taps.reshape([n * height * width, rows * columns * c]);
        let taps = padded(&taps, ROWS, self.weight.size()[1] as usize);
        let product = taps.internal_int_mm(&self.weight.tr());
        let sums = product.narrow(0, 0, n * height * width).narrow(1, 0, outputs as i64) + &self.start;
        sums.view([n, height, width, outputs as i64])
    }
}

impl Requantize {
    /// Applies the int8 formula of [`super::integer`].
    fn apply(&self, sums: &Tensor, residual: Option<&Tensor>) -> Tensor {
        let mut total = sums.to_kind(Kind::Int64) * &self.multiplier + self.offset;
        if let Some(residual) = residual {
            total += (residual.to_kind(Kind::Int64) + HALF) * (self.residual_multiplier << RESIDUAL_SHIFT);
        }
        (total.bitwise_right_shift_tensor_scalar(self.shift).clamp(0, 255) - HALF).to_kind(Kind::Int8)
    }
}

/// Windows of contiguous `[n, height, width, channels]` as a view `[n, y, x, rows, columns, channels]`, `stride` pixels apart.
fn windows(tensor: &Tensor, [rows, columns]: [i64; 2], stride: i64, [y, x]: [i64; 2]) -> Tensor {
    let (n, height, width, c) = tensor.size4().expect("four dimensions");
    let row = width * c;
    tensor.as_strided([n, y, x, rows, columns, c], [height * row, stride * row, stride * c, row, c, 1], 0)
}

/// Pads `[n, height, width, channels]` with a border of `pixels` pixels of `value`.
fn bordered(tensor: &Tensor, pixels: i64, value: i64) -> Tensor {
    let size = tensor.size();
    let wide = [size[0], size[1] + 2 * pixels, size[2] + 2 * pixels, size[3]];
    let result = Tensor::full(wide, value, (Kind::Int8, tensor.device()));
    result.narrow(1, pixels, size[1]).narrow(2, pixels, size[2]).copy_(tensor);
    result
}

/// Pads a matrix with zeros to at least `rows` rows and `columns` columns, multiples of 8.
fn padded(matrix: &Tensor, rows: usize, columns: usize) -> Tensor {
    let more = |axis: usize, least: usize| (least as i64 - matrix.size()[axis]).max(0);
    match (more(0, rows), more(1, columns)) {
        (0, 0) => matrix.contiguous(),
        (rows, columns) => matrix.constant_pad_nd([0, columns, 0, rows]),
    }
}

/// Max-pools `[n, height, width, channels]`.
fn max_pool(tensor: &Tensor, window: Window) -> Tensor {
    let (_, height, width, _) = tensor.size4().expect("four dimensions");
    let out = window.out_size([height as usize, width as usize]).map(|extent| extent as i64);
    let [kernel, stride, padding] = [window.kernel, window.stride, window.padding].map(|extent| extent as i64);
    let tensor = if padding == 0 { tensor.contiguous() } else { bordered(tensor, padding, -HALF) };
    windows(&tensor, [kernel, kernel], stride, out).amax([3i64, 4].as_slice(), false)
}

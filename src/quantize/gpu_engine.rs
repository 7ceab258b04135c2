//! The integer network as int8 matrix products on a device: im2col and `_int_mm`, which runs on a GPU's int8 matrix units.
//! Element for element it computes the integers of every other execution.
//!
//! The units multiply i8 by i8, so u8 activations are stored less 128, and the accumulators' initial values compensate.
//! Tensors are `[n, side, side, channels]`. `_int_mm` wants more than 16 rows and multiples of 8 elsewhere: matrices are
//! padded with zeros accordingly.

use tch::{Device, Kind, Tensor};

use super::graph::{CLASSES, Geometry, IMAGE_SIDE, Layer, Node};
use super::integer::{IntNet, Integers, RESIDUAL_SHIFT, image_count};

/// Offset subtracted from a u8 to make it an i8.
pub(super) const HALF: i64 = 128;
/// Least number of rows of a product.
const ROWS: usize = 17;

/// An integer network ready to run on a device.
pub struct GpuEngine {
    device: Device,
    /// `[3][256]` int8: from a pixel to the network's input.
    table: [Tensor; 3],
    steps: Vec<Step>,
}

struct Step {
    input: usize,
    residual: Option<usize>,
    product: Option<Product>,
    max_pool: bool,
    requantization: Option<Requantize>,
}

/// A convolution as a matrix product.
struct Product {
    geometry: Geometry,
    /// Value of a padding pixel, less [`HALF`].
    padding: i64,
    /// `[outputs, taps]` int8, both padded to multiples of 8, taps as `[kernel, kernel, inputs]`.
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
        let table = net.input_table().map(|values| Tensor::from_slice(&signed(&values)).to_device(device));
        let steps = net.nodes.iter().map(|node| Step::new(net, node, device)).collect();
        GpuEngine { device, table, steps }
    }

    /// Computes logits `[n, 10]`, at the last layer's output scale, from pixels `[n, 3, 32, 32]`.
    pub fn run(&self, pixels: &[u8]) -> Vec<i32> {
        self.trace(pixels).1
    }

    /// Every u8 tensor less 128, as `[n, side, side, channels]` int8 (0: the quantized images), and the logits.
    pub fn trace(&self, pixels: &[u8]) -> (Vec<Tensor>, Vec<i32>) {
        tch::no_grad(|| {
            let (n, side) = (image_count(pixels) as i64, IMAGE_SIDE as i64);
            let images = Tensor::from_data_size(pixels, &[n, 3, side * side], Kind::Uint8).to_device(self.device);
            let plane = |channel: usize| {
                let places = images.select(1, channel as i64).flatten(0, -1).to_kind(Kind::Int64);
                self.table[channel].index_select(0, &places).view([n, side, side])
            };
            let mut tensors = vec![Tensor::stack(&[plane(0), plane(1), plane(2)], -1)];
            let mut logits = vec![0i32; n as usize * CLASSES];
            for step in &self.steps {
                let sums = step.sums(&tensors[step.input]);
                match &step.requantization {
                    None => sums.contiguous().copy_data(&mut logits, n as usize * CLASSES),
                    Some(requantize) => {
                        let output = requantize.apply(&sums, step.residual.map(|index| &tensors[index]));
                        tensors.push(if step.max_pool { max_pool(&output) } else { output });
                    }
                }
            }
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
        Step {
            input: node.input,
            residual: node.layer().and_then(|layer| layer.residual),
            product,
            max_pool: node.layer().is_some_and(|layer| layer.max_pool),
            requantization,
        }
    }

    /// Accumulators int32 `[n, side, side, outputs]`; for the average pool the sums over the image.
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
        let Geometry { inputs, outputs, kernel, .. } = layer.geometry;
        let taps = layer.geometry.taps();
        let shape = [outputs, inputs, kernel, kernel].map(|extent| extent as i64);
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
        let [c, k, s, p, out] = [inputs, kernel, stride, padding, self.geometry.out_side()].map(|value| value as i64);
        let input = match p {
            0 => input.contiguous(),
            _ => bordered(input, p, self.padding),
        };
        let (n, side) = (input.size()[0], input.size()[1]);
        let row = side * c;
        let columns = input.as_strided([n, out, out, k, k, c], [side * row, s * row, s * c, row, c, 1], 0);
        let taps = self.weight.size()[1] as usize;
        let columns = padded(&columns.reshape([n * out * out, k * k * c]), ROWS, taps);
        let product = columns.internal_int_mm(&self.weight.tr());
        let sums = product.narrow(0, 0, n * out * out).narrow(1, 0, outputs as i64) + &self.start;
        sums.view([n, out, out, outputs as i64])
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

/// Pads `[n, side, side, channels]` with a border of `pixels` pixels of `value`.
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

/// Max-pools `[n, side, side, channels]` to half the side.
fn max_pool(tensor: &Tensor) -> Tensor {
    let size = tensor.size();
    let half = [size[0], size[1] / 2, 2, size[2] / 2, 2, size[3]];
    tensor.view(half).amax([2i64, 4].as_slice(), false)
}

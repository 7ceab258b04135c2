//! ONNX export of the integer network in QDQ form (QuantizeLinear, DequantizeLinear around float operators), which ONNX
//! Runtime turns into integer operators again. Input `pixels` uint8 `[n, channels, height, width]`, output `logits` float32
//! `[n, classes]`.
//!
//! On a CPU without VNNI ONNX Runtime's u8 x i8 product saturates; `session.x64quantprecision = 1` makes it exact there.
//! Protocol buffers are written by hand: the handful of messages needed is shorter than a generated definition.
//! Source: onnx/onnx.proto of ONNX 1.17 (field numbers), IR version 9, operator set 19: the oldest that ONNX's own reference
//! evaluator computes quantized models of, and known to the runtimes of docs/int8.md.

use super::graph::{Layer, Node, Operation, Spec, Window};
use super::integer::{IntNet, Integers, Quantization};

/// Values of TensorProto.DataType.
const FLOAT: u64 = 1;
const UINT8: u64 = 2;
const INT8: u64 = 3;
const INT32: u64 = 6;

/// Encodes the model file of `net`.
pub fn to_onnx(net: &IntNet) -> Vec<u8> {
    let mut graph = Graph::default();
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    graph.initializer("pixel_max", FLOAT, &[], floats(&[255.0]));
    let channels = net.spec.shape[0] as u64;
    graph.initializer("mean", FLOAT, &[1, channels, 1, 1], floats(&net.spec.mean));
    graph.initializer("std", FLOAT, &[1, channels, 1, 1], floats(&net.spec.std));
    graph.node("Cast", &["pixels"], "pixels.float", &[integer("to", FLOAT as i64)]);
    graph.node("Div", &["pixels.float", "pixel_max"], "pixels.unit", &[]);
    graph.node("Sub", &["pixels.unit", "mean"], "pixels.centred", &[]);
    graph.node("Div", &["pixels.centred", "std"], "images", &[]);
    let mut tensors = vec![graph.quantized("images", net.input)];
    for node in &net.nodes {
        let output = match &node.operation {
            Operation::AveragePool { .. } => {
                graph.node("GlobalAveragePool", &[&tensors[node.input]], &node.name, &[]);
                graph.quantized(&node.name, node.numbers().output)
            }
            Operation::MaxPool { window, numbers, .. } => {
                graph.max_pool(&tensors[node.input], &node.name, *window);
                graph.quantized(&node.name, numbers.output)
            }
            Operation::Convolution(layer) => convolution(&mut graph, net, node, layer, &tensors),
        };
        tensors.push(output);
    }
    let last = tensors.last().expect("a network has layers").clone();
    graph.node("Flatten", &[&last], "logits", &[integer("axis", 1)]);

    let mut model = Message::default();
    model.number(1, 9).text(2, "hpml").text(3, env!("CARGO_PKG_VERSION"));
    model.bytes(7, &graph.finish(&net.spec));
    model.bytes(8, &Message::default().text(1, "").number(2, 19).0);
    model.0
}

/// Adds a layer; returns the name of the (dequantized) tensor that it makes.
fn convolution(
    graph: &mut Graph,
    net: &IntNet,
    node: &Node<Integers>,
    layer: &Layer<Integers>,
    tensors: &[String],
) -> String {
    let (name, numbers, geometry) = (&node.name, &layer.numbers, layer.geometry);
    let shape = geometry.weight_shape().map(|extent| extent as u64);
    let weight = numbers.weight.iter().map(|&value| value as u8).collect();
    let scales = &numbers.weight_scale;
    graph.initializer(&format!("{name}.weight.int8"), INT8, &shape, weight);
    let mut operands = vec![tensors[node.input].clone(), graph.dequantized(&format!("{name}.weight"), INT8, scales)];
    if let Some(bias) = &numbers.bias {
        let bytes = bias.iter().flat_map(|value| value.to_le_bytes()).collect();
        graph.initializer(&format!("{name}.bias.int8"), INT32, &shape[..1], bytes);
        let input = net.quantization(node.input).scale;
        let scales: Vec<f64> = scales.iter().map(|scale| scale * input).collect();
        operands.push(graph.dequantized(&format!("{name}.bias"), INT32, &scales));
    }
    let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
    let attributes = [
        integers("kernel_shape", &geometry.kernel.map(|extent| extent as i64)),
        integers("strides", &[geometry.stride as i64; 2]),
        integers("pads", &[geometry.padding as i64; 4]),
    ];
    let mut made = format!("{name}.sum");
    graph.node("Conv", &operands, &made, &attributes);
    if numbers.requantization.is_none() {
        return made;
    }
    let mut then = |operation: &str, operands: &[&str], suffix: &str| {
        let output = format!("{name}.{suffix}");
        graph.node(operation, operands, &output, &[]);
        output
    };
    if let Some(residual) = layer.residual {
        made = then("Add", &[&made, &tensors[residual]], "added");
    }
    if layer.relu {
        made = then("Relu", &[&made], "relu");
    }
    let mut output = graph.quantized(&made, numbers.output);
    if layer.max_pool {
        let pooled = format!("{name}.pooled");
        graph.max_pool(&output, &pooled, Window::HALVING);
        output = graph.quantized(&pooled, numbers.output);
    }
    output
}

/// A GraphProto under construction.
#[derive(Default)]
struct Graph {
    nodes: Vec<Vec<u8>>,
    initializers: Vec<Vec<u8>>,
}

impl Graph {
    /// Adds a NodeProto with one output, whose name the node takes.
    fn node(&mut self, operation: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) {
        let mut node = Message::default();
        for input in inputs {
            node.text(1, input);
        }
        node.text(2, output).text(3, output).text(4, operation);
        for attribute in attributes {
            node.bytes(5, attribute);
        }
        self.nodes.push(node.0);
    }

    /// Adds MaxPool.
    fn max_pool(&mut self, input: &str, output: &str, window: Window) {
        let [kernel, stride, padding] = [window.kernel, window.stride, window.padding].map(|extent| extent as i64);
        let mut attributes = vec![integers("kernel_shape", &[kernel; 2]), integers("strides", &[stride; 2])];
        if padding > 0 {
            attributes.push(integers("pads", &[padding; 4]));
        }
        self.node("MaxPool", &[input], output, &attributes);
    }

    /// Adds a TensorProto.
    fn initializer(&mut self, name: &str, data_type: u64, shape: &[u64], values: Vec<u8>) {
        let mut tensor = Message::default();
        for &extent in shape {
            tensor.number(1, extent);
        }
        tensor.number(2, data_type).text(8, name).bytes(9, &values);
        self.initializers.push(tensor.0);
    }

    /// Adds QuantizeLinear and DequantizeLinear to u8; returns the name of the result.
    fn quantized(&mut self, tensor: &str, quantization: Quantization) -> String {
        let (scale, zero_point) = (format!("{tensor}.scale"), format!("{tensor}.zero_point"));
        self.initializer(&scale, FLOAT, &[], (quantization.scale as f32).to_le_bytes().to_vec());
        self.initializer(&zero_point, UINT8, &[], vec![quantization.zero_point]);
        let (integers, output) = (format!("{tensor}.uint8"), format!("{tensor}.dequantized"));
        self.node("QuantizeLinear", &[tensor, &scale, &zero_point], &integers, &[]);
        self.node("DequantizeLinear", &[&integers, &scale, &zero_point], &output, &[]);
        output
    }

    /// Adds DequantizeLinear of the initializer `{tensor}.int8` along its first axis (or as a whole, with one scale).
    fn dequantized(&mut self, tensor: &str, data_type: u64, scales: &[f64]) -> String {
        let (scale, zero_point) = (format!("{tensor}.scale"), format!("{tensor}.zero_point"));
        let shape: &[u64] = if scales.len() == 1 { &[] } else { &[scales.len() as u64] };
        let bytes = scales.iter().flat_map(|&scale| (scale as f32).to_le_bytes()).collect();
        self.initializer(&scale, FLOAT, shape, bytes);
        let zeros = vec![0; scales.len() * if data_type == INT32 { 4 } else { 1 }];
        self.initializer(&zero_point, data_type, shape, zeros);
        let output = format!("{tensor}.dequantized");
        let axis = if scales.len() == 1 { vec![] } else { vec![integer("axis", 0)] };
        self.node("DequantizeLinear", &[&format!("{tensor}.int8"), &scale, &zero_point], &output, &axis);
        output
    }

    /// Encodes the GraphProto.
    fn finish(&self, spec: &Spec) -> Vec<u8> {
        let mut graph = Message::default();
        for node in &self.nodes {
            graph.bytes(1, node);
        }
        graph.text(2, spec.model.name.as_str());
        for tensor in &self.initializers {
            graph.bytes(5, tensor);
        }
        graph.bytes(11, &value_info("pixels", UINT8, &spec.shape.map(|extent| extent as u64)));
        graph.bytes(12, &value_info("logits", FLOAT, &[spec.classes as u64]));
        graph.0
    }
}

/// Encodes the ValueInfoProto of a tensor `[n, ..]`.
fn value_info(name: &str, data_type: u64, shape: &[u64]) -> Vec<u8> {
    let mut dimensions = Message::default();
    dimensions.bytes(1, &Message::default().text(2, "n").0);
    for &extent in shape {
        dimensions.bytes(1, &Message::default().number(1, extent).0);
    }
    let tensor = Message::default().number(1, data_type).bytes(2, &dimensions.0).0.clone();
    let kind = Message::default().bytes(1, &tensor).0.clone();
    Message::default().text(1, name).bytes(2, &kind).0.clone()
}

/// Encodes an AttributeProto with an integer.
fn integer(name: &str, value: i64) -> Vec<u8> {
    Message::default().text(1, name).number(3, value as u64).number(20, 2).0.clone()
}

/// Encodes an AttributeProto with integers.
fn integers(name: &str, values: &[i64]) -> Vec<u8> {
    let mut attribute = Message::default();
    attribute.text(1, name);
    for &value in values {
        attribute.number(8, value as u64);
    }
    attribute.number(20, 7).0.clone()
}

/// A message of protocol buffers: a sequence of fields, each with its number and wire type.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Appends a field of wire type 0 (varint).
    fn number(&mut self, field: u64, value: u64) -> &mut Message {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    /// Appends a field of wire type 2: text, bytes or a message.
    fn bytes(&mut self, field: u64, value: &[u8]) -> &mut Message {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn text(&mut self, field: u64, value: &str) -> &mut Message {
        self.bytes(field, value.as_bytes())
    }

    /// Appends a varint: seven bits per byte, the least significant first; the top bit marks that more bytes follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_encoded_as_in_the_documentation() {
        // The two examples of protobuf.dev, "Encoding".
        assert_eq!(Message::default().number(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::default().text(2, "testing").0, [0x12, 0x07, 0x74, 0x65, 0x73, 0x74, 0x69, 0x6e, 0x67]);
    }
}

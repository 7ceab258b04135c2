//! The fast integer engine: u8 pixels in, i32 logits out, integer arithmetic throughout.
//!
//! [`Engine`] takes the fastest kernel the CPU has; all kernels compute identical integers. Images run in chunks that stay in
//! the cache, layer by layer. Every tensor is stored as NHWC with the border that its reader's padding needs, so that ReLU,
//! residual, max-pool and requantization are done while an output is still in a register.
// As in `kernel`: without its instruction sets only the plain loops of `Reference` are left.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::graph::{Layer, Node, Operation, Spec, Window};
use super::integer::{IntNet, Integers};
use super::kernel::{Convolution, Isa, Packing, Prepare, Run, Scale, TILE};
#[cfg(target_arch = "x86_64")]
use super::kernel::{avx2::Avx2, vnni::Vnni};
use super::reference::Reference;

/// Implementation of the integer convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// AVX-512 VNNI.
    Vnni,
    /// AVX2.
    Avx2,
    /// Plain loops.
    Portable,
}

impl Kernel {
    /// All kernels, the fastest first.
    pub const ALL: [Kernel; 3] = [Kernel::Vnni, Kernel::Avx2, Kernel::Portable];

    /// Printed name: `avx512_vnni`, `avx2`, `portable`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kernel::Vnni => "avx512_vnni",
            Kernel::Avx2 => "avx2",
            Kernel::Portable => "portable",
        }
    }

    /// Whether this CPU has the instructions.
    pub fn detected(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => Vnni::detected(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => Avx2::detected(),
            Kernel::Portable => true,
            #[cfg(not(target_arch = "x86_64"))]
            Kernel::Vnni | Kernel::Avx2 => false,
        }
    }

    /// The fastest kernel that this CPU has.
    pub fn best() -> Kernel {
        Kernel::ALL.into_iter().find(|kernel| kernel.detected()).expect("portable always is")
    }
}

/// An integer network ready to run on one thread.
///
/// ```no_run
/// use hpml::quantize::{Engine, Kernel, from_checkpoint, predictions};
/// # fn classify(path: &std::path::Path, pixels: &[u8]) -> hpml::error::Result<()> {
/// let net = from_checkpoint(&hpml::store::read_checkpoint(path)?)?;
/// let mut engine = Engine::new(&net, Kernel::best());
/// let logits = engine.run(pixels); // [n, channels, height, width] u8 to [n, classes]
/// println!("{:?}", predictions(&logits, net.spec.classes));
/// # Ok(())
/// # }
/// ```
pub struct Engine(Form);

enum Form {
    #[cfg(target_arch = "x86_64")]
    Vnni(Plan<Vnni>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Plan<Avx2>),
    Portable(Reference),
}

impl Engine {
    /// Prepares `net` for `kernel`, or for the best one if the CPU lacks it.
    pub fn new(net: &IntNet, kernel: Kernel) -> Engine {
        let kernel = if kernel.detected() { kernel } else { Kernel::best() };
        Engine(match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => Form::Vnni(Plan::new(net)),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => Form::Avx2(Plan::new(net)),
            _ => Form::Portable(Reference::new(net)),
        })
    }

    /// Computes logits `[n, classes]`, at the last layer's output scale, from pixels `[n, channels, height, width]`.
    ///
    /// # Panics
    /// `pixels` are not whole images.
    pub fn run(&mut self, pixels: &[u8]) -> Vec<i32> {
        match &mut self.0 {
            #[cfg(target_arch = "x86_64")]
            Form::Vnni(plan) => plan.run(pixels),
            #[cfg(target_arch = "x86_64")]
            Form::Avx2(plan) => plan.run(pixels),
            Form::Portable(reference) => reference.run(pixels),
        }
    }

    /// Every u8 tensor of one image as `[height, width, channels]` (0: the quantized image), and the logits.
    ///
    /// # Panics
    /// `pixels` are not one image.
    pub fn trace(&mut self, pixels: &[u8]) -> (Vec<Vec<u8>>, Vec<i32>) {
        match &mut self.0 {
            #[cfg(target_arch = "x86_64")]
            Form::Vnni(plan) => plan.trace(pixels),
            #[cfg(target_arch = "x86_64")]
            Form::Avx2(plan) => plan.trace(pixels),
            Form::Portable(reference) => reference.image(pixels),
        }
    }
}

/// Memory layout of a tensor: `[images, height + 2 border, width + 2 border, stored channels]`.
#[derive(Debug, Clone, Copy)]
struct Layout {
    size: [usize; 2], // height, width
    channels: usize,
    stored: usize,
    border: usize,
}

impl Layout {
    fn row(&self) -> usize {
        (self.size[1] + 2 * self.border) * self.stored
    }

    fn image(&self) -> usize {
        (self.size[0] + 2 * self.border) * self.row()
    }

    /// Pixels (y, x) of one image, row by row.
    fn pixels(&self) -> impl Iterator<Item = (isize, isize)> {
        let [height, width] = self.size.map(|side| side as isize);
        (0..height).flat_map(move |y| (0..width).map(move |x| (y, x)))
    }

    /// Offset of pixel (y, x), which may lie in the border (from -border).
    fn at(&self, image: usize, y: isize, x: isize) -> u32 {
        let inside = |at: isize| usize::try_from(at + self.border as isize).expect("the border covers the padding");
        let offset = image * self.image() + inside(y) * self.row() + inside(x) * self.stored;
        u32::try_from(offset).expect("a chunk is far below 4 G elements")
    }
}

struct Step<I: Isa> {
    input: usize,
    residual: Option<usize>,
    kind: Kind<I>,
}

enum Kind<I: Isa> {
    Convolution(Box<dyn Run<I>>),
    Last(Box<Convolution<I>>),
    MaxPool(Window),
    AveragePool { multiplier: i32, scale: Scale },
}

struct Plan<I: Isa> {
    spec: Spec,
    chunk: usize,
    table: Vec<[u8; 256]>,
    layouts: Vec<Layout>,
    tensors: Vec<Vec<I::Input>>, // [chunk] images each
    steps: Vec<Step<I>>,
}

impl<I: Prepare> Plan<I> {
    fn new(net: &IntNet) -> Plan<I> {
        let layouts = layouts::<I>(net);
        // Half a megabyte of the largest tensor: below the second-level cache's size, above the kernels' start-up costs, and full
        // tiles even for pixels of which an image has one, as its corners.
        const CHUNK_ELEMENTS: usize = 1 << 19;
        let largest = layouts.iter().map(Layout::image).max().expect("the image has a layout");
        let chunk = if largest > CHUNK_ELEMENTS { 1 } else { (CHUNK_ELEMENTS / largest / TILE).clamp(1, 10) * TILE };
        let border = |index: usize| I::input(net.quantization(index).zero_point);
        let tensors = layouts.iter().enumerate();
        let tensors = tensors.map(|(index, layout)| vec![border(index); chunk * layout.image()]).collect();
        let step = |(index, node): (usize, &Node<Integers>)| step(net, &layouts, chunk, index, node);
        let mut steps: Vec<Step<I>> = net.nodes.iter().enumerate().map(step).collect();
        let mut next = 0;
        for step in steps.iter_mut().rev() {
            let convolution: &mut dyn Run<I> = match &mut step.kind {
                Kind::Convolution(convolution) => convolution.as_mut(),
                Kind::Last(convolution) => convolution.as_mut(),
                Kind::MaxPool(_) | Kind::AveragePool { .. } => continue,
            };
            convolution.followed_by(next);
            next = convolution.address();
        }
        Plan { spec: net.spec.clone(), chunk, table: net.input_table(), layouts, tensors, steps }
    }

    fn run(&mut self, pixels: &[u8]) -> Vec<i32> {
        let Spec { classes, .. } = self.spec;
        let mut logits = vec![0; self.spec.image_count(pixels) * classes];
        let chunks = pixels.chunks(self.chunk * self.spec.image_bytes());
        for (pixels, logits) in chunks.zip(logits.chunks_mut(self.chunk * classes)) {
            self.run_chunk(pixels, logits);
        }
        logits
    }

    fn run_chunk(&mut self, pixels: &[u8], logits: &mut [i32]) {
        let images = self.spec.image_count(pixels);
        for (image, pixels) in pixels.chunks(self.spec.image_bytes()).enumerate() {
            self.quantize(image, pixels);
        }
        for (index, step) in self.steps.iter_mut().enumerate() {
            // A node reads tensors made before its own, so the two parts never overlap.
            let (before, own) = self.tensors.split_at_mut(index + 1);
            let input = &before[step.input];
            match &mut step.kind {
                Kind::Convolution(convolution) => {
                    let residual = step.residual.map(|tensor| before[tensor].as_slice());
                    convolution.run(images, input, residual, &mut own[0]);
                }
                Kind::Last(convolution) => convolution.run_last(images, input, logits),
                Kind::MaxPool(window) => {
                    max_pool::<I>(
                        *window,
                        images,
                        (&self.layouts[step.input], input),
                        (&self.layouts[index + 1], &mut own[0]),
                    );
                }
                Kind::AveragePool { multiplier, scale } => {
                    let (from, to) = (self.layouts[step.input], self.layouts[index + 1]);
                    for image in 0..images {
                        let input = &input[image * from.image()..][..from.image()];
                        average::<I>(from, input, *multiplier, scale, &mut own[0][image * to.image()..][..to.channels]);
                    }
                }
            }
        }
    }

    /// Normalizes and quantizes an image by table look-up, from planes to pixels.
    fn quantize(&mut self, image: usize, pixels: &[u8]) {
        let layout = self.layouts[0];
        let [height, width] = layout.size;
        for y in 0..height {
            let row = &mut self.tensors[0][layout.at(image, y as isize, 0) as usize..][..width * layout.stored];
            let plane = |channel: usize| &pixels[(channel * height + y) * width..][..width];
            if let [red, green, blue] = &self.table[..] {
                let colors = plane(0).iter().zip(plane(1)).zip(plane(2));
                for (pixel, ((&r, &g), &b)) in row.as_chunks_mut::<4>().0.iter_mut().zip(colors) {
                    let values = [red[r as usize], green[g as usize], blue[b as usize], 0];
                    *pixel = values.map(I::input);
                }
                continue;
            }
            for (channel, table) in self.table.iter().enumerate() {
                let stored = row.iter_mut().skip(channel).step_by(layout.stored);
                stored.zip(plane(channel)).for_each(|(stored, &pixel)| *stored = I::input(table[pixel as usize]));
            }
        }
    }

    fn trace(&mut self, pixels: &[u8]) -> (Vec<Vec<u8>>, Vec<i32>) {
        assert_eq!(self.spec.image_count(pixels), 1);
        let logits = self.run(pixels);
        let tensors = self.layouts.iter().zip(&self.tensors).take(self.steps.len()); // the last step makes logits
        let dense = |(layout, tensor): (&Layout, &Vec<I::Input>)| {
            let values = |(y, x)| tensor[layout.at(0, y, x) as usize..][..layout.channels].iter().map(|&v| I::value(v));
            layout.pixels().flat_map(values).collect()
        };
        (tensors.map(dense).collect(), logits)
    }
}

fn layouts<I: Isa>(net: &IntNet) -> Vec<Layout> {
    let layout = |index: usize| {
        let (channels, size) = net.shape(index);
        let readers = net.nodes.iter().filter(|node| node.input == index).filter_map(Node::layer);
        let border = readers.map(|layer| layer.geometry.padding).max().unwrap_or(0);
        // No kernel stores the image: its pixels are as wide as the reads of a kernel.
        let stored = channels.next_multiple_of(if index == 0 { 4 } else { I::CHANNELS });
        Layout { size, channels, stored, border }
    };
    (0..=net.nodes.len()).map(layout).collect()
}

fn step<I: Prepare>(net: &IntNet, layouts: &[Layout], chunk: usize, index: usize, node: &Node<Integers>) -> Step<I> {
    let numbers = node.numbers();
    let offset = net.offset(node);
    let scale = numbers.requantization.as_ref().map(|r| {
        let (shift, residual_multiplier) = (r.shift, r.residual_multiplier);
        Scale { offset, shift, residual_multiplier }
    });
    let (kind, residual) = match &node.operation {
        Operation::MaxPool { window, .. } => (Kind::MaxPool(*window), None),
        Operation::AveragePool { .. } => {
            let requantization = numbers.requantization.as_ref().expect("only the last layer has none");
            let scale = scale.expect("scale and requantization come together");
            (Kind::AveragePool { multiplier: requantization.multiplier[0], scale }, None)
        }
        Operation::Convolution(layer) => {
            let packing = packing(net, layouts, chunk, index, node, layer, scale.unwrap_or_default());
            let kind = match numbers.requantization {
                Some(_) => Kind::Convolution(I::prepare(packing)),
                None => Kind::Last(Box::new(Convolution::new(packing))),
            };
            (kind, layer.residual)
        }
    };
    Step { input: node.input, residual, kind }
}

/// Fills the packing's tables of offsets: one entry per output pixel (or window) of every image of a chunk.
fn packing<'a>(
    net: &IntNet,
    layouts: &[Layout],
    chunk: usize,
    index: usize,
    node: &Node<Integers>,
    layer: &'a Layer<Integers>,
    scale: Scale,
) -> Packing<'a> {
    let (input, output) = (layouts[node.input], layouts[index + 1]);
    let geometry = layer.geometry;
    let (step, padding) = (geometry.stride as isize, geometry.padding as isize);
    let pool = if layer.max_pool { 2 } else { 1 };
    let size = geometry.out_size().map(|side| side / pool as usize);
    let results = Layout { size, ..output };
    let last = layer.numbers.requantization.is_none();
    let mut tables = [Vec::new(), Vec::new(), Vec::new()];
    for image in 0..chunk {
        for (y, x) in results.pixels() {
            tables[0].push(input.at(image, y * pool * step - padding, x * pool * step - padding));
            tables[1].push(if last { (image * net.spec.classes) as u32 } else { output.at(image, y, x) });
            if let Some(residual) = layer.residual {
                tables[2].push(layouts[residual].at(image, y, x));
            }
        }
    }
    let [inputs, outputs, residuals] = tables;
    let (right, down) = (geometry.stride * input.stored, geometry.stride * input.row());
    Packing {
        weight: &layer.numbers.weight,
        start: net.start(node),
        multiplier: layer.numbers.requantization.as_ref().map_or(&[], |r| &r.multiplier),
        scale,
        kernel: geometry.kernel,
        stride: geometry.stride,
        size,
        padding: geometry.padding,
        border: net.quantization(node.input).zero_point,
        input_size: input.size,
        input_channels: input.stored,
        row_stride: input.row(),
        window: layer.max_pool.then_some([0, right, down, right + down]),
        inputs,
        outputs,
        residuals,
        output_channels: if last { net.spec.classes } else { output.stored },
        per_image: size[0] * size[1],
    }
}

/// Averages over the image, requantized.
fn average<I: Isa>(layout: Layout, input: &[I::Input], multiplier: i32, scale: &Scale, output: &mut [I::Input]) {
    let mut sums = vec![0i32; layout.channels];
    for (y, x) in layout.pixels() {
        let pixel = &input[layout.at(0, y, x) as usize..][..layout.channels];
        sums.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += I::value(value) as i32);
    }
    for (output, sum) in output.iter_mut().zip(sums) {
        let total = sum as i64 * multiplier as i64 + scale.offset;
        *output = I::input((total >> scale.shift).clamp(0, 255) as u8);
    }
}

/// Max-pools the first `images` images of a tensor to another; each has its layout.
fn max_pool<I: Isa>(
    window: Window,
    images: usize,
    (from, input): (&Layout, &[I::Input]),
    (to, output): (&Layout, &mut [I::Input]),
) {
    for (image, (y, x)) in (0..images).flat_map(|image| to.pixels().map(move |pixel| (image, pixel))) {
        let greatest = &mut output[to.at(image, y, x) as usize..][..to.channels];
        greatest.fill(I::input(0));
        for row in window.inside(y as usize, from.size[0]) {
            for column in window.inside(x as usize, from.size[1]) {
                let pixel = &input[from.at(image, row as isize, column as isize) as usize..][..to.channels];
                greatest.iter_mut().zip(pixel).for_each(|(greatest, &value)| *greatest = value.max(*greatest));
            }
        }
    }
}

//! `hpml quantize`, `hpml eval` and `hpml export`: from a file to a file or a table. Knows of ranks, files and the configuration.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tch::Kind;

use super::accuracy::{self, AccuracyTable};
use super::calibration::{self, BINS, Distribution, PERCENTILES};
use super::engine::{Engine, Kernel};
use super::finetune;
use super::float_network::{self, FloatTorch};
use super::gpu_engine::GpuEngine;
use super::graph::{FloatNet, Spec};
use super::integer::{IntNet, predictions};
use super::simulated::Simulated;
use super::structure::structure;
use super::{checkpoint, onnx, scheme};
use crate::collective::Combine;
use crate::config::{self, Config, Plan};
use crate::data::{self, Datasets, Form};
use crate::device::{self, Target};
use crate::environment;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::live::{Live, Outlets};
use crate::metrics;
use crate::output::{self, Destination};
use crate::report;
use crate::store::{self, Checkpoint, FileKind, Identity, NamedTensor, Owner, RunFile};
use crate::table::{Attribute, Cell, Column, Schema, Sheet, Table, Values, attribute, terminal, terminal_width};
use crate::units::{Second, format_bytes};

/// Result of a quantization, on every rank.
pub struct Quantized {
    /// The integer network.
    pub net: IntNet,
    /// Accuracy of each case over the whole test set.
    pub accuracy: AccuracyTable,
    /// Training images from which the activations' ranges were measured.
    pub calibration_images: usize,
    /// Tables `/histograms` and `/quantization`.
    pub tables: Vec<Table>,
}

/// `hpml quantize RUN.h5`: reads the checkpoint, quantizes it, prints the table, and writes the int8 network, to a file
/// [`beside`] the run file if the user names none.
///
/// # Errors
/// A file cannot be read or written, or the configuration does not suit the network.
pub fn quantize(plan: &Plan, job: &Job, run: &Path, destination: &Destination) -> Result<()> {
    let (out, force) = (&destination.path.clone().unwrap_or_else(|| beside(run)), destination.force);
    let checkpoint = job.agree(store::read_checkpoint(run).and_then(float_only(run)))?;
    job.agree(store::check_not_input(out, &[run]))?;
    let datasets = job.agree(data::open_shared(&plan.data, &job.communicator))?;
    let in_file = |error: Error| Error::File { path: run.to_owned(), message: error.to_string() };
    let net = spec(plan, &datasets).and_then(|spec| FloatNet::from_state(&checkpoint.tensors, spec).map_err(in_file));
    let net = job.agree(net)?;
    let run_id = job.agree(store::read_identity(run))?.run_id;
    let owner = output::claim_at(job, out, force)?;
    let file = owner.map(|owner| create(owner, force, plan, job, (run, &run_id))).transpose();
    let mut file = job.agree(file)?;
    let quantized = quantize_net(plan, job, &net, &datasets)?;
    let written = file.as_mut().map(|file| {
        print(&quantized, &plan.quantize);
        write(&quantized, job, file)
    });
    job.agree(written.unwrap_or(Ok(())))
}

/// Prepares the file of the network that a training is going to be quantized to, [`beside`] its run file, before the first step:
/// checks the network and the calibration images, takes the name, and creates the file, which is on rank 0. `source` is the run file and its
/// run's id, on rank 0. A collective.
///
/// # Errors
/// int8 cannot express the network, or the file cannot be written.
pub fn prepare(
    plan: &Plan,
    job: &Job,
    datasets: &Datasets,
    source: Option<(&Path, &str)>,
    force: bool,
) -> Result<Option<RunFile>> {
    job.agree(spec(plan, datasets))?;
    let out = source.map(|(run, _)| beside(run)).unwrap_or_default(); // rank 0's counts
    let owner = output::claim_at(job, &out, force)?;
    let file = owner.zip(source).map(|(owner, source)| create(owner, force, plan, job, source));
    job.agree(file.transpose())
}

/// Default path of the quantized form of `run`: `net-int8.h5` beside `net.h5`.
pub fn beside(run: &Path) -> PathBuf {
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    run.with_file_name(format!("{}-int8.h5", name.strip_suffix(".h5").unwrap_or(&name)))
}

/// Attribute of `/environment` with the id of the run that was quantized.
const SOURCE_RUN: &str = "source_run_id";

/// Creates the file of a network to be quantized; `source` is the run file it comes from and that run's id. Replaces a file that
/// was made from the same run; any other only with `force`.
///
/// # Errors
/// As [`RunFile::create_owned`].
fn create(owner: Owner, force: bool, plan: &Plan, job: &Job, source: (&Path, &str)) -> Result<RunFile> {
    let (run, run_id) = source;
    let there = store::read_attributes(owner.target(), "environment").unwrap_or_default();
    let is_of_run = !run_id.is_empty() && attribute(&there, SOURCE_RUN).and_then(Attribute::text) == Some(run_id);
    let mut environment = environment::attributes(job, None);
    environment.extend([
        ("source".to_owned(), Attribute::Text(run.display().to_string())),
        (SOURCE_RUN.to_owned(), Attribute::Text(run_id.to_owned())),
    ]);
    let identity = Identity::new(FileKind::Quantized);
    RunFile::create_owned(owner, force || is_of_run, identity, plan, environment, vec![environment::table(job)])
}

/// Writes the quantized network with its tables, and prints how to go on.
///
/// # Errors
/// As [`RunFile::finish`].
pub fn write(quantized: &Quantized, job: &Job, file: &mut RunFile) -> Result<()> {
    file.set_warnings(job.warnings());
    file.finish(&quantized.tables, Some(&checkpoint::to_checkpoint(&quantized.net)))?;
    let path = file.path().display();
    println!("\nint8 network written to {path}");
    println!("next: hpml eval {path}   hpml export {path} --onnx model.onnx");
    Ok(())
}

fn float_only(run: &Path) -> impl Fn(Checkpoint) -> Result<Checkpoint> {
    let path = run.to_owned();
    move |checkpoint| match checkpoint::is_quantized(&checkpoint) {
        false => Ok(checkpoint),
        true => Err(Error::File { path: path.clone(), message: "quantized already: give the float run file".into() }),
    }
}

/// Network, images and classes of a training.
///
/// # Errors
/// int8 cannot express the network, or the samples are no u8 images.
fn spec(plan: &Plan, datasets: &Datasets) -> Result<Spec> {
    structure(&plan.model, datasets.form())?;
    for dataset in [&datasets.train, &datasets.test] {
        dataset.images(0..dataset.len().min(1))?;
    }
    let Form::Images { shape, classes } = datasets.form() else { unreachable!("these are images") };
    let [mean, std] = datasets.train.normalization(&plan.data);
    Ok(Spec { model: plan.model.clone(), shape, classes, mean, std })
}

/// Quantizes the `state_dict` of a training on all ranks together. A collective.
///
/// # Errors
/// The state is not that of the network or holds values that are NaN or infinite; as [`quantize`].
pub fn quantize_state(plan: &Plan, job: &Job, state: &[NamedTensor], datasets: &Datasets) -> Result<Quantized> {
    let net = spec(plan, datasets).and_then(|spec| FloatNet::from_state(state, spec));
    quantize_net(plan, job, &job.agree(net)?, datasets)
}

/// Quantizes a network on all ranks together, each of which takes its share of calibration and test. A collective.
///
/// # Errors
/// A value is NaN or infinite, or a rank fails.
fn quantize_net(plan: &Plan, job: &Job, net: &FloatNet, datasets: &Datasets) -> Result<Quantized> {
    let images = plan.quantize.calibration_images.min(datasets.train.len());
    let pixels = &*job.agree(datasets.train.images(0..images))?;
    let gather = |words: &[u64]| job.communicator.all_gather(metrics::Kind::Metrics, words);
    let torch = FloatTorch::new(net);
    let mut live = Live::new(job, &plan.metrics, Outlets::none());
    let activations = calibration::activations(&torch, pixels, job.rank, job.world_size, &gather, &mut live);
    let activations = job.agree(activations)?;
    let weights = job.agree(calibration::weights(net))?;
    let mut integers = job.agree(scheme::quantize(net, &activations, &plan.quantize))?;

    let test = &datasets.test;
    let own = job.rank * test.len() / job.world_size..(job.rank + 1) * test.len() / job.world_size;
    let mut accuracy = summed(job, accuracy::measure(net, &integers, test, own.clone(), job.target, &mut live))?;
    if plan.quantize.finetune_epochs > 0.0 && loses_too_much(&accuracy, plan.quantize.max_drop) {
        let finetuned = finetune::finetune(net, &integers, &datasets.train, plan, job, &mut live)?;
        // `finetuned` is the same on every rank, so all take the same branch.
        match scheme::with_scales_of(&finetuned, &integers) {
            Ok(finetuned) => {
                let own = accuracy::finetuned(&finetuned, test, own, job.target, &mut live);
                let with_it = accuracy.clone().and(summed(job, own)?);
                if with_it.drop() < accuracy.drop() {
                    (accuracy, integers) = (with_it, finetuned);
                } else {
                    job.warn(format!(
                        "finetuned int8 loses {:.2} points, not less than before: the finetuned network is not kept",
                        with_it.drop()
                    ));
                }
            }
            Err(error) => {
                job.warn(format!("the finetuned network is not kept: {error}; choose a smaller quantize.finetune_lr"));
            }
        }
    }
    live.clear();
    if loses_too_much(&accuracy, plan.quantize.max_drop) {
        job.warn(format!(
            "int8 loses {:.2} points, more than quantize.max_drop = {}: try quantize.per_channel = true, another \
             quantize.activation_range or quantize.finetune_epochs",
            accuracy.drop(),
            plan.quantize.max_drop
        ));
    }
    let kernel = match job.target.is_gpu() {
        true => format!("int8 matrices, {}", job.target),
        false => Kernel::best().as_str().to_owned(),
    };
    let tables = vec![histograms(&weights, &activations), accuracies(&accuracy, net, &integers, kernel)];
    Ok(Quantized { net: integers, accuracy, calibration_images: images, tables })
}

/// Sum of the counts over the ranks.
fn summed(job: &Job, own: Result<AccuracyTable>) -> Result<AccuracyTable> {
    let own = job.agree(own)?;
    let mut sums = own.to_sums();
    job.communicator.all_reduce(metrics::Kind::Metrics, Combine::Sum, &mut sums)?;
    Ok(own.with_sums(&sums))
}

fn loses_too_much(accuracy: &AccuracyTable, max_drop: f64) -> bool {
    // Differences of percentages are not exact: 37.2 - 36.9 is a hair above 0.3.
    accuracy.drop() > max_drop + 1e-9
}

/// Prints the accuracy table on stdout, as the report of the file shows it.
pub fn print(quantized: &Quantized, quantize: &config::Quantize) {
    let range = |range| format!("{range:?}").to_lowercase(); // as in the configuration
    println!(
        "\nint8: weights {} {}, activations {} over {} images\n",
        range(quantize.weight_range),
        if quantize.per_channel { "per channel" } else { "per tensor" },
        range(quantize.activation_range),
        quantized.calibration_images
    );
    print!("{}", report::tables(None, &quantized.tables, &["quantization"]));
}

/// The tables of a quantization without rows, for their documentation.
pub fn empty_tables() -> Vec<Table> {
    vec![cases().table(&[]), histograms(&[], &[])]
}

/// Name of what is quantized, and the accuracy in percent.
type Case = (&'static str, f64);

/// `/quantization`: one row per case.
fn cases() -> Schema<Case> {
    Schema::new("quantization", "row")
        .text(("case", "1", "parts of the network that are quantized"), |(name, _): &Case| *name)
        .float(("accuracy", "percent", "correct predictions on the test set"), |(_, accuracy)| *accuracy)
}

/// `/quantization` with its attributes. `kernel` is what the true integers were computed by.
fn accuracies(accuracy: &AccuracyTable, net: &FloatNet, integers: &IntNet, kernel: String) -> Table {
    let count = |count: u64| Attribute::Int(count as i64);
    let mut table = cases().table(&accuracy.accuracies());
    table.attributes = vec![
        ("samples".into(), count(accuracy.samples)),
        ("elements_compared".into(), count(accuracy.compared)),
        ("elements_differing".into(), count(accuracy.differing)),
        ("float32_bytes".into(), count(net.bytes() as u64)),
        ("int8_bytes".into(), count(integers.bytes() as u64)),
        ("drop_points".into(), Attribute::Float(accuracy.drop())),
        ("kernel".into(), Attribute::Text(kernel)),
    ];
    table
}

/// Kind (`weight` or `activation`) and distribution of a tensor.
type Tensor<'a> = (&'static str, &'a Distribution);

/// The columns of `/histograms` with one value per tensor.
fn statistics<'a>() -> Schema<Tensor<'a>> {
    Schema::new("histograms", "tensor")
        .text(("name", "1", "layer, or input"), |(_, tensor): &Tensor| tensor.name.clone())
        .text(("kind", "1", "weight, or activation as the next layer reads it"), |(kind, _)| *kind)
        .integer(("values", "1", "number of values"), |(_, tensor)| tensor.count as i64)
        .float(("mean", "1", "mean"), |(_, tensor)| tensor.mean)
        .float(("std", "1", "standard deviation"), |(_, tensor)| tensor.std)
        .float(("min", "1", "least value, lower edge of the first bin"), |(_, tensor)| tensor.min)
        .float(("max", "1", "greatest value, upper edge of the last bin"), |(_, tensor)| tensor.max)
        .float(("range", "1", "max - min"), |(_, tensor)| tensor.range())
        .float(("sigma3_lower", "1", "mean - 3 std, at least min"), |(_, tensor)| tensor.sigma3().0)
        .float(("sigma3_upper", "1", "mean + 3 std, at most max"), |(_, tensor)| tensor.sigma3().1)
}

/// `/histograms`: one row per tensor, the weights first.
fn histograms(weights: &[Distribution], activations: &[Distribution]) -> Table {
    let kinds = [("weight", weights), ("activation", activations)];
    let rows: Vec<Tensor> = kinds.iter().flat_map(|(kind, all)| all.iter().map(|tensor| (*kind, tensor))).collect();
    let percentiles = rows.iter().flat_map(|(_, d)| PERCENTILES.map(|percent| d.percentile(percent))).collect();
    let bins = rows.iter().flat_map(|(_, d)| d.histogram()).map(|count| count as i64).collect();
    let mut table = statistics().table(&rows);
    table.columns.extend([
        Column::new("percentile", "percent", "share of the values below", Values::F64(PERCENTILES.to_vec()))
            .over(&[("percentile", PERCENTILES.len())]),
        Column::new("percentile_value", "1", "value at that percentile", Values::F64(percentiles))
            .over(&[("tensor", rows.len()), ("percentile", PERCENTILES.len())]),
        Column::new("bins", "1", "values in each of 100 equal bins from min to max", Values::I64(bins))
            .over(&[("tensor", rows.len()), ("bin", BINS)]),
    ]);
    table
}

/// `hpml eval FILE`: accuracy and speed of a quantized file, on one thread of this process. Returns the table to print.
///
/// Writes the class that the integer network predicts for each test image to `list`, one per line.
///
/// # Errors
/// A file cannot be read, or `list` not be written; `launch.device` is a GPU that does not work.
pub fn eval(config: &Config, file: &Path, list: Option<&Path>, force: bool) -> Result<String> {
    list.map_or(Ok(()), |list| store::check_not_input(list, &[file]).and_then(|()| store::check_output(list, force)))?;
    let gpu = gpu(&config.launch)?; // before the first tensor
    let net = load(file)?;
    let test = data::open(&config.data)?.test;
    tch::set_num_threads(1);
    let (spec, classes) = (&net.spec, net.spec.classes);
    if test.form() != spec.form() {
        let message =
            format!("its network takes {}, not {}: give data of this form", told(spec.form()), told(test.form()));
        return Err(Error::File { path: file.to_owned(), message });
    }
    let together = spec.images_together(128);
    let batches = || (0..test.len()).step_by(together).map(|first| first..(first + together).min(test.len()));

    if let Some(list) = list {
        let mut engine = Engine::new(&net, Kernel::best());
        let mut lines = String::new();
        for batch in batches() {
            for class in predictions(&engine.run(&test.images(batch)?), classes) {
                lines += &format!("{class}\n");
            }
        }
        store::write_output(list, lines.as_bytes(), force)?;
    }
    // On a GPU all but the CPU's own kernels.
    let target = *gpu.as_ref().ok().and_then(Option::as_ref).unwrap_or(&Target::Cpu);
    let torch = FloatTorch::on(&as_float(&net), target.device());
    let simulated = Simulated::on(&net, target.device(), if target.is_gpu() { Kind::Double } else { Kind::Float });
    let mut engine = Engine::new(&net, Kernel::best());
    let mut sheet = Sheet::new("eval", format!("{} on {} test images, 1 thread", file.display(), test.len()));
    sheet.note = format!(
        "true int8 by {}; speed: the best of repeated calls over at least a second, from u8 pixels to the predicted class",
        Kernel::best().as_str()
    );
    let (batch, meaning) = (format!("batch {together}"), format!("images per second, {together} at a time"));
    sheet.columns = vec![
        ("form", "1", "execution of the network").into(),
        ("accuracy", "percent", "correct predictions on the test set").into(),
        ("batch 1", "1/s", "images per second, one at a time").into(),
        (batch.as_str(), "1/s", meaning.as_str()).into(),
    ];
    let mut row = |name: &str, predict: &mut dyn FnMut(&[u8]) -> Result<Vec<usize>>| -> Result<()> {
        let mut correct = 0;
        for batch in batches() {
            correct += accuracy::correct(&predict(&test.images(batch.clone())?)?, &test.labels(batch));
        }
        let accuracy = 100.0 * correct as f64 / test.len().max(1) as f64;
        let mut speed = |images: usize| {
            let images = images.min(test.len());
            Ok(images as f64 / seconds_per_call(&test.images(0..images)?, predict)?)
        };
        let (one, many) = (speed(1)?, speed(together)?);
        sheet.rows.push([Cell::from(name)].into_iter().chain([accuracy, one, many].map(Cell::Float)).collect());
        Ok(())
    };
    let on = |name: &str| if target.is_gpu() { format!("{name}, {target}") } else { name.to_owned() };
    row(&on("float32, int8 weights"), &mut |pixels| Ok(float_network::predictions(&torch.logits(pixels))))?;
    row(&on("simulated int8"), &mut |pixels| Ok(predictions(&simulated.run(pixels)?, classes)))?;
    row("true int8", &mut |pixels| Ok(predictions(&engine.run(pixels), classes)))?;
    match gpu {
        Ok(Some(target)) => {
            let matrices = GpuEngine::new(&net, target.device());
            row(&format!("true int8, {target}"), &mut |pixels| Ok(predictions(&matrices.run(pixels), classes)))?;
        }
        Ok(None) => {}
        Err(missing) => sheet.note += &format!("; not on a GPU: {missing}"),
    }
    Ok(terminal(&sheet, terminal_width()))
}

/// Form of samples in a message.
fn told(form: Form) -> String {
    match form {
        Form::Images { shape, classes } => format!("images {shape:?} of {classes} classes"),
        Form::Tokens { length, .. } => format!("sequences of {length} tokens"),
    }
}

/// GPU that `launch.device` takes, or the reason why there is none.
///
/// # Errors
/// The GPU does not work.
fn gpu(launch: &config::Launch) -> Result<Result<Option<Target>, String>> {
    if launch.device == config::Device::Cpu {
        return Ok(Ok(None));
    }
    let offer = device::offer(launch, "this host", &[0], &[device::look(launch.device)]);
    let target = match offer.targets {
        Ok(targets) => Ok(targets.into_iter().find(|target| target.is_gpu())),
        Err(reason) if launch.device == config::Device::Cuda => Err(reason),
        Err(_) => Ok(None),
    };
    if let Ok(Some(target)) = target {
        target.enter(false)?;
    }
    Ok(target)
}

/// Float network whose weights and biases are the integers of `net` times their scales.
fn as_float(net: &IntNet) -> FloatNet {
    use super::graph::Floats;
    let nodes = net.nodes.iter().map(|node| {
        let numbers = node.with_numbers(|node| {
            let (numbers, input) = (node.numbers(), net.quantization(node.input).scale);
            let Some(layer) = node.layer() else { return Ok(Floats::default()) };
            let taps = layer.geometry.taps();
            let weight = numbers.weight.iter().enumerate();
            let weight = weight.map(|(index, &value)| (value as f64 * numbers.scale_of(index / taps)) as f32).collect();
            let real = |(channel, &value): (usize, &i32)| (value as f64 * numbers.scale_of(channel) * input) as f32;
            let bias = numbers.bias.as_ref().map(|bias| bias.iter().enumerate().map(real).collect());
            Ok(Floats { weight, bias })
        });
        numbers.expect("copying cannot fail")
    });
    FloatNet { spec: net.spec.clone(), nodes: nodes.collect() }
}

/// The shortest of repeated calls.
fn seconds_per_call(pixels: &[u8], predict: &mut dyn FnMut(&[u8]) -> Result<Vec<usize>>) -> Result<Second> {
    const AT_LEAST: Second = 1.0;
    predict(pixels)?; // warm-up
    let (started, mut best) = (Instant::now(), Second::INFINITY);
    while started.elapsed().as_secs_f64() < AT_LEAST {
        let call = Instant::now();
        std::hint::black_box(predict(pixels)?);
        best = best.min(call.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// `hpml export FILE --onnx OUT`: writes a quantized file as ONNX. Replaces an existing file only with `force`; a failed write
/// leaves nothing behind. Returns the text to print.
///
/// # Errors
/// The file holds no int8 network, or `out` cannot be written.
pub fn export(file: &Path, out: &Path, force: bool) -> Result<String> {
    store::check_not_input(out, &[file])?;
    store::check_output(out, force)?;
    let net = load(file)?;
    let bytes = onnx::to_onnx(&net);
    store::write_output(out, &bytes, force)?;
    let Spec { shape: [channels, height, width], classes, .. } = net.spec;
    Ok(format!(
        "{} written to {}: pixels uint8 [n, {channels}, {height}, {width}] to logits [n, {classes}]",
        format_bytes(bytes.len() as u64),
        out.display()
    ))
}

fn load(file: &Path) -> Result<IntNet> {
    let checkpoint = store::read_checkpoint(file)?;
    let refuse = |message| Error::File { path: file.to_owned(), message };
    if !checkpoint::is_quantized(&checkpoint) {
        let (run, int8) = (file.display(), beside(file));
        return Err(refuse(format!(
            "holds float32 weights, no int8 network: make one with hpml quantize {run}, and give its file, {}",
            int8.display()
        )));
    }
    checkpoint::from_checkpoint(&checkpoint).map_err(|error| refuse(error.to_string()))
}

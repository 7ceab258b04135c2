//! Lines that rank 0 prints on stdout: header, one line per epoch, closing tables.

use std::path::Path;
use std::time::{Duration, Instant};

use super::GlobalBatch;
use super::record::EpochRow;
use crate::collective::library_version;
use crate::config::Config;
use crate::data::{Datasets, Form};
use crate::launch::Job;
use crate::parallel::Replica;
use crate::report;
use crate::sys::LIBTORCH_VERSION;
use crate::table::Table;
use crate::units::{Second, counted, format_bytes, format_seconds, or_dash};

/// Prints versions, ranks, data, model and batch.
pub fn print_header(config: &Config, job: &Job, datasets: &Datasets, replica: &Replica, global_batch: &GlobalBatch) {
    println!(
        "# hpml {}   libtorch {LIBTORCH_VERSION}   {}   world_size {}",
        env!("CARGO_PKG_VERSION"),
        library_version(),
        job.world_size
    );
    job.describe().iter().for_each(|line| println!("# {line}"));
    let what = match datasets.form() {
        Form::CIFAR10 => "images".to_owned(),
        form => form.to_string(),
    };
    println!("# data {}: {} training, {} test {what}", datasets.name, datasets.train.len(), datasets.test.len());
    let accumulated = match config.train.accumulate {
        1 => String::new(),
        batches => format!(" x accumulate {batches}"),
    };
    println!(
        "# model {}: {} parameters, {} of gradients in {}; batch_per_rank {}{accumulated}, global batch {}",
        config.model.name.as_str(),
        replica.model().parameter_count(),
        format_bytes(replica.gradient_bytes()),
        counted(replica.buckets().len(), "bucket"),
        config.train.batch_per_rank,
        global_batch.samples
    );
    if let Some(note) = global_batch.note() {
        println!("# {note}");
    }
}

/// Epochs of a process whose lines are all printed.
const ALL_PRINTED: usize = 100;
/// Time between two lines after them. A launcher that ends a job on a signal stops reading a second or two before; if the pipe were
/// full by then, rank 0 would wait in the midst of a line and be killed before it has written its files.
const PRINT_EVERY: Duration = Duration::from_millis(100);

/// The lines of the epochs: all of the first [`ALL_PRINTED`], then one every [`PRINT_EVERY`] and the last.
#[derive(Default)]
pub struct EpochLines {
    printed: usize,
    last: Option<Instant>,
}

impl EpochLines {
    /// Prints the last of `epochs` if its line is due or it `is_last` of the training; `of` is the number of epochs planned.
    pub fn print(&mut self, epochs: &[EpochRow], of: usize, is_last: bool) {
        let Some(row) = epochs.last() else { return };
        let waited = self.last.is_none_or(|last| last.elapsed() >= PRINT_EVERY);
        if self.printed < ALL_PRINTED || waited || is_last {
            print_epoch(row, of);
            (self.printed, self.last) = (self.printed + 1, Some(Instant::now()));
        }
    }
}

/// Prints an epoch in one line.
fn print_epoch(row: &EpochRow, of: usize) {
    println!(
        "epoch {:>2} ({}/{of}) | train loss {:.4} acc {:.2} % | test loss {:.4} acc {:.2} % | lr {:.1e} | {} | {} samples/s",
        row.epoch,
        row.epoch + 1,
        row.train.loss,
        row.train.accuracy,
        row.test.loss,
        row.test.accuracy,
        row.lr,
        format_seconds(row.seconds),
        or_dash(row.images_per_second, |value| format!("{value:.0}"))
    );
}

/// Prints the closing tables as the report of the run file shows them, and the path of the file.
pub fn print_closing(
    config: &Config,
    world_size: usize,
    tables: &[Table],
    path: &Path,
    total: Second,
    spent: &[(&str, Second)],
) {
    // One rank sends no messages, so /comm is left out.
    let names = ["epochs", "steps-anatomy", "comm", "levels", "slow-ranks", "slow-hosts"];
    let shown = if world_size > 1 { &names[..] } else { &names[..2] };
    print!("\n{}", report::tables(Some(config), tables, shown));
    let rest = total - spent.iter().map(|(_, seconds)| seconds).sum::<f64>();
    let parts = spent.iter().copied().chain([("other", rest.max(0.0))]);
    let parts: Vec<String> = parts.map(|(name, seconds)| format!("{name} {}", format_seconds(seconds))).collect();
    println!("\n{} in total ({}), written to {}", format_seconds(total), parts.join(", "), path.display());
    println!("next: hpml inspect {}", path.display());
}

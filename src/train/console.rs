//! What rank 0 prints: who runs where, a line an epoch, the closing table. Results go to stdout.

use std::path::Path;

use super::GlobalBatch;
use super::record::{EpochRow, loss_and_accuracy};
use crate::collective::Universe;
use crate::config::Config;
use crate::data::Datasets;
use crate::launch::Job;
use crate::parallel::Replica;
use crate::report;
use crate::store::Table;
use crate::units::{Second, format_bytes, format_seconds, or_dash};

/// Versions, ranks, data, model and batch.
pub fn print_header(config: &Config, job: &Job, datasets: &Datasets, replica: &Replica, global_batch: &GlobalBatch) {
    println!(
        "# hpml {}   libtorch {}   {}   world_size {}",
        env!("CARGO_PKG_VERSION"),
        env!("HPML_LIBTORCH_VERSION"),
        Universe::library_version(),
        job.world_size
    );
    job.describe().iter().for_each(|line| println!("# {line}"));
    println!("# data {}: {} training, {} test images", datasets.name, datasets.train.len(), datasets.test.len());
    let accumulated = match config.train.accumulate {
        1 => String::new(),
        batches => format!(" x accumulate {batches}"),
    };
    println!(
        "# model {}: {} parameters, {} of gradients in {} bucket(s); batch_per_rank {}{accumulated}, global batch {}",
        config.model.name.as_str(),
        replica.model().parameter_count(),
        format_bytes(replica.gradient_bytes()),
        replica.buckets().len(),
        config.train.batch_per_rank,
        global_batch.samples
    );
    if let Some(note) = global_batch.note() {
        println!("# {note}");
    }
}

/// The last epoch in one line.
pub fn print_epoch(epochs: &[EpochRow], of: usize) {
    let Some(row) = epochs.last() else { return };
    let (train_loss, train_accuracy) = loss_and_accuracy(&row.train);
    let (test_loss, test_accuracy) = loss_and_accuracy(&row.test);
    println!(
        "epoch {:>2}/{of} | train loss {train_loss:.4} acc {train_accuracy:.2} % | test loss {test_loss:.4} acc \
         {test_accuracy:.2} % | lr {:.1e} | {} | {} img/s",
        row.epoch + 1,
        row.lr,
        format_seconds(row.seconds),
        or_dash(row.images_per_second, |value| format!("{value:.0}"))
    );
}

/// What it cost, as the report of the run file shows it, and where it is written.
pub fn print_closing(config: &Config, tables: &[Table], path: &Path, total: Second) {
    print!("\n{}", report::closing(config, tables));
    println!("\n{} in all, written to {}", format_seconds(total), path.display());
    println!("next: hpml inspect {}", path.display());
}

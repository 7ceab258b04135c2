//! What rank 0 prints: who runs where, a line an epoch, the closing table. Results go to stdout.

use std::path::Path;

use super::GlobalBatch;
use super::record::{EpochRow, Record, loss_and_accuracy};
use crate::collective::Universe;
use crate::config::Config;
use crate::data::Datasets;
use crate::launch::Job;
use crate::metrics::{Kind, Ledger, Part, algbw, all_reduce_busbw, anatomy};
use crate::parallel::Replica;
use crate::units::{Second, format_bytes, format_seconds, gigabytes_per_second};

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
        replica.model.parameter_count(),
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
         {test_accuracy:.2} % | lr {:.1e} | {} | {:.0} img/s",
        row.epoch + 1,
        row.lr,
        format_seconds(row.seconds),
        row.images_per_second
    );
}

/// What it cost, and where it is written.
pub fn print_closing(record: &Record, ledger: &Ledger, replica: &Replica, job: &Job, path: &Path, total: Second) {
    println!("\nepochs");
    println!("#  epoch   train   train    test    test       lr    train    test   images");
    println!("#           loss   acc %    loss   acc %              (s)     (s)   per s");
    for row in record.epochs() {
        let ((train_loss, train_accuracy), (test_loss, test_accuracy)) =
            (loss_and_accuracy(&row.train), loss_and_accuracy(&row.test));
        println!(
            "{:>8} {train_loss:>7.4} {train_accuracy:>7.2} {test_loss:>7.4} {test_accuracy:>7.2} {:>8.1e} {:>8.2} {:>7.2} {:>8.0}",
            row.epoch + 1,
            row.lr,
            row.seconds,
            row.test_seconds,
            row.images_per_second
        );
    }
    print_anatomy(record, job.world_size);
    if job.world_size > 1 {
        print_messages(ledger, replica, job.world_size);
    }
    println!("\n{} in all, written to {}", format_seconds(total), path.display());
    println!("next: hpml inspect {}", path.display());
}

fn print_anatomy(record: &Record, ranks: usize) {
    let counted = record.counted();
    let steps = counted[0].len();
    println!("\nstep anatomy, {steps} steps x {ranks} rank(s), warm-up left out");
    println!("#         part       mean        p50        p99   slowest rank   share of");
    println!("#                    (ms)       (ms)       (ms)      mean (ms)       step");
    let counted: Vec<_> = counted.iter().map(Vec::as_slice).collect();
    for row in anatomy(&counted) {
        let comm = matches!(row.part, Part::Comm | Part::CommWait | Part::CommExposed);
        if ranks == 1 && comm {
            continue;
        }
        println!(
            "{:>14} {:>10.3} {:>10.3} {:>10.3} {:>14.3} {:>9.1} %{}",
            row.part.as_str(),
            row.all.mean * 1e3,
            row.all.p50 * 1e3,
            row.all.p99 * 1e3,
            row.slowest_rank * 1e3,
            100.0 * row.share,
            if matches!(row.part, Part::Comm | Part::CommWait) { "  (hidden or not)" } else { "" }
        );
    }
}

fn print_messages(ledger: &Ledger, replica: &Replica, ranks: usize) {
    println!("\nmessages of rank 0, and what all ranks sent for them (shared memory of a host sends nothing)");
    println!("#       kind   messages        bytes     sent, all    seconds");
    for kind in Kind::ALL {
        let entry = ledger.entry(kind);
        let (messages, bytes, sent) = (entry.messages, format_bytes(entry.bytes), format_bytes(entry.sent));
        println!("{:>12} {messages:>10} {bytes:>12} {sent:>13} {:>10}", kind.as_str(), format_seconds(entry.seconds));
    }
    let gradients = ledger.entry(Kind::Gradients);
    if gradients.messages == 0 {
        return; // local steps: what was averaged stands under parameters
    }
    let gbs = gigabytes_per_second;
    println!(
        "\ngradient all_reduce: {} per step and rank, algbw {:.3} GB/s, busbw {:.3} GB/s ({:.2} x {} cross the bus)",
        format_bytes(replica.gradient_bytes()),
        gbs(algbw(gradients.bytes, gradients.seconds)),
        gbs(all_reduce_busbw(gradients.bytes, gradients.seconds, ranks)),
        2.0 * (ranks as f64 - 1.0) / ranks as f64,
        format_bytes(replica.gradient_bytes())
    );
}

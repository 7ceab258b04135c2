//! Section of `/scaling`: tables of a sweep's cases.

use std::collections::BTreeSet;

use super::cases::{Cases, ranks_label};
use super::scaling_plots;
use crate::error::Result;
use crate::metrics::Definition;
use crate::metrics::definitions::{
    BUSBW, BUSBW_SHARE, COMM_SHARE, COMM_WAIT_SHARE, COMPUTE_SHARE, MEAN, OVERLAP, STEP_P50, TRIMMED_MEAN, VOLUME, text,
};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Heading, Sheet};

/// Builds the tables and plots of a sweep.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("scaling")? else { return Ok(None) };
    let cases = Cases { frame };
    let pivots = [
        ("images_per_second", "Throughput by ranks"),
        ("speedup", "Speedup by ranks"),
        ("efficiency", "Efficiency by ranks"),
        ("epoch_seconds", "Seconds per epoch by ranks"),
    ];
    let mut sheets = vec![measured(&cases), batches(&cases)];
    sheets.extend(pivots.map(|(column, title)| by_ranks(&cases, column, title)));
    sheets.extend([anatomy(&cases), overlap(&cases), bandwidth(&cases)]);
    Ok(Some(Section::new("Scaling", sheets, scaling_plots::figures(&cases))))
}

fn batches(cases: &Cases) -> Sheet {
    let rows = cases.as_trained();
    let fewest = rows.iter().map(|((_, ranks, _), _)| *ranks).min().unwrap_or(0);
    let rows: Vec<usize> = rows.into_iter().filter(|((_, ranks, _), _)| *ranks == fewest).map(|(_, row)| row).collect();
    let columns = [
        "model",
        "ranks",
        "batch_per_rank",
        "timing",
        "status",
        "steps",
        "step",
        "step_mean",
        "step_p50",
        "step_low",
        "step_high",
        "images_per_second",
        "epoch_seconds",
        "peak_memory",
        "gpu_utilization",
        "gpu_memory",
        "epoch_joules",
    ];
    cases
        .frame
        .sheet("scaling-batch", format!("Batch size on {}", ranks_label(fewest)), &columns, &rows)
        .with_keys(4)
        .with_note(format!("step: {}; step_mean: {}; step_p50: {}", TRIMMED_MEAN.text, MEAN.text, STEP_P50.text))
}

/// The table of all measured cases, one row per case.
fn measured(cases: &Cases) -> Sheet {
    let (frame, key) = (&cases.frame, |row: usize| cases.key(row).map(|(model, ranks, batch)| (model, batch, ranks)));
    let mut rows = frame.rows_where(|row| frame.text("status", row) == "ok");
    rows.sort_by_key(|&row| (frame.text("model", row), frame.text("timing", row), key(row)));
    let columns = [
        "model",
        "timing",
        "batch_per_rank",
        "ranks",
        "step",
        "step_mean",
        "images_per_second",
        "speedup",
        "efficiency",
        "busbw",
        "busbw_share",
        "overlap",
    ];
    let notes = [
        ("step", TRIMMED_MEAN.text),
        ("step_mean", MEAN.text),
        ("busbw_share", BUSBW_SHARE.text),
        ("overlap", OVERLAP.text),
    ];
    let note = notes.map(|(name, text)| format!("{name}: {text}")).join("; ");
    frame
        .sheet("scaling-cases", "Speedup and efficiency against one rank at the same batch per rank", &columns, &rows)
        .with_keys(4)
        .with_note(note)
}

/// The table of one column with one row per model and batch and one column per number of ranks.
fn by_ranks(cases: &Cases, column: &str, title: &str) -> Sheet {
    let rows = cases.as_trained();
    let mut sheet = Sheet::new(&format!("scaling-{column}"), title).with_keys(2);
    let Some(quantity) = cases.frame.heading(column) else { return sheet };
    let ranks: BTreeSet<i64> = rows.iter().map(|((_, ranks, _), _)| *ranks).collect();
    let mut lines: Vec<(&str, i64)> = Vec::new();
    for ((model, _, batch), _) in &rows {
        if !lines.contains(&(model, *batch)) {
            lines.push((model, *batch));
        }
    }
    lines.sort();
    let heading = |name: &str| cases.frame.heading(name).unwrap_or(Heading::new(name, "1", ""));
    sheet.columns = vec![heading("model"), heading("batch_per_rank")];
    let places = ranks.iter().map(|ranks| Heading { name: ranks_label(*ranks), ..quantity.clone() });
    sheet.columns.extend(places);
    let value = |model: &str, batch: i64, ranks: i64| {
        let found = rows.iter().find(|((m, r, b), _)| m == model && *b == batch && *r == ranks);
        found.map_or(Cell::Empty, |(_, row)| Cell::Float(cases.frame.number(column, *row)))
    };
    for (model, batch) in lines {
        let values = ranks.iter().map(|ranks| value(model, batch, *ranks));
        sheet.rows.push([Cell::from(model), Cell::Int(batch)].into_iter().chain(values).collect());
    }
    let note = match column {
        "speedup" => "; ideal: the number of ranks",
        "efficiency" => "; ideal: 1",
        _ => "",
    };
    let note = format!("{}{note}", text(&quantity.long_name));
    sheet.with_note(note)
}

fn anatomy(cases: &Cases) -> Sheet {
    let frame = &cases.frame;
    let rows: Vec<usize> = cases.timed("profile").into_iter().map(|(_, row)| row).collect();
    let columns = [
        "model",
        "ranks",
        "batch_per_rank",
        "status",
        "data",
        "forward",
        "backward",
        "comm_wait",
        "comm",
        "optimizer",
        "step",
    ];
    let mut sheet = frame.sheet("scaling-anatomy", "Compute against communication", &columns, &rows).with_keys(3);
    let shares: [(Definition, &[&str]); 3] = [
        (COMPUTE_SHARE, &["forward", "backward", "optimizer"]),
        (COMM_WAIT_SHARE, &["comm_wait"]),
        (COMM_SHARE, &["comm"]),
    ];
    for (definition, parts) in shares {
        let share = |index: usize| {
            let of = |part: &&str| frame.number(part, rows[index]);
            let share = parts.iter().map(of).sum::<f64>() / frame.number("step", rows[index]);
            let exists = definition == COMPUTE_SHARE || frame.number("ranks", rows[index]) > 1.0;
            Cell::Float(if exists { share } else { f64::NAN })
        };
        sheet.push(Heading::from(&definition), share);
    }
    sheet.with_note(format!("profile: nothing overlaps, so the parts add up to the step; each a {}", TRIMMED_MEAN.text))
}

/// The table that compares profile and overlap timing of each case.
fn overlap(cases: &Cases) -> Sheet {
    let (frame, overlap, profile) = (&cases.frame, cases.timed("overlap"), cases.timed("profile"));
    let mut sheet = Sheet::new("scaling-overlap", "Communication hidden behind the backward pass").with_keys(3);
    let heading = |column: &str, timing: &str| {
        let heading = frame.heading(column).unwrap_or(Heading::new(column, "s", ""));
        Heading { name: format!("{} ({timing})", heading.name), ..heading }
    };
    sheet.columns = vec![
        Heading::new("model", "1", ""),
        Heading::new("ranks", "1", "MPI ranks"),
        Heading::new("batch_per_rank", "1", "images per rank and step"),
        heading("step", "profile"),
        heading("step", "overlap"),
        heading("comm", "profile"),
        heading("comm_wait", "overlap"),
        heading("comm", "overlap"),
        heading("comm_exposed", "overlap"),
        frame.heading("overlap").unwrap_or(Heading::from(&OVERLAP)),
    ];
    for ((model, ranks, batch), row) in overlap.iter().filter(|((_, ranks, _), _)| *ranks > 1) {
        let same = profile.iter().find(|(key, _)| *key == (model.clone(), *ranks, *batch)).map(|(_, row)| *row);
        let of =
            |column: &str, row: Option<usize>| row.map_or(Cell::Empty, |row| Cell::Float(frame.number(column, row)));
        let row = Some(*row);
        let numbers = [
            of("step", same),
            of("step", row),
            of("comm", same),
            of("comm_wait", row),
            of("comm", row),
            of("comm_exposed", row),
            of("overlap", row),
        ];
        let case = [Cell::from(model.as_str()), Cell::Int(*ranks), Cell::Int(*batch)];
        sheet.rows.push(case.into_iter().chain(numbers).collect());
    }
    sheet.with_note(format!("overlap: {}", OVERLAP.text))
}

fn bandwidth(cases: &Cases) -> Sheet {
    let several = |row: &usize| cases.frame.number("ranks", *row) > 1.0;
    let rows: Vec<usize> = cases.keyed(cases.frame.rows()).into_iter().map(|(_, row)| row).filter(several).collect();
    let columns = [
        "model",
        "ranks",
        "batch_per_rank",
        "timing",
        "gradient_bytes",
        "volume",
        "comm",
        "algbw",
        "busbw",
        "busbw_share",
    ];
    cases
        .frame
        .sheet("scaling-bandwidth", "Communication volume and bandwidth", &columns, &rows)
        .with_keys(4)
        .with_note(format!("volume: {}; busbw: {}; busbw_share: {}", VOLUME.text, BUSBW.text, BUSBW_SHARE.text))
}

//! `hpml report --trace` and `--hta`: the timeline of traced steps for other programs.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::Request;
use super::source::Source;
use crate::error::{Error, Result};
use crate::store;
use crate::trace::{ChromeEvent, Row, chrome_trace, hta_trace};

/// Writes the timelines of the options. Returns one line per output; `""` without any.
///
/// # Errors
/// There are several run files, or no step was traced, or an output exists or cannot be written.
pub fn write(args: &Request, sources: &[Source]) -> Result<String> {
    if args.trace.is_none() && args.hta.is_none() {
        return Ok(String::new());
    }
    let [source] = sources else {
        return Err(refuse(&args.files[1], "a timeline is of one run: give one file"));
    };
    let rows = source.trace()?;
    if rows.is_empty() {
        let mend = "no step was traced: train with --set metrics.trace_steps=100..110 (report needs the table /trace)";
        return Err(refuse(&args.files[0], mend));
    }
    let ranks = rows.iter().map(|row| row.rank).max().unwrap_or(0) + 1;
    let of_rank = |folder: &PathBuf| (0..ranks).map(|rank| folder.join(format!("rank{rank}.json"))).collect::<Vec<_>>();
    let folder = args.hta.as_ref().map(of_rank).unwrap_or_default();
    for path in args.trace.iter().chain(&folder) {
        store::check_not_input(path, &args.files)?;
        store::check_output(path, args.force)?;
    }

    let mut lines = String::new();
    let steps = rows.iter().map(|row| row.step).collect::<std::collections::BTreeSet<_>>().len();
    if let Some(path) = &args.trace {
        let batch = source
            .config
            .as_ref()
            .map_or(f64::NAN, |config| (config.train.batch_per_rank * config.train.accumulate) as f64);
        write_events(path, &chrome_trace(&rows, batch), json!({}), args.force)?;
        lines += &format!("{steps} steps x {ranks} ranks written to {}: open it in ui.perfetto.dev\n", path.display());
    }
    for (rank, path) in folder.iter().enumerate() {
        let own: Vec<Row> = rows.iter().filter(|row| row.rank == rank).copied().collect();
        write_events(path, &hta_trace(&own), json!({ "rank": rank, "world_size": ranks }), args.force)?;
    }
    if let Some(folder) = &args.hta {
        lines += &format!("{steps} steps written to {}, one file per rank\n", folder.display());
    }
    Ok(lines)
}

fn write_events(path: &Path, events: &[ChromeEvent], distributed: serde_json::Value, force: bool) -> Result<()> {
    let trace = json!({
        "schemaVersion": 1,
        "displayTimeUnit": "ms",
        "distributedInfo": distributed,
        "traceEvents": events,
    });
    // Holistic Trace Analysis 0.5 finds the rank of a file in a folder by this text, and takes rank 0 for a file without the blank.
    let text = trace.to_string().replacen("\"rank\":", "\"rank\": ", 1);
    store::write_output(path, text.as_bytes(), force)
}

fn refuse(path: &Path, message: &str) -> Error {
    Error::File { path: path.to_owned(), message: message.into() }
}

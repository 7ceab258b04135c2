//! Reports of files made for the tests: a sweep, an all-reduce, and files with unexpected content.

use std::path::{Path, PathBuf};

use super::*;
use crate::config::Config;
use crate::store::{Attribute, Column, FileKind, Identity, RunFile, Table, Values};

fn floats(name: &str, units: &str, values: Vec<f64>) -> Column {
    Column::new(name, units, format!("{name} of the case"), Values::F64(values))
}

fn texts(name: &str, values: Vec<String>) -> Column {
    Column::new(name, "1", name, Values::Text(values))
}

fn integers(name: &str, units: &str, values: Vec<i64>) -> Column {
    Column::new(name, units, name, Values::I64(values))
}

fn write(path: &Path, tables: &[Table]) -> PathBuf {
    let environment = vec![("hpml".into(), Attribute::Text("0.1.0".into())), ("world_size".into(), Attribute::Int(8))];
    RunFile::create(path, true, Identity::new(FileKind::Training), &Config::default(), environment, Vec::new())
        .unwrap()
        .flush(tables, None)
        .unwrap();
    path.to_owned()
}

/// A sweep over 1 to `most_ranks` ranks and three batch sizes in both timings, with communication times of the given bandwidth.
fn sweep(most_ranks: i64, bytes_per_second: f64) -> Table {
    let ranks: Vec<i64> = [1, 2, 4, 8, 16].into_iter().filter(|ranks| *ranks <= most_ranks).collect();
    let cases: Vec<(i64, i64, &str)> = ["overlap", "profile"]
        .into_iter()
        .flat_map(|timing| ranks.iter().flat_map(move |n| [32, 128, 512].map(|batch| (*n, batch, timing))))
        .collect();
    const BYTES: f64 = 44_695_848.0;
    let volume = |n: f64| 2.0 * (n - 1.0) / n * BYTES;
    let comm = |n: i64| volume(n as f64) / bytes_per_second;
    let compute = |batch: i64| 0.004 + 1.1e-4 * batch as f64;
    let exposed = |(n, batch, timing): (i64, i64, &str)| match timing {
        "profile" => comm(n),
        _ => (comm(n) - 0.5 * compute(batch)).max(0.1 * comm(n)),
    };
    let step = |case: (i64, i64, &str)| compute(case.1) + exposed(case);
    let of = |value: &dyn Fn((i64, i64, &str)) -> f64| cases.iter().map(|case| value(*case)).collect::<Vec<f64>>();
    let throughput = |case: (i64, i64, &str)| (case.0 * case.1) as f64 / step(case);
    let speedup = |case: (i64, i64, &str)| throughput(case) / throughput((1, case.1, case.2));
    let several = |n: i64, value: f64| if n > 1 { value } else { f64::NAN };
    let columns = vec![
        texts("model", cases.iter().map(|_| "resnet18".into()).collect()),
        integers("ranks", "1", cases.iter().map(|case| case.0).collect()),
        integers("batch_per_rank", "1", cases.iter().map(|case| case.1).collect()),
        texts("timing", cases.iter().map(|case| case.2.into()).collect()),
        texts("status", cases.iter().map(|_| "ok".into()).collect()),
        integers("steps", "1", vec![50; cases.len()]),
        floats("data", "s", of(&|_| 8e-5)),
        floats("forward", "s", of(&|case| 0.33 * compute(case.1))),
        floats("backward", "s", of(&|case| 0.6 * compute(case.1))),
        floats("comm_wait", "s", of(&|case| if case.2 == "profile" { 0.1 * comm(case.0) } else { 0.0 })),
        floats("comm", "s", of(&|case| 0.9 * comm(case.0))),
        floats("comm_exposed", "s", of(&exposed)),
        floats("optimizer", "s", of(&|case| 0.05 * compute(case.1))),
        floats("step", "s", of(&step)),
        floats("step_p50", "s", of(&step)),
        floats("step_low", "s", of(&|case| 0.98 * step(case))),
        floats("step_high", "s", of(&|case| 1.03 * step(case))),
        floats("images_per_second", "1/s", of(&throughput)),
        floats("algbw", "GB/s", of(&|case| several(case.0, BYTES / comm(case.0) / 1e9))),
        floats("busbw", "GB/s", of(&|case| several(case.0, volume(case.0 as f64) / comm(case.0) / 1e9))),
        floats("busbw_share", "1", of(&|case| several(case.0, 0.87))),
        floats("gradient_bytes", "B", of(&|_| BYTES)),
        floats("volume", "B", of(&|case| volume(case.0 as f64))),
        floats("overlap", "1", of(&|case| several(case.0, 1.0 - exposed(case) / (0.9 * comm(case.0))))),
        floats("speedup", "1", of(&speedup)),
        floats("efficiency", "1", of(&|case| speedup(case) / case.0 as f64)),
        floats("epoch_seconds", "s", of(&|case| 50_000.0 / throughput(case))),
        floats("peak_memory", "B", of(&|case| 1.2e9 + 9e6 * case.1 as f64)),
    ];
    Table::new("scaling", "case", columns)
}

fn prediction() -> Table {
    let cases: Vec<(i64, i64)> = [32, 128].into_iter().flat_map(|b| [1, 2, 4, 8, 16, 32, 64].map(|n| (n, b))).collect();
    let efficiency = |(n, batch): (i64, i64)| 1.0 / (1.0 + (n as f64 - 1.0) / n as f64 * 40.0 / (60.0 + batch as f64));
    let of = |value: &dyn Fn((i64, i64)) -> f64| cases.iter().map(|case| value(*case)).collect::<Vec<f64>>();
    let columns = vec![
        integers("ranks", "1", cases.iter().map(|case| case.0).collect()),
        integers("batch_per_rank", "1", cases.iter().map(|case| case.1).collect()),
        floats("step", "s", of(&|case| 0.01 / efficiency(case))),
        floats("speedup", "1", of(&|case| case.0 as f64 * efficiency(case))),
        floats("efficiency", "1", of(&efficiency)),
    ];
    Table::new("prediction", "row", columns)
}

fn all_reduce(with_ranks: bool) -> Table {
    let rows: Vec<(i64, i64, &str, &str)> = [2, 4]
        .into_iter()
        .flat_map(|ranks| ["ring", "mpi"].map(|algorithm| (ranks, algorithm)))
        .flat_map(|(ranks, algorithm)| (0..13).map(move |power| (ranks, 8 << (2 * power), algorithm)))
        .flat_map(|(ranks, size, algorithm)| ["out_of_place", "in_place"].map(|place| (ranks, size, algorithm, place)))
        .collect();
    let time =
        |row: &(i64, i64, &str, &str)| 2e-6 * row.0 as f64 + row.1 as f64 / if row.2 == "ring" { 8e9 } else { 3e9 };
    let busbw = |row: &(i64, i64, &str, &str)| row.1 as f64 / time(row) / 1e9 * 2.0 * (row.0 - 1) as f64 / row.0 as f64;
    let mut columns = vec![
        integers("size", "B", rows.iter().map(|row| row.1).collect()),
        texts("type", rows.iter().map(|_| "float32".into()).collect()),
        texts("algorithm", rows.iter().map(|row| row.2.into()).collect()),
        texts("place", rows.iter().map(|row| row.3.into()).collect()),
        floats("time", "s", rows.iter().map(time).collect()),
        floats("busbw", "GB/s", rows.iter().map(busbw).collect()),
        integers("wrong", "1", vec![0; rows.len()]),
    ];
    if with_ranks {
        columns.push(integers("ranks", "1", rows.iter().map(|row| row.0).collect()));
    }
    Table { attributes: vec![("ranks".into(), Attribute::Int(4))], ..Table::new("allreduce", "row", columns) }
}

fn ask(files: &[PathBuf]) -> Request {
    Request { files: files.to_vec(), ..Default::default() }
}

/// Writes every form of the report; returns the text for the terminal.
fn all_forms(folder: &Path, files: &[PathBuf]) -> String {
    let html = folder.join("out.html");
    let plots = folder.join("plots");
    report(&Request { html: Some(html.clone()), plots: Some(plots), force: true, ..ask(files) }).unwrap();
    report(&Request { markdown: true, ..ask(files) }).unwrap();
    assert!(std::fs::read_to_string(html).unwrap().ends_with("</html>\n"));
    report(&ask(files)).unwrap()
}

#[test]
fn a_sweep_is_shown_from_all_sides() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder.path().join("sweep.h5"), &[sweep(16, 12e9), prediction(), all_reduce(true)]);
    let text = all_forms(folder.path(), std::slice::from_ref(&file));
    for title in [
        "Batch size on 1 rank",
        "Speedup by ranks",
        "Efficiency by ranks",
        "Compute against communication",
        "Communication hidden behind the backward pass",
        "Communication volume and bandwidth",
        "Predicted scaling",
        "All-reduce by size",
    ] {
        assert!(text.contains(title), "{title}\n{text}");
    }
    for plot in ["scaling", "scaling-anatomy", "scaling-throughput", "prediction", "allreduce"] {
        for extension in ["svg", "png"] {
            assert!(folder.path().join(format!("plots/{plot}.{extension}")).is_file(), "{plot}.{extension}");
        }
    }
    let csv = report(&Request { csv: true, ..ask(&[file]) }).unwrap();
    assert!(csv.starts_with("case,model,ranks,batch_per_rank,timing,status,"), "{csv}");
    assert_eq!(csv.lines().count(), 31);
}

/// A sweep of resnet18 and of net, whose steps take a thousandth of the time.
fn two_models() -> Table {
    let (mut both, mut net) = (sweep(16, 12e9), sweep(16, 12e9));
    for column in &mut net.columns {
        let per_second = column.name == "images_per_second";
        match &mut column.values {
            Values::Text(values) if column.name == "model" => values.fill("net".into()),
            Values::F64(values) if per_second => values.iter_mut().for_each(|value| *value *= 1e3),
            Values::F64(values) if column.units == "s" => values.iter_mut().for_each(|value| *value /= 1e3),
            _ => {}
        }
    }
    both.append(net);
    both
}

/// The points of the polylines with these attributes in an SVG.
fn polylines(svg: &str, attributes: &[&str]) -> Vec<Vec<(f64, f64)>> {
    let lines = svg.lines().filter(|line| line.contains("<polyline ") && attributes.iter().all(|a| line.contains(a)));
    let points = |line: &str| {
        let text = line.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let point = |pair: &str| pair.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap();
        text.split_whitespace().map(point).collect()
    };
    lines.map(points).collect()
}

#[test]
fn each_model_has_its_own_panel_and_known_intervals_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let predicted = |model: &str| {
        let mut table = prediction();
        table.columns.push(texts("model", vec![model.to_owned(); table.len()]));
        table
    };
    let mut predictions = predicted("net");
    predictions.append(predicted("resnet18"));
    let file = write(&folder.path().join("sweep.h5"), &[two_models(), predictions, all_reduce(true)]);
    all_forms(folder.path(), std::slice::from_ref(&file));
    let svg = |name: &str| std::fs::read_to_string(folder.path().join(format!("plots/{name}.svg"))).unwrap();
    let texts = |name: &str| svg(name).lines().map(|line| line.trim().to_owned()).collect::<Vec<String>>();
    let has = |name: &str, wanted: &str| texts(name).iter().any(|text| text == wanted);
    for (plot, panels) in [
        ("scaling", &["net: speedup", "net: efficiency", "resnet18: speedup", "resnet18: efficiency"][..]),
        ("scaling-anatomy", &["net", "resnet18"]),
        ("scaling-throughput", &["net", "resnet18"]),
        ("prediction", &["net: speedup", "resnet18: efficiency"]),
        ("allreduce", &["bus bandwidth", "latency"]),
    ] {
        assert!(panels.iter().all(|panel| has(plot, panel)), "{plot}: {:?}", texts(plot));
    }
    // Each model's bars have a unit of their own, and all bars of a model the same.
    let anatomy = svg("scaling-anatomy");
    let titled = |unit: &str| has("scaling-anatomy", &format!("trimmed mean time per step ({unit})"));
    assert!(titled("us") && titled("ms"), "{:?}", texts("scaling-anatomy"));
    assert!(anatomy.contains("batch 32, 2 ranks\nforward: "));

    // The median step's interval is 0.98 to 1.03 of the step.
    let throughput = svg("scaling-throughput");
    let hint = throughput.split("<title>").filter(|hint| hint.starts_with("batch_per_rank 32\n")).last().unwrap();
    let line = hint.lines().find(|line| line.starts_with("1 rank: ")).unwrap();
    let numbers: Vec<f64> =
        line.split(|c: char| !c.is_ascii_digit() && c != '.').filter_map(|n| n.parse().ok()).collect();
    let [_, value, low, high] = numbers[..] else { panic!("{line}") };
    assert!((low / value - 1.0 / 1.03).abs() < 1e-3 && (high / value - 1.0 / 0.98).abs() < 1e-3, "{line}");

    // Predictions and measurements of a case share axes, and show their values together.
    let prediction = svg("prediction");
    let hint = prediction.split("<title>").find(|hint| hint.starts_with("ranks 4\n")).unwrap();
    assert!(hint.contains("\nbatch 32: ") && hint.contains("\nbatch 32, measured: "), "{hint}");

    // The ideal speedup is a straight line: its dashes lie on one. Grey and 1.5 pixels wide, in eighths of a pixel.
    let dashes = polylines(&svg("scaling"), &["stroke=\"#787878\"", "stroke-width=\"12\""]);
    let sloped: Vec<(f64, f64)> = dashes.into_iter().filter(|dash| dash[0].1 != dash[1].1).flatten().collect();
    let per_panel = sloped.len() / 2;
    assert!(per_panel > 20, "{per_panel}");
    for panel in sloped.chunks(per_panel) {
        let ((x0, y0), (x1, y1)) = (panel[0], panel[per_panel - 1]);
        let off = |(x, y): &(f64, f64)| ((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)).abs() / (x1 - x0).hypot(y1 - y0);
        assert!(panel.iter().all(|point| off(point) < 2.0)); // rounded to an eighth of a pixel
    }
}

#[test]
fn json_has_every_table_with_its_types() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder.path().join("a.h5"), &[all_reduce(true)]);
    let asked = |table: Option<&str>| {
        let table = table.map(str::to_owned);
        let text = report(&Request { json: true, table, ..ask(std::slice::from_ref(&file)) }).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let names = |json: &serde_json::Value| {
        json["tables"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&asked(None)), ["environment", "allreduce", "configuration"]);
    let one = asked(Some("allreduce"));
    assert_eq!(names(&one), ["allreduce"]);
    assert_eq!(one["tables"][0]["rows"].as_array().unwrap().len(), 104);
    assert_eq!(
        one["tables"][0]["columns"][0],
        serde_json::json!({"name": "row", "units": "1", "long_name": "number of the row, from 0", "type": "int"})
    );
}

#[test]
fn two_files_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let files =
        [("a.h5", sweep(8, 12e9)), ("b.h5", sweep(16, 3e9))].map(|(name, t)| write(&folder.path().join(name), &[t]));
    let text = all_forms(folder.path(), &files);
    assert!(text.contains("file") && text.contains("  a ") && text.contains("  b "), "{text}");
    let csv = report(&Request { csv: true, ..ask(&files) }).unwrap();
    assert!(csv.starts_with("file,case,model") && csv.contains("\na,0,") && csv.contains("\nb,0,"), "{csv}");
    let svg = std::fs::read_to_string(folder.path().join("plots/scaling.svg")).unwrap();
    assert!(svg.contains("a: batch 32") && svg.contains("b: batch 512") && svg.contains("ideal"));
}

#[test]
fn an_older_all_reduce_has_its_ranks_in_an_attribute() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder.path().join("old.h5"), &[all_reduce(false)]);
    let text = all_forms(folder.path(), &[file]);
    assert!(text.contains("All-reduce by size on 4 ranks"), "{text}");
    let svg = std::fs::read_to_string(folder.path().join("plots/allreduce.svg")).unwrap();
    assert!(svg.contains("4 ranks, ring") && !svg.contains("2 ranks"));
}

/// Every table that the report shows, with `columns` and no others.
fn everywhere(columns: &[Column]) -> Vec<Table> {
    let names = [
        "scaling",
        "prediction",
        "allreduce",
        "study",
        "epochs",
        "ranks",
        "spread",
        "sampling",
        "steps",
        "comm",
        "quantization",
        "histograms",
    ];
    names.map(|name| Table::new(name, "row", columns.to_vec())).to_vec()
}

#[test]
fn odd_files_are_reported_without_a_panic() {
    const NUMBERS: [&str; 38] = [
        "world_size",
        "profile",
        "steps",
        "steps_done",
        "parameter_spread",
        "seen_so_far",
        "sent_bytes",
        "seed",
        "ranks",
        "batch_per_rank",
        "data",
        "forward",
        "backward",
        "comm_wait",
        "comm",
        "comm_exposed",
        "optimizer",
        "step",
        "images_per_second",
        "algbw",
        "busbw",
        "speedup",
        "efficiency",
        "size",
        "time",
        "epoch",
        "train_loss",
        "test_accuracy",
        "global_step",
        "rank",
        "warmup",
        "bytes",
        "seconds",
        "accuracy",
        "min",
        "max",
        "mean",
        "sigma3_lower",
    ];
    const TEXTS: [&str; 8] = ["variant", "model", "timing", "status", "algorithm", "place", "kind", "name"];
    let all = |number: f64, rows: usize| -> Vec<Column> {
        let numbers = NUMBERS.iter().map(|name| floats(name, "s", vec![number; rows]));
        numbers.chain(TEXTS.iter().map(|name| texts(name, vec!["overlap".into(); rows]))).collect()
    };
    let bins = |rows: usize| floats("bins", "1", vec![1.0; rows * 3]).over(&[("row", rows), ("bin", 3)]);
    let swapped: Vec<Column> = NUMBERS
        .iter()
        .map(|name| texts(name, vec!["<b>|text\x1b[31m".into(); 3]))
        .chain(TEXTS.iter().map(|name| floats(name, "s", vec![1.0; 3])))
        .collect();
    let cases: Vec<(&str, Vec<Column>)> = vec![
        ("missing", vec![floats("something", "1", vec![1.0, 2.0])]),
        ("empty", all(1.0, 0)),
        ("nan", all(f64::NAN, 4)),
        ("infinite", all(f64::INFINITY, 4)),
        ("zero", all(0.0, 3)),
        ("negative", all(-1.0, 3)),
        ("fraction", all(0.5, 3)),
        ("huge", all(1e300, 3)),
        ("tiny", all(1e-310, 3)),
        ("single", all(1.0, 1)),
        ("same", all(2.0, 5)),
        ("swapped", swapped),
        ("lists", vec![bins(4), floats("min", "1", vec![0.0; 4]), floats("max", "1", vec![1.0; 4])]),
        ("unnamed", vec![]),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (name, columns) in cases {
        let file = write(&folder.path().join(format!("{name}.h5")), &everywhere(&columns));
        all_forms(folder.path(), std::slice::from_ref(&file));
        for table in ["scaling", "histograms", "steps"] {
            let table = Some(table.to_owned());
            report(&Request { table: table.clone(), csv: true, ..ask(std::slice::from_ref(&file)) }).unwrap();
            report(&Request { table, ..ask(std::slice::from_ref(&file)) }).unwrap();
        }
        files.push(file);
    }
    let text = all_forms(folder.path(), &files);
    assert!(!text.contains('\x1b'));
}

#[test]
fn what_is_missing_is_named_with_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder.path().join("a.h5"), &[all_reduce(true)]);
    let message = |args: Request| report(&args).unwrap_err().to_string();
    let missing = message(Request { table: Some("/scaling".into()), ..ask(std::slice::from_ref(&file)) });
    assert!(
        missing.ends_with(
            "a.h5: scaling: no such table here: the file holds allreduce; the report has environment, allreduce"
        ),
        "{missing}"
    );

    let nothing = write(&folder.path().join("nothing.h5"), &[]);
    let text = message(ask(std::slice::from_ref(&nothing)));
    assert!(text.contains("nothing.h5") && text.contains("no tables"), "{text}");
    // An empty file beside a good one: a comparison must not drop it silently.
    assert!(message(ask(&[file.clone(), nothing])).contains("nothing.h5"));

    std::fs::write(folder.path().join("text.h5"), "text").unwrap();
    for wrong in ["text.h5", "none.h5"] {
        let text = message(ask(&[folder.path().join(wrong)]));
        assert!(text.contains(wrong) && !text.contains('\n'), "{text}");
    }
}

#[test]
fn nothing_is_overwritten_without_force_and_nothing_is_written_by_halves() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder.path().join("a.h5"), &[all_reduce(true)]);
    let (html, plots) = (folder.path().join("out.html"), folder.path().join("plots"));
    std::fs::write(&html, "precious").unwrap();
    let args = |force| Request {
        html: Some(html.clone()),
        plots: Some(plots.clone()),
        force,
        ..ask(std::slice::from_ref(&file))
    };
    assert!(matches!(report(&args(false)), Err(Error::OutputExists { .. })));
    assert!(!plots.exists() && std::fs::read(&html).unwrap() == b"precious");
    let text = report(&args(true)).unwrap();
    assert!(text.contains("1 plots") && text.contains("out.html"), "{text}");
    assert!(matches!(report(&args(false)), Err(Error::OutputExists { .. })));
    for (place, reason) in [(folder.path().to_owned(), "it is a folder"), (file.join("out.html"), "File exists")] {
        let message =
            report(&Request { html: Some(place), ..ask(std::slice::from_ref(&file)) }).unwrap_err().to_string();
        assert!(message.contains(reason) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_case_that_ran_out_of_memory_is_shown_without_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let mut table = sweep(4, 12e9);
    for column in &mut table.columns {
        match (&mut column.values, column.name.as_str()) {
            (Values::Text(values), "status") => values[2] = "out_of_memory".into(),
            (Values::F64(values), _) => values[2] = f64::NAN,
            _ => {}
        }
    }
    let file = write(&folder.path().join("sweep.h5"), &[table]);
    all_forms(folder.path(), std::slice::from_ref(&file));
    let text = report(&Request { files: vec![file], markdown: true, ..Request::default() }).unwrap();
    let line = text.lines().find(|line| line.contains("out\\_of\\_memory")).unwrap();
    assert!(line.contains("512") && line.matches(" - ").count() >= 5, "{line}");
}

//! `hpml report` on files that the real binary wrote.

use std::path::{Path, PathBuf};

use crate::common::{Mpirun, column, folder};

/// A run of two epochs on two ranks.
fn trained(folder: &Path, name: &str, seed: &str) -> PathBuf {
    let file = folder.join(name);
    let sizes =
        ["--set", "data.train_samples=200", "--set", "data.test_samples=50", "--set", "train.epochs=2", "--set", seed];
    Mpirun::ranks(2).arg("train").args(sizes).arg("--out").args([&file]).run().succeeded();
    file
}

/// Columns of a CSV by name.
fn parsed(csv: &str) -> impl Fn(&str) -> Vec<String> + use<> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().unwrap().clone();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    move |name| {
        let place =
            header.iter().position(|heading| heading == name).unwrap_or_else(|| panic!("no {name}: {header:?}"));
        rows.iter().map(|row| row[place].to_owned()).collect()
    }
}

fn numbers(texts: Vec<String>) -> Vec<f64> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_run_is_reported_in_every_form_with_the_numbers_of_its_file() {
    let folder = folder();
    let file = trained(folder.path(), "run.h5", "run.seed=1");
    let report = || Mpirun::alone().arg("report").args([&file]);

    let csv = parsed(&report().arg("--csv").run().succeeded().stdout);
    for name in ["train_loss", "test_accuracy", "seconds", "lr", "images_per_second"] {
        assert_eq!(numbers(csv(name)), column(&file, &format!("epochs/{name}")), "{name}");
    }
    let csv = parsed(&report().args(["--csv", "--table", "steps"]).run().succeeded().stdout);
    let steps: Vec<f32> = csv("step").iter().map(|text| text.parse().unwrap()).collect();
    assert_eq!(steps, column(&file, "steps/step").iter().map(|&value| value as f32).collect::<Vec<_>>());

    // A table that only the report has, selected by name.
    let csv = parsed(&report().args(["--csv", "--table", "steps-anatomy"]).run().succeeded().stdout);
    assert_eq!(csv("part").last().unwrap(), "step");

    let text = report().run().succeeded().stdout;
    for part in ["hpml", "train_loss", "Step anatomy", "comm_exposed", "gradients", "busbw"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    // The anatomy is that of the closing table, from the same numbers: warm-up steps are in neither.
    let counted: Vec<f64> = {
        let (step, warmup) = (column(&file, "steps/step"), column(&file, "steps/warmup"));
        step.into_iter().zip(warmup).filter(|(_, warmup)| *warmup == 0.0).map(|(step, _)| step).collect()
    };
    let digits =
        |text: &str| text.chars().filter(char::is_ascii_digit).skip_while(|digit| *digit == '0').collect::<String>();
    let mean = counted.iter().sum::<f64>() / counted.len() as f64;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some("step")).unwrap();
    let shown = digits(line.split_whitespace().nth(1).unwrap());
    let rounded = format!("{mean:.*e}", shown.len() - 1);
    assert_eq!(shown, digits(rounded.split('e').next().unwrap()), "{mean}: {line}"); // in whatever unit
    let markdown = report().arg("--markdown").run().succeeded().stdout;
    assert!(markdown.contains("## Training") && markdown.contains("| ---: |"), "{markdown}");
}

#[test]
fn the_page_stands_alone_and_the_plots_open() {
    let folder = folder();
    let file = trained(folder.path(), "run & <b>.h5", "run.seed=1");
    let (html, plots) = (folder.path().join("out.html"), folder.path().join("plots"));
    let report =
        || Mpirun::alone().arg("report").args([&file]).arg("--html").args([&html]).arg("--plots").args([&plots]);
    assert!(report().run().succeeded().stdout.contains("out.html"));

    let page = std::fs::read_to_string(&html).unwrap();
    assert!(
        page.contains("<svg") && page.contains("How each figure was measured") && page.contains("run &amp; &lt;b&gt;")
    );
    assert!(!page.contains("<b>") && !page.contains("<script"));
    let foreign = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!foreign.contains("http") && !foreign.contains("src=") && !foreign.contains("url("));

    let mut names: Vec<String> =
        std::fs::read_dir(&plots).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for plot in ["epochs", "comm", "steps-anatomy", "steps-course"] {
        assert!(names.contains(&format!("{plot}.svg")) && names.contains(&format!("{plot}.png")), "{names:?}");
    }
    for name in &names {
        let bytes = std::fs::read(plots.join(name)).unwrap();
        match name.ends_with(".png") {
            true => assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.len() > 2000, "{name}"),
            false => assert!(bytes.starts_with(b"<svg ") && bytes.ends_with(b"</svg>\n"), "{name}"),
        }
    }

    let refused = report().run();
    assert!(!refused.status.success() && refused.messages().len() == 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("exists already") && refused.stderr.contains("--force"), "{}", refused.stderr);
    report().arg("--force").run().succeeded();
}

#[test]
fn two_runs_are_compared_and_a_missing_table_is_named() {
    let folder = folder();
    let files =
        [("one.h5", "run.seed=1"), ("two.h5", "run.seed=2")].map(|(name, seed)| trained(folder.path(), name, seed));
    let csv = parsed(&Mpirun::alone().arg("report").args(&files).arg("--csv").run().succeeded().stdout);
    assert_eq!(csv("file"), ["one", "one", "two", "two"]);
    let both = [column(&files[0], "epochs/test_loss"), column(&files[1], "epochs/test_loss")].concat();
    assert_eq!(numbers(csv("test_loss")), both);

    let refused = Mpirun::alone().arg("report").args(&files).args(["--csv", "--table", "scaling"]).run();
    assert!(!refused.status.success() && refused.stdout.is_empty());
    assert!(
        refused.messages()[0].contains("one.h5: scaling: no such table here: the file holds"),
        "{}",
        refused.stderr
    );
}

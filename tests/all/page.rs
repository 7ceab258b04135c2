//! `hpml report --html` and `--json`: the structure of the page, and the data that it holds, against the run file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Mpirun, column, folder, text};
use serde_json::Value;

/// An element of a page.
#[derive(Debug, Default)]
struct Element {
    name: String,
    attributes: BTreeMap<String, String>,
    /// Index of the element that holds this one.
    parent: Option<usize>,
    /// Characters up to the first element within.
    text: String,
}

impl Element {
    fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// The elements of a page in their order; panics at tags that do not match.
fn parsed(page: &str) -> Vec<Element> {
    const VOID: [&str; 2] = ["meta", "br"];
    let (mut elements, mut open): (Vec<Element>, Vec<usize>) = (Vec::new(), Vec::new());
    for part in page.split('<').skip(1) {
        let (tag, after) = part.split_once('>').unwrap_or_else(|| panic!("no end: {part}"));
        if let Some(name) = tag.strip_prefix('/') {
            let closed = open.pop().unwrap_or_else(|| panic!("</{name}> without a beginning"));
            assert_eq!(elements[closed].name, name, "closed in the wrong order");
            continue;
        }
        if tag.starts_with('!') {
            continue;
        }
        let closes = tag.ends_with('/');
        let tag = tag.trim_end_matches('/');
        let (name, mut rest) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        let mut element = Element { name: name.to_owned(), parent: open.last().copied(), ..Element::default() };
        while let Some((key, value)) = rest.trim_start().split_once("=\"") {
            let (value, after) = value.split_once('"').unwrap_or_else(|| panic!("no end of {key}: {tag}"));
            element.attributes.insert(key.trim().to_owned(), unescaped(value));
            rest = after;
        }
        assert_eq!(rest.trim(), "", "{tag}");
        element.text = unescaped(after);
        elements.push(element);
        if !closes && !VOID.contains(&name) {
            open.push(elements.len() - 1);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    elements
}

fn unescaped(text: &str) -> String {
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    pairs.iter().fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// The content of a `data:` link.
fn content(link: &str) -> String {
    let (_, data) =
        link.strip_prefix("data:").and_then(|link| link.split_once(',')).unwrap_or_else(|| panic!("{link}"));
    let (mut bytes, mut rest) = (Vec::new(), data.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// A run of two epochs on two ranks with traced steps, quantized at its end.
fn trained(folder: &Path) -> PathBuf {
    let file = folder.join("run.h5");
    let sets = [
        "data.train_samples=200",
        "data.test_samples=50",
        "train.epochs=2",
        "metrics.trace_steps=2..4",
        "quantize.enabled=true",
    ];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    Mpirun::ranks(2).arg("train").args(sets).arg("--out").args([&file]).run().succeeded();
    file
}

/// The page of `file` as text and elements.
fn page(file: &Path) -> (String, Vec<Element>) {
    let html = file.with_extension("html");
    Mpirun::alone().args(["report", text(file), "--html", text(&html)]).run().succeeded();
    let page = std::fs::read_to_string(html).unwrap();
    let elements = parsed(&page);
    (page, elements)
}

/// Column `name` of a table of the JSON form, null as NaN.
fn json_column(table: &Value, name: &str) -> Vec<f64> {
    let names: Vec<&str> = table["columns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    let place = names.iter().position(|known| *known == name).unwrap_or_else(|| panic!("no {name}: {names:?}"));
    let number = |row: &Value| if row[place].is_null() { f64::NAN } else { row[place].as_f64().unwrap() };
    table["rows"].as_array().unwrap().iter().map(number).collect()
}

/// Whether the numbers are equal to the last bit, NaN being equal to itself.
fn same(one: &[f64], other: &[f64]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a == b || a.is_nan() && b.is_nan())
}

#[test]
fn every_table_and_plot_of_the_page_is_named_and_fits_small_windows() {
    let folder = folder();
    let file = trained(folder.path());
    let (page, elements) = page(&file);
    let children = |index: usize| elements.iter().filter(move |element| element.parent == Some(index));

    // First of all what the run shows, in sentences.
    let verdict = elements.iter().position(|element| element.get("class") == "verdict").unwrap();
    let list = (verdict..elements.len()).find(|&index| elements[index].name == "ul").unwrap();
    let told: Vec<&str> = children(list).map(|element| element.text.as_str()).collect();
    for part in ["low throughout", "of a step is exposed communication", "tep", "hpml sweep", "arning"] {
        assert!(told.iter().any(|sentence| sentence.contains(part)), "{part}: {told:?}");
    }

    let tables: Vec<usize> = (0..elements.len()).filter(|&index| elements[index].name == "table").collect();
    assert!(tables.len() >= 5, "{}", tables.len());
    for &table in &tables {
        let caption = children(table).next().unwrap();
        assert_eq!(caption.name, "caption");
        let around = &elements[elements[table].parent.unwrap()];
        let scrolls = (around.get("class"), around.get("tabindex"), around.get("role"));
        assert_eq!(scrolls, ("scroll", "0", "region"), "a table that is too wide scrolls, by the keyboard too");
        assert!(!around.get("aria-label").is_empty());
    }
    let headers: Vec<&Element> = elements.iter().filter(|element| element.name == "th").collect();
    assert!(headers.iter().all(|header| ["col", "row"].contains(&header.get("scope"))));
    assert!(headers.iter().any(|header| header.get("scope") == "row"));
    let captions: Vec<&Element> = elements.iter().filter(|e| e.name == "span" && !e.text.is_empty()).collect();
    assert_eq!(captions.len(), tables.len(), "one text per caption");

    // Each plot in two layouts, the narrow one within 400 pixels.
    let figures: Vec<usize> = (0..elements.len()).filter(|&index| elements[index].name == "figure").collect();
    assert!(figures.len() >= 5, "{}", figures.len());
    for figure in figures {
        let plots: Vec<&Element> = children(figure).filter(|element| element.name == "svg").collect();
        assert_eq!(plots.iter().map(|plot| plot.get("class")).collect::<Vec<_>>(), ["wide", "narrow"]);
        assert!(plots[1].get("width").parse::<f64>().unwrap() <= 360.0);
        assert!(plots.iter().all(|plot| plot.get("role") == "img" && !plot.get("aria-label").is_empty()));
        assert!(children(figure).any(|element| element.name == "figcaption"));
    }
    for index in (0..elements.len()).filter(|&index| elements[index].name == "svg") {
        let described: Vec<&Element> = children(index).take(2).collect();
        assert_eq!(described.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["title", "desc"]);
        assert!(described.iter().all(|element| !element.text.trim().is_empty()));
    }
    // Values under the pointer, with their units, and no script.
    let hints: Vec<&Element> =
        elements.iter().filter(|e| e.name == "title" && e.parent.is_some_and(|p| elements[p].name == "rect")).collect();
    assert!(hints.iter().any(|hint| hint.text.contains("epoch 1\ntrain: ") && hint.text.contains("test: ")));
    assert!(hints.iter().any(|hint| hint.text.contains("rank 1\nforward: ") && hint.text.contains(" ms")));
    assert!(!page.contains("<script") && !elements.iter().any(|element| element.attributes.contains_key("style")));
    // Dark mode, and nothing but plots and tables is wider than its text.
    let style = elements.iter().find(|element| element.name == "style").unwrap();
    assert!(style.text.contains("prefers-color-scheme: dark") && style.text.contains("overflow-x: auto"));
    assert!(style.text.contains("figure svg { height: auto; max-width: 100%; }"));
    let fixed = elements.iter().filter(|element| element.attributes.contains_key("width"));
    assert!(fixed.into_iter().all(|element| ["svg", "rect"].contains(&element.name.as_str())));
    // Links within the page have their places.
    for link in elements.iter().filter_map(|element| element.get("href").strip_prefix('#')) {
        assert!(elements.iter().any(|element| element.get("id") == link), "{link}");
    }
}

#[test]
fn the_page_holds_the_run_files_values_to_be_saved() {
    let folder = folder();
    let file = trained(folder.path());
    let (_, elements) = page(&file);
    let saved = |name: &str| {
        let link = elements.iter().rfind(|element| element.name == "a" && element.get("download") == name);
        content(link.unwrap_or_else(|| panic!("no link to {name}")).get("href"))
    };
    let read = |name: &str| serde_json::from_str::<Value>(&saved(name)).unwrap();
    for (table, columns) in [
        ("epochs", &["train_loss", "test_accuracy", "seconds"][..]),
        ("steps", &["global_step", "rank", "step", "comm"]),
        ("comm", &["bytes", "seconds"]),
        ("trace", &["start", "end", "bucket"]),
        ("quantization", &["accuracy"]),
    ] {
        let stored = read(&format!("{table}.json"));
        for name in columns {
            let expected = column(&file, &format!("{table}/{name}"));
            let found = json_column(&stored, name);
            // float32 columns have their own shortest digits, which are read as another float64.
            let single = |values: &[f64]| values.iter().map(|&value| f64::from(value as f32)).collect::<Vec<_>>();
            assert!(same(&found, &expected) || same(&single(&found), &single(&expected)), "{table}/{name}");
        }
        let csv = Mpirun::alone().args(["report", text(&file), "--csv", "--table", table]).run().succeeded().stdout;
        assert_eq!(saved(&format!("{table}.csv")), csv, "{table}");
    }
    // The whole page's tables, as --json prints them.
    let printed = Mpirun::alone().args(["report", text(&file), "--json"]).run().succeeded().stdout;
    assert_eq!(saved("hpml-report.json"), printed);
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let titles: Vec<&str> =
        printed["tables"].as_array().unwrap().iter().map(|table| table["title"].as_str().unwrap()).collect();
    let captions: Vec<&str> = elements.iter().filter(|e| e.name == "span").map(|e| e.text.as_str()).collect();
    assert_eq!(titles, captions);

    let both = Mpirun::alone().args(["report", text(&file), "--json", "--csv"]).run();
    assert!(!both.status.success() && both.stdout.is_empty() && both.stderr.contains("--csv"), "{}", both.stderr);
}

/// Compares every column of one value per row of every table with h5py's.
const COMPARED: &str = r#"
import json, subprocess, sys
import h5py, numpy

hpml, path = sys.argv[1:]
compared = 0
with h5py.File(path) as file:
    for table in ["epochs", "steps", "comm", "trace", "quantization"]:
        text = subprocess.run([hpml, "report", path, "--json", "--table", table], check=True, capture_output=True).stdout
        (found,) = json.loads(text)["tables"]
        for place, column in enumerate(found["columns"]):
            if column["name"] not in file[table] or file[table][column["name"]].shape != (len(found["rows"]),):
                continue
            stored = file[table][column["name"]]
            units = stored.attrs["units"]
            assert column["units"] == (units.decode() if isinstance(units, bytes) else units), column
            values = [row[place] for row in found["rows"]]
            if stored.dtype.kind in "fiu":
                values = [float("nan") if value is None else value for value in values]
                numpy.testing.assert_array_equal(numpy.array(values, stored.dtype), stored[:], f"{table}/{column['name']}")
            else:
                assert values == list(stored.asstr()[:]), column
            compared += 1
print(compared)
"#;

#[test]
fn the_json_form_has_the_values_that_h5py_reads() {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("left out: set HPML_PYTHON to a Python with h5py (tests/requirements.txt)");
        return;
    };
    let folder = folder();
    let file = trained(folder.path());
    let mut command = Command::new(python);
    command.args(["-c", COMPARED, env!("CARGO_BIN_EXE_hpml"), text(&file)]);
    let compared = Mpirun::command(command).run().succeeded().stdout;
    assert!(compared.trim().parse::<usize>().unwrap() > 40, "{compared}");
}

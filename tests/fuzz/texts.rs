//! Parsers that need no large file: configuration, arguments, records of CIFAR-10, samplers.

use std::fs;
use std::path::Path;

use clap::Parser;
use hpml::cli::Cli;
use hpml::config::{Config, Plan, documented_defaults};
use hpml::data::{BatchPlan, CIFAR10, Sampler};
use hpml::predict::Machine;

use super::Case;
use super::mutate::{Random, damage};

/// Words of configurations, valid and invalid.
const WORDS: [&str; 60] = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1",
    "1e999",
    "-1e-400",
    "9223372036854775807",
    "-9223372036854775808",
    "0xff",
    "18446744073709551616",
    "0.1",
    "true",
    "false",
    "\"\"",
    "\"net\"",
    "\"resnet18\"",
    "\"\\u0000\"",
    "\"\\uD800\"",
    "'''",
    "\"\"\"",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "{}",
    "[]",
    "=",
    ".",
    ",",
    "#",
    "\n",
    "\r\n",
    "\0",
    "\u{feff}",
    "é",
    "1979-05-27T07:32:00Z",
    "00:00:00.9",
    "[train]\n",
    "[optim]\n",
    "[[study.variants]]\n",
    "name = \"a\"\n",
    "set = [\"train.lr=1\"]\n",
    "train.epochs",
    "train.batch_per_rank",
    "train.global_batch",
    "schedule.milestones",
    "sweep.batch_per_rank",
    "data.mean",
    "checkpoint.every_minutes",
    "parallel.bucket_mb",
    "run.seed",
    "../../etc/passwd",
    "--set",
    "--data",
    "1..16777216",
    "999999999G",
];

const COMMANDS: [&str; 12] = [
    "train",
    "config",
    "inspect",
    "sweep",
    "study",
    "predict",
    "quantize",
    "eval",
    "export",
    "allreduce",
    "collectives",
    "report",
];
const OPTIONS: [&str; 26] = [
    "--set",
    "--data",
    "--out",
    "--force",
    "--resume",
    "--ranks",
    "--batch",
    "--busbw",
    "--latency",
    "--model",
    "--save",
    "--min",
    "--max",
    "--factor",
    "--seconds",
    "--iters",
    "--collective",
    "--algorithm",
    "--machine",
    "--type",
    "--csv",
    "--html",
    "--plots",
    "--table",
    "--onnx",
    "x.h5",
];

/// Draws a text of words, nested brackets, or bytes.
fn any_text(random: &mut Random) -> String {
    match random.below(8) {
        0 => random.pick(&["[", "{a=", "(", "\"", "a.", "[[a]]\n", "-"]).repeat(random.below(20_000)),
        1 => {
            let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => (0..1 + random.below(4)).map(|_| random.pick(&WORDS)).collect(),
    }
}

/// The files of a folder of the repository, in the order of their texts.
fn texts_in(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
    let files = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let mut texts: Vec<String> = files.map(|path| fs::read_to_string(path).unwrap()).collect();
    texts.sort();
    texts
}

/// Feeds machines to predict for.
pub fn machine() -> Case {
    let corpus = texts_in("configs/machines");
    Box::new(move |random| {
        let other = &corpus[random.below(corpus.len())];
        let mut text = corpus[random.below(corpus.len())].clone().into_bytes();
        for _ in 0..1 + random.below(3) {
            damage(&mut text, None, other.as_bytes(), random);
        }
        match Machine::from_toml(&String::from_utf8_lossy(&text), "case") {
            Ok(machine) => {
                let (seconds, _) = machine.all_reduce(1 + random.below(1 << 20), 1e6);
                assert!(seconds >= 0.0 && seconds.is_finite(), "{seconds}: {machine:?}");
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    })
}

/// Feeds TOML files with `--set`.
pub fn config(folder: &Path) -> Case {
    let mut corpus = vec![documented_defaults(), Config::default().to_toml()];
    corpus.extend(texts_in("configs"));
    let keys: Vec<String> = Config::default().flattened().into_iter().map(|(key, _)| key).collect();
    let path = folder.join("case");
    Box::new(move |random| {
        let other = &corpus[random.below(corpus.len())];
        let mut text = corpus[random.below(corpus.len())].clone().into_bytes();
        for _ in 0..random.below(4) {
            if random.one_in(2) {
                damage(&mut text, None, other.as_bytes(), random);
            } else {
                let at = random.below(text.len() + 1);
                let end = (at + random.below(12)).min(text.len());
                text.splice(at..end, any_text(random).into_bytes());
            }
        }
        fs::write(&path, &text).unwrap();
        let overrides: Vec<String> = (0..random.below(3))
            .map(|_| match random.below(6) {
                0 => any_text(random),
                _ => format!("{}={}", keys[random.below(keys.len())], any_text(random)),
            })
            .collect();
        let file = if random.one_in(3) { None } else { Some(path.as_path()) };
        match Config::load(file, &overrides) {
            // An accepted configuration is read back unchanged from the run file.
            Ok(config) => {
                let again: Config = toml::from_str(&config.to_toml()).expect("what hpml writes it reads");
                assert_eq!(again, config, "{overrides:?}");
                assert!(again.with_overrides(&[], "again").is_ok());
                if let Ok(plan) = Plan::new(config, 1 + random.below(1 << 20)) {
                    assert!(plan.train.batch_per_rank > 0);
                }
            }
            Err(error) => {
                let message = error.to_string();
                let given = text.len() + overrides.iter().map(String::len).sum::<usize>();
                assert!(message.len() < 2000 + 4 * given && !message.contains('\n'), "{message}");
            }
        }
    })
}

/// Feeds command lines.
pub fn arguments() -> Case {
    Box::new(|random| {
        let mut args = vec!["hpml".to_owned(), random.pick(&COMMANDS).to_owned()];
        for _ in 0..random.below(6) {
            let option = random.pick(&OPTIONS);
            args.push(match random.below(4) {
                0 => any_text(random),
                1 => format!("{option}={}", any_text(random)),
                _ => option.to_owned(),
            });
        }
        match Cli::try_parse_from(&args) {
            Ok(cli) => drop(format!("{cli:?}")),
            Err(error) => drop(error.to_string()),
        }
    })
}

/// Feeds few records instead of 10,000 to the function that reads all records.
pub fn cifar() -> Case {
    Box::new(|random| {
        let records = random.below(4);
        let mut bytes: Vec<u8> = Vec::with_capacity(records * 3073);
        for _ in 0..records {
            bytes.push(random.below(10) as u8);
            bytes.extend([random.next() as u8; 3072]);
        }
        let whole = bytes.clone();
        for _ in 0..random.below(3) {
            damage(&mut bytes, None, &whole, random);
        }
        let read = CIFAR10.labels_of(Path::new("data_batch_1.bin"), &bytes, records);
        let right = bytes.len() == records * 3073 && bytes.iter().step_by(3073).all(|&label| label < 10);
        assert_eq!(read.is_ok(), right);
        if let Ok(labels) = read {
            assert_eq!(labels.len(), records);
            assert!(labels.iter().all(|&label| label < 10));
        }
    })
}

/// Checks the sampler for any number of samples and ranks: the shares have equal length and together hold all samples.
pub fn sampler() -> Case {
    Box::new(|random| {
        let most = if random.one_in(10) { 5000 } else { 9 };
        let ranks = 1 + random.below(most);
        let samples = random.below(300);
        let (shuffle, drop_last) = (random.one_in(2), random.one_in(2));
        let (seed, epoch) = (random.next(), random.next());
        let share = |rank: usize| {
            let mut sampler = Sampler::new(samples, ranks, rank, shuffle, drop_last, seed);
            sampler.set_epoch(epoch);
            sampler.indices()
        };
        let shares: Vec<Vec<u32>> = (0..ranks.min(9)).map(share).collect();
        assert!(shares.iter().all(|share| share.len() == shares[0].len()));
        let mut all: Vec<u32> = shares.concat();
        assert!(all.iter().all(|&index| (index as usize) < samples));
        all.sort_unstable();
        all.dedup();
        if ranks <= 9 {
            assert_eq!(all.len(), if drop_last { samples / ranks * ranks } else { samples });
        }
        let mut plan = BatchPlan::even(shares[0].clone(), 1 + random.below(64));
        plan.skip(random.below(8));
        plan.truncate(random.below(8));
        assert_eq!(plan.sizes.iter().sum::<usize>(), plan.indices.len());
    })
}

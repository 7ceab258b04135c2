//! The collectives under the real launcher: every sum right, by each algorithm and for odd sizes.

use std::path::Path;
use std::sync::Arc;

use crate::common::{Mpirun, column, folder, texts};
use hpml::collective::{AllReduce, Bf16, Communicator, Element, Universe, WaitPolicy};
use hpml::config::{Algorithm, Parallel};
use hpml::metrics::Kind;

const ALGORITHMS: [Algorithm; 6] =
    [Algorithm::Auto, Algorithm::Shared, Algorithm::Halving, Algorithm::Hierarchical, Algorithm::Ring, Algorithm::Mpi];

#[test]
fn every_sum_is_right_on_one_to_four_ranks() {
    let folder = folder();
    for ranks in 1..=4 {
        let out = folder.path().join(format!("{ranks}.h5"));
        let sizes = ["--min", "2", "--max", "300000", "--factor", "7", "--iters", "3"];
        let ways = ["--algorithm", "auto", "--algorithm", "halving", "--algorithm", "ring", "--algorithm", "mpi"];
        let run = Mpirun::ranks(ranks).arg("allreduce").args(sizes).args(ways).args(["--out", out.to_str().unwrap()]);
        let run = run.run().succeeded();
        assert!(run.stdout.contains("busbw") && run.stdout.contains("wrong"), "{}", run.stdout);
        let wrong = column(&out, "allreduce/wrong");
        // 9 sizes (the gradients of net among them) of float32, 9 of bf16; three algorithms, since auto and halving are shared on one host;
        // in place and out of place.
        assert_eq!(wrong.len(), (9 + 9) * 3 * 2);
        assert!(wrong.iter().all(|&count| count == 0.0), "{ranks} ranks: {wrong:?}");
        let counts = column(&out, "allreduce/count");
        assert!(counts.contains(&1.0) && counts.contains(&61_770.0), "{counts:?}");
        for way in ["shared", "ring", "mpi"] {
            assert!(texts(&out, "allreduce/algorithm").iter().any(|used| used == way), "{way} was not measured");
        }
        assert!(column(&out, "allreduce/min").iter().all(|&seconds| seconds > 0.0));
    }
}

#[test]
fn every_collective_gives_every_rank_what_it_should() {
    let folder = folder();
    for ranks in [2, 3, 4] {
        let out = folder.path().join(format!("{ranks}.h5"));
        let sizes = ["--min", "2", "--max", "700000", "--factor", "60", "--iters", "2"];
        let run = Mpirun::ranks(ranks).arg("collectives").args(sizes).args(["--out", out.to_str().unwrap()]);
        let run = run.run().succeeded();
        assert!(run.stdout.contains("Collectives by size"), "{}", run.stdout);
        let wrong = column(&out, "allreduce/wrong");
        assert!(wrong.iter().all(|&count| count == 0.0), "{ranks} ranks: {wrong:?}");
        let rows: Vec<_> =
            texts(&out, "allreduce/collective").into_iter().zip(texts(&out, "allreduce/algorithm")).collect();
        for (collective, algorithm) in [
            ("all_reduce", "shared"),
            ("all_gather", "pairwise"),
            ("all_gather", "mpi"),
            ("reduce_scatter", "mpi"),
            ("broadcast", "mpi"),
            ("all_to_all", "pairwise"),
            ("all_to_all", "mpi"),
        ] {
            let measured = rows.iter().any(|row| (row.0.as_str(), row.1.as_str()) == (collective, algorithm));
            assert!(measured, "{collective} by {algorithm} was not measured");
        }
        // nccl-tests' definition, from the columns beside it.
        let all = ["size", "time", "busbw"].map(|name| column(&out, &format!("allreduce/{name}")));
        let n = ranks as f64;
        for (row, (collective, _)) in rows.iter().enumerate() {
            let share = match collective.as_str() {
                "all_reduce" => 2.0 * (n - 1.0) / n,
                "broadcast" => 1.0,
                _ => (n - 1.0) / n,
            };
            assert!((all[2][row] / (all[0][row] / all[1][row] / 1e9 * share) - 1.0).abs() < 1e-9, "{collective}");
        }
    }
}

#[test]
fn two_ranks_train_to_the_same_parameters_whichever_way_the_gradients_go() {
    let folder = folder();
    let train = |way: &str| {
        let out = folder.path().join(format!("{way}.h5"));
        Mpirun::ranks(2)
            .args([
                "train",
                "--out",
                out.to_str().unwrap(),
                "--set",
                "train.max_steps=7",
                "--set",
                "data.test_samples=50",
            ])
            .args(["--set", "parallel.bucket_mb=0.05", "--set", &format!("parallel.all_reduce={way}")])
            .run()
            .succeeded();
        out
    };
    let left_by = |file: &Path| (texts(file, "epochs/parameter_checksum"), column(file, "comm/bytes")[1]);
    // The sum of two numbers does not depend on their order, so not even the last bit may differ.
    let reference = left_by(&train("mpi"));
    for way in ["auto", "halving", "ring"] {
        assert_eq!(left_by(&train(way)), reference, "{way}");
    }
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    for (args, named) in [
        (["--min", "1M", "--max", "8"], "--max"),
        (["--min", "0", "--max", "8"], "--min"),
        (["--factor", "1", "--max", "8"], "--factor"),
        (["--algorithm", "tree", "--max", "8"], "--algorithm"),
    ] {
        let run = Mpirun::alone().arg("allreduce").args(args).run();
        assert!(!run.status.success() && run.stderr.contains(named), "{}", run.stderr);
    }
}

/// Lets part of the ranks reduce among themselves, as a sweep over rank counts does. Starts this very file under mpirun.
#[test]
fn a_part_of_the_ranks_reduces_on_its_own() {
    let mut command = crate::common::launcher();
    command.args(["-n", "4"]).arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "allreduce::on_each_of_four_ranks", "--test-threads=1"]);
    Mpirun::command(command).run().succeeded();
}

#[test]
#[ignore = "runs under mpirun, started by a_part_of_the_ranks_reduces_on_its_own"]
fn on_each_of_four_ranks() {
    let universe = Universe::start().unwrap();
    let world = universe.world();
    for members in [1, 2, 3, 4] {
        let part = world.split((world.rank() < members).then_some(0)).unwrap();
        assert_eq!(part.is_some(), world.rank() < members);
        if let Some(part) = part {
            assert_eq!((part.rank(), part.size()), (world.rank(), members));
            let part = Arc::new(part);
            for algorithm in ALGORITHMS {
                sums_are_right::<f32>(&part, algorithm);
                sums_are_right::<Bf16>(&part, algorithm);
            }
        }
    }
    // Two groups side by side.
    let part = Arc::new(world.split(Some(world.rank() % 2)).unwrap().unwrap());
    ALGORITHMS.into_iter().for_each(|algorithm| sums_are_right::<f32>(&part, algorithm));
    world.barrier().unwrap();
}

fn sums_are_right<T: Element>(ranks: &Arc<Communicator>, algorithm: Algorithm) {
    const ELEMENTS: usize = 100;
    let before = ranks.ledger();
    let all_reduce = AllReduce::new(ranks.clone(), &Parallel { all_reduce: algorithm, ..Parallel::default() }).unwrap();
    let mut buffer = all_reduce.buffer::<T>(ELEMENTS).unwrap();
    let regions = [0..ELEMENTS, 17..18, 5..5, 33..77];
    for region in regions.clone() {
        for (index, element) in buffer.as_mut_slice().iter_mut().enumerate() {
            *element = T::from_f32((index % 7 + ranks.rank()) as f32);
        }
        all_reduce.reduce(Kind::Gradients, &mut buffer.region(region.clone()), WaitPolicy::Sleep).unwrap();
        for (index, element) in buffer.as_slice().iter().enumerate() {
            let sum = (0..ranks.size()).map(|rank| (index % 7 + rank) as f32).sum();
            let own = (index % 7 + ranks.rank()) as f32;
            let expected = if region.contains(&index) { sum } else { own };
            assert_eq!(element.to_f32(), expected, "{algorithm:?}, element {index} of {region:?}");
        }
    }
    let counted = ranks.ledger().since(&before, Kind::Gradients);
    let bytes: usize = regions.iter().map(|region| region.len() * size_of::<T>()).sum();
    let messages = if ranks.size() == 1 { (0, 0) } else { (regions.len() as u64, bytes as u64) };
    assert_eq!((counted.messages, counted.bytes), messages, "{algorithm:?}");
}

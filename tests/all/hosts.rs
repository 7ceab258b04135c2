//! Several hosts on one machine: network namespaces with links of 1 Gbit/s (`tests/lab/hosts.sh`). Needs root; left out
//! elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::hosts::Hosts;
use crate::common::{Mpirun, assert_refused, checkpoints, column, folder, launcher, text, texts};
use hpml::store;

#[test]
fn every_sum_is_right_between_hosts() {
    let Some(hosts) = Hosts::up(8, "every_sum_is_right_between_hosts") else { return };
    let folder = folder();
    for (count, per_host) in [(2, 2), (3, 1), (4, 1), (5, 1), (7, 1), (8, 1)] {
        let out = folder.path().join(format!("{count}x{per_host}.h5"));
        let sizes = ["allreduce", "--min", "2", "--max", "1M", "--factor", "40", "--iters", "2"];
        let ways: &[&str] = if count < 5 { &["auto", "shared", "halving", "ring"] } else { &["halving"] };
        let mut run = hosts.hpml(count, per_host).args(sizes).args(["--out", out.to_str().unwrap()]);
        for way in ways {
            run = run.args(["--algorithm", *way]);
        }
        let run = run.run().succeeded();
        assert!(run.stdout.contains(&hosts.name(count - 1)), "the ranks are on one host\n{}", run.stdout);
        let wrong = column(&out, "allreduce/wrong");
        assert!(wrong.iter().all(|&count| count == 0.0), "{count} x {per_host} ranks: {wrong:?}");
        // Two levels where the algorithm has them, which make up the whole.
        let ways_of_rows = texts(&out, "allreduce/algorithm");
        let [time, within, between] =
            ["time", "within", "between"].map(|name| column(&out, &format!("allreduce/{name}")));
        for (row, way) in ways_of_rows.iter().enumerate() {
            let whole = within[row] + between[row];
            match way.as_str() {
                "shared" | "halving" => assert!((whole / time[row] - 1.0).abs() < 1e-9 && between[row] > 0.0, "{way}"),
                _ => assert!(whole.is_nan(), "{way}"),
            }
        }
        for way in ways.iter().filter(|way| **way != "auto") {
            assert!(texts(&out, "allreduce/algorithm").iter().any(|used| used == way), "{way} was not measured");
        }
        let header = format!("# all-reduce between {count} hosts: ");
        assert_eq!(run.stdout.contains(&header), ways.contains(&"auto"), "{}", run.stdout);
    }
}

#[test]
fn racks_are_reduced_level_by_level() {
    let Some(hosts) = Hosts::up(6, "racks_are_reduced_level_by_level") else { return };
    hosts.part_into_racks();
    let folder = folder();
    // Every other rank in the other rack, as a round-robin placement does it.
    let racks = |ranks: usize, rack_of_rank: &str| {
        let wrapper = format!("export HPML_RACK={rack_of_rank}; exec \"$0\" \"$@\"");
        let sizes = ["--collective", "all_reduce", "--min", "2", "--max", "200K", "--factor", "300", "--iters", "2"];
        let ways = ["auto", "shared", "halving", "hierarchical"].iter().flat_map(|way| ["--algorithm", way]);
        let program = ["sh", "-c", &wrapper, env!("CARGO_BIN_EXE_hpml"), "collectives"];
        hosts.program(ranks, 1, &program).args(sizes).args(ways)
    };
    for count in [4, 6] {
        let out = folder.path().join(format!("{count}.h5"));
        let run = racks(count, "r$((OMPI_COMM_WORLD_RANK % 2))").args(["--out", text(&out)]).run().succeeded();
        let line = format!("# levels: {count} hosts of 1 rank in 2 racks of {} hosts", count / 2);
        assert!(run.stdout.contains(&line), "{}", run.stdout);
        assert!(column(&out, "allreduce/wrong").iter().all(|&count| count == 0.0), "{}", run.stdout);
        let names = ["time", "between", "between_racks"].map(|name| column(&out, &format!("allreduce/{name}")));
        for (row, way) in texts(&out, "allreduce/algorithm").iter().enumerate() {
            let [time, between, racks] = [&names[0], &names[1], &names[2]].map(|column| column[row]);
            let is_part = 0.0 < racks && racks < between && between <= time;
            assert_eq!(is_part, way == "hierarchical", "{way}: {time} {between} {racks}");
        }
        // What leaves a rack: 2 (r-1)/r of the buffer, but 2 (n-1)/n by a ring of n hosts.
        let (algorithms, levels) = (texts(&out, "levels/algorithm"), texts(&out, "levels/level"));
        let leaving = |algorithm: &str| {
            let row = (0..levels.len()).find(|&row| algorithms[row] == algorithm && levels[row] == "rack");
            column(&out, "levels/leaving")[row.unwrap()]
        };
        assert!((leaving("hierarchical") - 1.0).abs() < 1e-12);
        assert!((leaving("shared") - 2.0 * (1.0 - 1.0 / count as f64)).abs() < 1e-12);
        // Hops are measured on the levels that have a network.
        let hops = column(&out, "levels/hop_latency");
        let of = |level: &str| hops[levels.iter().position(|one| one == level).unwrap()];
        assert!(of("host").is_nan() && of("rack") >= 0.0 && of("system") >= 0.0, "{hops:?}");
    }
    let run = racks(2, "$(test $OMPI_COMM_WORLD_RANK = 1 || echo r0)").run();
    assert_refused(&run, &["HPML_RACK on rank 1: is not set"]);
    // Three hosts in two racks: no slices to exchange, but an order, in which every sum is right.
    let out = folder.path().join("3.h5");
    let run = racks(3, "r$((OMPI_COMM_WORLD_RANK % 2))").args(["--out", text(&out)]).run().succeeded();
    assert!(run.stdout.contains("3 hosts of 1 rank in 2 racks of 1 to 2 hosts"), "{}", run.stdout);
    assert!(column(&out, "allreduce/wrong").iter().all(|&count| count == 0.0), "{}", run.stdout);
    assert!(texts(&out, "allreduce/algorithm").iter().all(|way| way != "hierarchical"), "{}", run.stdout);
}

#[test]
fn ranks_of_one_host_in_two_racks_are_refused() {
    let mut command = launcher();
    let wrapper = "HPML_RACK=${OMPI_COMM_WORLD_RANK:-$PMI_RANK} exec \"$0\" collectives --max 64";
    command.args(["-n", "2", "sh", "-c", wrapper, env!("CARGO_BIN_EXE_hpml")]);
    let run = Mpirun::command(command).run();
    assert_refused(&run, &["HPML_RACK on rank 1: differs from that of another rank of its host"]);
}

#[test]
fn a_resumed_training_keeps_the_all_reduce_of_its_checkpoint() {
    let Some(hosts) = Hosts::up(4, "a_resumed_training_keeps_the_all_reduce_of_its_checkpoint") else { return };
    let folder = folder();
    let train = |name: &str, epochs: usize, more: &[&str]| {
        let out = folder.path().join(name);
        let run = hosts.hpml(4, 1).args(["train", "--out", text(&out), "--set", &format!("train.epochs={epochs}")]);
        let run = run.args(["--set", "data.train_samples=512", "--set", "data.test_samples=40"]);
        let run = run.args(["--set", "checkpoint.every_epochs=1", "--set", "launch.threads=1"]);
        run.args(more).run().succeeded();
        (store::read_config(&out).unwrap().parallel.crossovers, texts(&out, "epochs/parameter_checksum"))
    };
    // Halving adds four gradients in pairs, a ring one after the other: the last bits differ.
    let halving = ["--set", "parallel.crossovers=[0,1099511627776]"];
    let (pinned, whole) = train("whole.h5", 2, &halving);
    assert_eq!(pinned, [0, 1 << 40]);
    // The gradients of `net` are one bucket, which halving carries.
    let levels =
        ["algorithm", "level", "carrier"].map(|name| texts(&folder.path().join("whole.h5"), &format!("levels/{name}")));
    assert_eq!(levels.map(|texts| texts.join(" ")), ["halving halving", "host system", "shared memory halving"]);
    assert_ne!(train("ring.h5", 2, &["--set", "parallel.crossovers=[0,0]"]).1, whole);
    train("parts.h5", 1, &halving);
    assert_eq!(train("parts.h5", 2, &["--resume", "auto"]), (pinned, whole));
}

#[test]
fn a_resumed_sweep_keeps_the_all_reduce_that_it_measured() {
    let Some(hosts) = Hosts::up(2, "a_resumed_sweep_keeps_the_all_reduce_that_it_measured") else { return };
    let folder = folder();
    let out = folder.path().join("sweep.h5");
    let sweep = |more: &[&str]| {
        let run = hosts.hpml(2, 1).args(["sweep", "--out", text(&out), "--set", "sweep.batch_per_rank=[4]"]);
        let run = run.args(["--set", "sweep.seconds=0.2", "--set", "sweep.rounds=1", "--set", "sweep.precision=0.5"]);
        let stdout = run.args(more).run().succeeded().stdout;
        assert!(stdout.contains("# all-reduce between 2 hosts: "), "{stdout}");
        let names = ["ranks", "hosts", "mpi_below", "hierarchical_from", "ring_from", "hop_latency", "hop_bandwidth"];
        names.map(|name| column(&out, &format!("crossovers/{name}")))
    };
    let measured = sweep(&[]);
    assert_eq!((&measured[0][..], &measured[1][..]), (&[2.0][..], &[2.0][..]));
    // A second measurement would never take the same time to the last bit.
    assert_eq!(sweep(&["--resume"]), measured);
}

#[test]
fn two_hosts_train_to_the_parameters_of_two_ranks_on_one() {
    let Some(hosts) = Hosts::up(2, "two_hosts_train_to_the_parameters_of_two_ranks_on_one") else { return };
    let folder = folder();
    // Three buckets above the ring's least size: the first two on the communication thread, during the backward pass.
    let train = |run: Mpirun, out: PathBuf| {
        run.args(["train", "--out", out.to_str().unwrap(), "--set", "model.name=resnet18", "--set", "model.width=16"])
            .args(["--set", "train.max_steps=3", "--set", "data.test_samples=40", "--set", "parallel.bucket_mb=0.5"])
            .args(["--set", "launch.threads=1"])
            .run()
            .succeeded();
        texts(&out, "epochs/parameter_checksum")
    };
    let apart = train(hosts.hpml(2, 1), folder.path().join("apart.h5"));
    let together = train(Mpirun::ranks(2), folder.path().join("together.h5"));
    assert_eq!(apart, together);
}

#[test]
fn a_host_that_is_cut_off_ends_the_job_and_loses_nothing() {
    let Some(hosts) = Hosts::up(2, "a_host_that_is_cut_off_ends_the_job_and_loses_nothing") else { return };
    let folder = folder();
    let out = folder.path().join("run.h5");
    let train = |run: Mpirun, epochs: usize| {
        run.args(["train", "--out", text(&out), "--resume", "auto", "--set", &format!("train.epochs={epochs}")])
            .args(["--set", "data.train_samples=1600", "--set", "data.test_samples=100"])
            .args(["--set", "checkpoint.every_epochs=1", "--set", "launch.comm_timeout_s=3"])
    };
    let run = train(hosts.hpml(2, 1), 10_000).timeout(Duration::from_secs(60)).spawn();
    let run = run.until("checkpoint", || !checkpoints(&out).is_empty());
    assert!(hosts.cut(1));
    let finished = run.wait();
    assert!(!finished.status.success(), "{}", finished.stdout);
    let told = finished.messages().into_iter().find(|message| message.contains("one of rank 1 has not"));
    assert!(told.is_some_and(|message| message.contains("after step")), "{}", finished.stderr);
    let newest = checkpoints(&out).pop().expect("a checkpoint");
    Mpirun::alone().args(["inspect", text(&newest)]).run().succeeded();
    train(Mpirun::ranks(2), 1).run().succeeded();
}

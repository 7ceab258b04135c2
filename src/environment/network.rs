//! The measured network between hosts: attributes of `/environment`, and the line that says what follows from it.

use crate::collective::{Crossovers, Link, Network};
use crate::table::Attribute;
use crate::units::{Bytes, counted, format_bytes, format_seconds, gigabytes_per_second};

/// Attributes of `/environment`: what was measured before the first all-reduce between hosts. `docs/run-file.md` explains them.
pub fn network(network: &Network) -> Vec<(String, Attribute)> {
    let link = |name: &str, link: &Link| (name.to_owned(), Attribute::Floats(vec![link.latency, link.bandwidth()]));
    vec![link("ring_hop", &network.hop), link("halving", &network.halving), link("mpi_all_reduce", &network.mpi)]
}

/// What `hosts` hosts do with buffers of which size; with what was measured, if it was.
pub fn describe_crossovers(hosts: usize, crossovers: Crossovers, measured: Option<&Network>) -> String {
    let Crossovers { mpi_below, ring_from } = crossovers;
    let size = |bytes: u64| format_bytes(bytes as Bytes);
    let mut parts = Vec::new();
    if mpi_below > 0 {
        parts.push(format!("mpi below {}", size(mpi_below)));
    }
    if mpi_below < ring_from && ring_from < Crossovers::NEVER {
        parts.push(format!("halving below {}", size(ring_from)));
    }
    parts.push(if ring_from < Crossovers::NEVER { "ring from there on" } else { "halving from there on" }.into());
    let why = measured.map_or("configured".into(), |network| {
        format!(
            "measured: a hop {} and {:.3} GB/s",
            format_seconds(network.hop.latency),
            gigabytes_per_second(network.hop.bandwidth())
        )
    });
    format!("all-reduce between {}: {} ({why})", counted(hosts, "host"), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_the_sizes_and_what_they_follow_from() {
        let line = |mpi_below, ring_from| describe_crossovers(3, Crossovers { mpi_below, ring_from }, None);
        assert_eq!(line(0, 0), "all-reduce between 3 hosts: ring from there on (configured)");
        let all = line(1000, 2_000_000);
        assert!(all.contains("mpi below 1.00 kB, halving below 2.00 MB, ring from there on"), "{all}");
        assert!(line(1000, Crossovers::NEVER).contains("mpi below 1.00 kB, halving from there on"));
        let link = Link { latency: 1e-4, per_byte: 1e-8 };
        let measured = Network { hosts: 2, hop: link, halving: link, mpi: link, within: 0.0 };
        let line = describe_crossovers(2, measured.crossovers(), Some(&measured));
        assert!(line.contains("measured: a hop 100") && line.contains("and 0.100 GB/s"), "{line}");
        assert_eq!(network(&measured).len(), 3);
    }
}

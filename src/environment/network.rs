//! The measured network between hosts: attributes of `/environment`, and the line that says what follows from it.

use crate::collective::{Crossovers, Link, Network};
use crate::table::Attribute;
use crate::units::{Bytes, counted, format_bytes, format_seconds, gigabytes_per_second};

/// Attributes of `/environment`: what was measured before the first all-reduce between hosts. `docs/run-file.md` explains them.
pub fn network(network: &Network) -> Vec<(String, Attribute)> {
    let link = |name: &str, link: &Link| (name.to_owned(), Attribute::Floats(vec![link.latency, link.bandwidth()]));
    let mut attributes =
        vec![link("ring_hop", &network.hop), link("halving", &network.halving), link("mpi_all_reduce", &network.mpi)];
    if let Some(racks) = &network.racks {
        attributes.push(("racks".into(), Attribute::Int(racks.count as i64)));
        attributes.extend([link("rack_hop", &racks.within), link("racks_hop", &racks.between)]);
    }
    attributes
}

/// What `hosts` hosts do with buffers of which size; with what was measured, if it was.
pub fn describe_crossovers(hosts: usize, crossovers: Crossovers, measured: Option<&Network>) -> String {
    let Crossovers { mpi_below, hierarchical_from, ring_from } = crossovers;
    let size = |bytes: u64| format_bytes(bytes as Bytes);
    let mut parts = Vec::new();
    if mpi_below > 0 {
        parts.push(format!("mpi below {}", size(mpi_below)));
    }
    let mut last = "ring";
    for (name, from, to) in [("halving", mpi_below, hierarchical_from), ("hierarchical", hierarchical_from, ring_from)]
    {
        if from < to && to < Crossovers::NEVER {
            parts.push(format!("{name} below {}", size(to)));
        } else if from < to {
            last = name;
            break;
        }
    }
    parts.push(format!("{last} from there on"));
    let racks = measured.and_then(|network| network.racks.as_ref());
    let why = measured.map_or("configured".into(), |network| {
        let hop = |link: &Link| {
            let (latency, bandwidth) = (format_seconds(link.latency), gigabytes_per_second(link.bandwidth()));
            format!("{latency} and {bandwidth:.3} GB/s")
        };
        let of_racks = racks.map_or(String::new(), |racks| {
            format!("; within racks {}, between them {} for each host", hop(&racks.within), hop(&racks.between))
        });
        format!("measured: a hop {}{of_racks}", hop(&network.hop))
    });
    let racks = racks.map_or(String::new(), |racks| format!(" in {} racks", racks.count));
    format!("all-reduce between {}{racks}: {} ({why})", counted(hosts, "host"), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::RackNetwork;

    #[test]
    fn the_line_names_the_sizes_and_what_they_follow_from() {
        let describe = |sizes: &[u64]| describe_crossovers(3, Crossovers::configured(sizes).unwrap(), None);
        let line = |mpi_below, ring_from| describe(&[mpi_below, ring_from]);
        assert_eq!(line(0, 0), "all-reduce between 3 hosts: ring from there on (configured)");
        let all = line(1000, 2_000_000);
        assert!(all.contains("mpi below 1.00 kB, halving below 2.00 MB, ring from there on"), "{all}");
        assert!(line(1000, Crossovers::NEVER).contains("mpi below 1.00 kB, halving from there on"));
        assert!(
            describe(&[0, 1000, 2000]).contains("hosts: halving below 1.00 kB, hierarchical below 2.00 kB, ring from")
        );
        assert!(describe(&[0, 1000, Crossovers::NEVER]).contains("halving below 1.00 kB, hierarchical from there on"));
        let link = Link { latency: 1e-4, per_byte: 1e-8 };
        let measured = Network { hosts: 2, hop: link, halving: link, mpi: link, within: 0.0, racks: None };
        let line = describe_crossovers(2, measured.crossovers(), Some(&measured));
        assert!(line.contains("measured: a hop 100") && line.contains("and 0.100 GB/s"), "{line}");
        assert_eq!(network(&measured).len(), 3);
        let racks = Some(RackNetwork { count: 2, hosts: [2, 2], within: link, between: link });
        let measured = Network { hosts: 4, racks, ..measured };
        let line = describe_crossovers(4, measured.crossovers(), Some(&measured));
        assert!(line.contains("between 4 hosts in 2 racks: ") && line.contains("within racks 100"), "{line}");
        assert_eq!(network(&measured).len(), 6);
    }
}

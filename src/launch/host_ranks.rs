//! The ranks of one host among each other: what a rank needs to know of others at the start it learns from these, so that it costs the
//! same in a job of any size; rank 0 alone learns the places of all, from one message per host.

use serde::{Deserialize, Serialize};

use super::places::Place;
use crate::collective::Communicator;
use crate::error::Result;
use crate::metrics::Kind;

/// The ranks of this rank's host.
pub(super) struct HostRanks {
    /// Communicator over them, in the order of the job's ranks.
    pub communicator: Communicator,
    /// Name of the host.
    pub name: String,
    /// Numbers of these ranks in the job, ascending.
    pub numbers: Vec<usize>,
}

/// Places of ranks of one host that differ in `local_rank` alone.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Alike {
    /// Number and local rank of each.
    ranks: Vec<(usize, usize)>,
    place: Place,
}

impl HostRanks {
    /// Finds the ranks of `all` with which this one shares memory and `name`. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn meet(all: &Communicator, name: String) -> Result<HostRanks> {
        let memory = all.split_by_host()?.counting_in(all);
        // Containers on one host may share its memory and have names of their own.
        let names = memory.all_gather_text(Kind::Control, &name)?;
        let first = names.iter().position(|other| *other == names[memory.rank()]);
        let communicator = match names.iter().all(|other| *other == names[0]) {
            true => memory,
            false => memory.split(first)?.expect("every rank passes a color").counting_in(all),
        };
        let numbers = communicator.all_gather(Kind::Control, &[all.rank() as u64])?;
        Ok(HostRanks { communicator, name, numbers: numbers.into_iter().map(|number| number as usize).collect() })
    }

    /// Rank of this process among those of its host, from 0.
    pub fn local_rank(&self) -> usize {
        self.communicator.rank()
    }

    /// The places of all ranks on rank 0 of `all`, in their order, given each rank's `own`; empty on the others. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn gather_places(&self, all: &Communicator, own: &Place) -> Result<Vec<Place>> {
        let own = serde_json::to_vec(own).expect("a flat struct has a JSON form");
        let texts = self.communicator.gather_varying(Kind::Control, &own)?;
        let here: Vec<Place> = texts.iter().map(|text| parse(text)).collect();
        let folded = if here.is_empty() { Vec::new() } else { to_json(&fold(&self.numbers, &here)) };
        let hosts = all.gather_varying(Kind::Control, &folded)?;
        let groups = hosts.iter().filter(|text| !text.is_empty()).flat_map(|text| parse::<Vec<Alike>>(text));
        let mut places: Vec<(usize, Place)> = groups.flat_map(unfold).collect();
        places.sort_by_key(|(number, _)| *number);
        Ok(places.into_iter().map(|(_, place)| place).collect())
    }
}

fn to_json(groups: &[Alike]) -> Vec<u8> {
    serde_json::to_vec(groups).expect("a flat struct has a JSON form")
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8]) -> T {
    serde_json::from_slice(text).expect("another rank of this program has written it")
}

/// Groups the `places` of the ranks `numbers`.
fn fold(numbers: &[usize], places: &[Place]) -> Vec<Alike> {
    let mut groups: Vec<Alike> = Vec::new();
    for (&number, place) in numbers.iter().zip(places) {
        let rank = (number, place.local_rank);
        let place = Place { local_rank: 0, ..place.clone() };
        match groups.iter_mut().find(|group| group.place == place) {
            Some(group) => group.ranks.push(rank),
            None => groups.push(Alike { ranks: vec![rank], place }),
        }
    }
    groups
}

/// The ranks of a group, each with its place; inverse of [`fold`].
fn unfold(group: Alike) -> impl Iterator<Item = (usize, Place)> {
    let Alike { ranks, place } = group;
    ranks.into_iter().map(move |(number, local_rank)| (number, Place { local_rank, ..place.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_share_their_cores_are_one_group_and_come_back_as_they_were() {
        let place = |local_rank: usize, device: &str| Place {
            host: "n\"1".into(),
            local_rank,
            device: device.into(),
            cpus: "0-3,8".into(),
            ..Place::default()
        };
        let (numbers, places) = ([2, 5, 7], [place(0, "cpu"), place(1, "cuda:1 A"), place(2, "cpu")]);
        let groups = fold(&numbers, &places);
        assert_eq!(
            groups.iter().map(|group| group.ranks.clone()).collect::<Vec<_>>(),
            [vec![(2, 0), (7, 2)], vec![(5, 1)]]
        );
        let mut back: Vec<_> = parse::<Vec<Alike>>(&to_json(&groups)).into_iter().flat_map(unfold).collect();
        back.sort_by_key(|(number, _)| *number);
        assert_eq!(back, numbers.into_iter().zip(places).collect::<Vec<_>>());
    }
}

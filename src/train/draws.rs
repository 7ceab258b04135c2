//! Random numbers that a network draws in training: those of dropout. In: seed, rank and device. Out: generators in a known state
//! at the first step, whose state goes into checkpoints and comes back.

use super::sampling::SEED_STRIDE;
use crate::device::Target;
use crate::error::Result;
use crate::sys::Generator;

/// Generators that a network draws from, with the names of their states in a checkpoint; none for a network that draws nothing.
pub struct Draws(Vec<(&'static str, Generator)>);

impl Draws {
    /// The generators of a network on `target`, seeded with `seed` + 1,000,000 x `rank` as by `torch.manual_seed`: every rank
    /// drops other values. No generators if the network draws nothing (`draws` is false).
    ///
    /// # Errors
    /// The GPU has failed.
    pub fn seeded(draws: bool, target: Target, seed: u64, rank: usize) -> Result<Draws> {
        let own = match target {
            Target::Gpu { index, .. } => Some(("gpu_generator", Generator::Gpu(index))),
            Target::Cpu | Target::Emulated => None,
        };
        let all = [Some(("cpu_generator", Generator::Cpu)), own];
        let draws = Draws(all.into_iter().flatten().filter(|_| draws).collect());
        for (_, generator) in &draws.0 {
            generator.seed(seed.wrapping_add(SEED_STRIDE * rank as u64))?;
        }
        Ok(draws)
    }

    /// The generators and their names.
    pub fn generators(&self) -> &[(&'static str, Generator)] {
        &self.0
    }

    /// States of the generators, by name.
    ///
    /// # Errors
    /// The GPU has failed.
    pub fn states(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        self.0.iter().map(|(name, generator)| Ok((*name, generator.state()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seeded;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn every_rank_draws_numbers_of_its_own_which_one_rank_shares_with_pytorch() {
        let draw = || Tensor::rand([100], (Kind::Float, Device::Cpu));
        let pytorch = seeded(5, draw);
        seeded(0, || {
            let [first, second] = [0, 1].map(|rank| {
                Draws::seeded(true, Target::Cpu, 5, rank).unwrap();
                draw()
            });
            assert!(first.equal(&pytorch) && !first.equal(&second));
            assert!(Draws::seeded(false, Target::Cpu, 5, 0).unwrap().states().unwrap().is_empty());
        });
    }
}

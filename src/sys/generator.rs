//! libtorch's random number generators: one of the CPU and one per GPU, each shared by the whole process.

use std::ffi::c_int;

use super::libtorch::failure;
use crate::error::{Error, Result};

unsafe extern "C" {
    fn hpml_generator_seed(gpu: c_int, seed: u64) -> bool;
    fn hpml_generator_state(gpu: c_int, state: *mut u8, room: usize) -> usize;
    fn hpml_generator_restore(gpu: c_int, state: *const u8, bytes: usize) -> bool;
}

/// A default generator of libtorch, from which dropout draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generator {
    /// Generator of tensors on the CPU: a Mersenne Twister, seeded by the lower 32 bits of a seed.
    Cpu,
    /// Generator of tensors on the GPU with this number: a counter (Philox) and its seed.
    Gpu(usize),
}

impl Generator {
    /// Seeds it as `torch.manual_seed` does.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if there is no such generator, as for the other methods.
    pub fn seed(self, seed: u64) -> Result<()> {
        // SAFETY: takes numbers.
        ok(unsafe { hpml_generator_seed(self.index(), seed) })
    }

    /// State in libtorch's form, which [`restore`](Self::restore) takes: the bytes of `torch.get_rng_state()`.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if there is no such generator.
    pub fn state(self) -> Result<Vec<u8>> {
        // SAFETY: null stands for no room.
        let needed = unsafe { hpml_generator_state(self.index(), std::ptr::null_mut(), 0) };
        let mut bytes = vec![0; needed];
        // SAFETY: writes at most `bytes.len()` bytes.
        let written = unsafe { hpml_generator_state(self.index(), bytes.as_mut_ptr(), bytes.len()) };
        ok(needed > 0 && written == needed).map(|()| bytes)
    }

    /// Sets the state to that of an earlier [`state`](Self::state) of such a generator.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the bytes are no state, or there is no such generator.
    pub fn restore(self, state: &[u8]) -> Result<()> {
        // SAFETY: reads `state.len()` bytes.
        ok(unsafe { hpml_generator_restore(self.index(), state.as_ptr(), state.len()) })
    }

    fn index(self) -> c_int {
        match self {
            Generator::Cpu => -1,
            Generator::Gpu(index) => index as c_int,
        }
    }
}

fn ok(done: bool) -> Result<()> {
    if done { Ok(()) } else { Err(Error::Gpu { reason: format!("random numbers: {}", failure()) }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seeded;
    use tch::{Device, Kind, Tensor};

    fn draw() -> Tensor {
        Tensor::ones([1000], (Kind::Float, Device::Cpu)).dropout(0.3, true)
    }

    #[test]
    fn a_restored_generator_draws_what_it_would_have_drawn() {
        // `seeded` keeps the generator to this test.
        seeded(7, || {
            let _ = draw();
            let state = Generator::Cpu.state().unwrap();
            let (first, second) = (draw(), draw());
            assert!(!first.equal(&second));
            Generator::Cpu.restore(&state).unwrap();
            assert!(draw().equal(&first) && draw().equal(&second));
            // Half of a pair of normal numbers is kept for the next call, and is part of the state.
            let normal = || Tensor::randn([1], (Kind::Double, Device::Cpu));
            let _ = normal();
            let state = Generator::Cpu.state().unwrap();
            let next = normal();
            Generator::Cpu.restore(&state).unwrap();
            assert!(normal().equal(&next));
        });
    }

    #[test]
    fn seeding_is_torchs() {
        let drawn = seeded(11, draw);
        seeded(0, || {
            Generator::Cpu.seed(11).unwrap();
            assert!(draw().equal(&drawn));
        });
    }

    #[test]
    fn what_is_no_state_is_refused_and_changes_nothing() {
        seeded(3, || {
            let state = Generator::Cpu.state().unwrap();
            for wrong in [&[][..], &[0; 16], &state[1..], &[0xff; 5056]] {
                assert!(Generator::Cpu.restore(wrong).is_err(), "{} bytes", wrong.len());
            }
            assert_eq!(Generator::Cpu.state().unwrap(), state);
        });
    }
}

//! Reproducible damage.

/// The splitmix64 generator.
pub struct Random(u64);

impl Random {
    /// Generator of case `case`, always with the same numbers.
    pub fn of(case: u64) -> Random {
        let mut random = Random(case.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x68_706d_6c00);
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws 0 to `end` - 1; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// Numbers that often make programs fail.
pub const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    7,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x10000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX,
];

pub const FLOATS: [f64; 14] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-300,
    1e-45,
    1e15,
    1e300,
    -1e300,
    f64::MAX,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
];

/// Damages `bytes` once, around `place` if one is given.
pub fn damage(bytes: &mut Vec<u8>, place: Option<usize>, other: &[u8], random: &mut Random) {
    let at = match place {
        Some(place) => (place + random.below(96)).saturating_sub(16),
        None => random.below(bytes.len()),
    };
    let room = bytes.len().saturating_sub(at);
    if room == 0 {
        return;
    }
    match random.below(if place.is_some() { 8 } else { 12 }) {
        0..=2 => bytes[at] ^= 1 << random.below(8),
        3 | 4 => bytes[at] = random.next() as u8,
        5..=7 => {
            let width = (1 << random.below(4)).min(room);
            let number = match random.below(3) {
                0 => random.below(bytes.len() * 2) as u64, // a size or an address
                _ => NUMBERS[random.below(NUMBERS.len())],
            };
            bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        8 => bytes.truncate(at),
        9 => {
            let length = (1 + random.below(64)).min(room);
            let from = random.below(bytes.len() - length + 1);
            bytes.copy_within(from..from + length, at);
        }
        10 => {
            let length = (1 + random.below(256)).min(other.len());
            let from = random.below(other.len() - length + 1);
            let end = at + length.min(room);
            bytes.splice(at..end, other[from..from + length].iter().copied());
        }
        _ => {
            let length = (1 + random.below(32)).min(room);
            bytes[at..at + length].fill(if random.one_in(2) { 0 } else { 0xff });
        }
    }
}

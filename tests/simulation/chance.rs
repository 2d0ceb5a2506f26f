//! A random number generator whose seed determines the run (`SplitMix64`, by Steele, Lea and Flood).

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `from` to `to`.
    pub(crate) fn within(&mut self, from: i64, to: i64) -> i64 {
        let span = (to - from + 1).unsigned_abs();
        from + i64::try_from(self.next() % span).unwrap()
    }

    /// Returns true with this probability, in thousandths.
    pub(crate) fn often(&mut self, thousandths: i64) -> bool {
        self.within(0, 999) < thousandths
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.within(0, i64::try_from(from.len()).unwrap() - 1)).unwrap()]
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.within(0, i64::try_from(len).unwrap() - 1)).unwrap()
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for n in (1..list.len()).rev() {
            list.swap(n, self.index(n + 1));
        }
    }
}

//! Counter-based randomness: Threefry-2x32 with 20 rounds, on the host.
//!
//! Every random number of a run is a pure function of `(seed, stream, step, sample, element)`: there is no state to
//! save, resuming or adding loader threads cannot change a draw, and every device sees the same bits because only
//! the host draws, but for weights ([`crate::ops::initial`]), which devices draw in integers. [`Key::fold`] derives a key for a sub-space (a stream, a step, a sample), [`Key::bits`] reads
//! element `i` of it.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), the cipher JAX uses by default.
//! Floating point goes through the `libm` crate, not the platform's C library, so that the bits do not depend on it.

/// What a draw is for. Streams never share bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Which frames make up a batch.
    Sampler = 1,
    /// Image augmentation parameters.
    Augment = 2,
    /// Initial noise of the candidate actions at `s`.
    Candidate = 3,
    /// Initial noise of the target action at `s'`.
    Target = 4,
    /// Noise of the behaviour cloning (flow matching) loss.
    BcNoise = 5,
    /// Time of the behaviour cloning (flow matching) loss.
    BcTime = 6,
    /// Critic dropout masks.
    Dropout = 7,
    /// Weight initialisation.
    Init = 8,
}

/// A Threefry key: names one independent sequence of random words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u32; 2]);

impl Key {
    /// The root key of a run.
    pub fn new(seed: u64) -> Self {
        Key([(seed >> 32) as u32, seed as u32])
    }

    /// The key of one stream of a run.
    pub fn stream(seed: u64, stream: Stream) -> Self {
        Key::new(seed).fold(stream as u64)
    }

    /// The key of sub-space `data`. Distinct `data` give independent keys.
    #[must_use]
    pub fn fold(self, data: u64) -> Self {
        // The cipher keyed by `self`, on a half of the counter space that `bits` never uses.
        let Key(k) = self;
        let high = threefry2x32([k[0] ^ 0x5bd1_e995, k[1]], [(data >> 32) as u32, data as u32]);
        Key(high)
    }

    /// Element `index` of this key's sequence: two independent uniform 32-bit words.
    pub fn bits(self, index: u64) -> [u32; 2] {
        threefry2x32(self.0, [(index >> 32) as u32, index as u32])
    }

    /// The key itself, for devices that draw by it.
    pub fn words(self) -> [u32; 2] {
        self.0
    }

    /// Uniform in `[0, 1)`, 53 random bits.
    pub fn uniform(self, index: u64) -> f64 {
        let [hi, lo] = self.bits(index);
        ((((hi as u64) << 32) | lo as u64) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `low..high` (both in the units of the caller).
    pub fn range(self, index: u64, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform(index)
    }

    /// Uniform integer in `0..n`; `n` must be positive. Bias is below `n / 2^64`.
    pub fn below(self, index: u64, n: u64) -> u64 {
        debug_assert!(n > 0);
        let [hi, lo] = self.bits(index);
        let word = ((hi as u64) << 32) | lo as u64;
        ((word as u128 * n as u128) >> 64) as u64
    }

    /// Fills `out` with standard normals (Box-Muller on pairs: elements `2i` and `2i+1` share counter `i`).
    pub fn normals(self, out: &mut [f32]) {
        for (i, pair) in out.chunks_mut(2).enumerate() {
            let [a, b] = self.bits(i as u64);
            // (0, 1]: the logarithm stays finite.
            let u = (a as f64 + 1.0) * (1.0 / 4_294_967_296.0);
            let angle = b as f64 * (std::f64::consts::TAU / 4_294_967_296.0);
            let radius = libm::sqrt(-2.0 * libm::log(u));
            pair[0] = (radius * libm::cos(angle)) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = (radius * libm::sin(angle)) as f32;
            }
        }
    }
}

/// Threefry-2x32, 20 rounds.
fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let ks = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let mut x = [counter[0].wrapping_add(ks[0]), counter[1].wrapping_add(ks[1])];
    for block in 0..5usize {
        for r in ROTATIONS[block % 2] {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(r) ^ x[0];
        }
        x[0] = x[0].wrapping_add(ks[(block + 1) % 3]);
        x[1] = x[1].wrapping_add(ks[(block + 2) % 3]).wrapping_add(block as u32 + 1);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, threefry2x32 20 rounds).
    #[test]
    fn cipher_meets_the_published_vectors() {
        assert_eq!(threefry2x32([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2x32([!0, !0], [!0, !0]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(
            threefry2x32([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]),
            [0xc492_3a9c, 0x483d_f7a0]
        );
    }

    #[test]
    fn normals_have_the_moments_of_a_normal() {
        let mut x = vec![0.0; 100_001];
        Key::stream(3, Stream::Candidate).fold(7).normals(&mut x);
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n;
        let var = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n;
        let fourth = x.iter().map(|&v| (v as f64 - mean).powi(4)).sum::<f64>() / n / (var * var);
        assert!(
            mean.abs() < 0.01 && (var - 1.0).abs() < 0.02 && (fourth - 3.0).abs() < 0.1,
            "{mean} {var} {fourth}"
        );
    }

    #[test]
    fn streams_steps_and_samples_do_not_share_bits() {
        let mut seen = std::collections::HashSet::new();
        for stream in [Stream::Sampler, Stream::Augment, Stream::Candidate, Stream::Target] {
            for step in 0..20 {
                for sample in 0..20 {
                    for i in 0..4 {
                        assert!(seen.insert(Key::stream(1, stream).fold(step).fold(sample).bits(i)));
                    }
                }
            }
        }
    }

    #[test]
    fn below_is_in_range_and_uniform() {
        let key = Key::new(9);
        let mut counts = [0usize; 7];
        for i in 0..70_000 {
            counts[key.below(i, 7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_500..10_500).contains(&c)), "{counts:?}");
    }
}

//! The Philox4x32-10 generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
//! (SC 2011, §3.3): a bijection of a 128-bit counter keyed by 64 bits, ten rounds of two widening
//! multiplications.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Key increments: the golden ratio and √3 − 1 (the "Weyl" constants of the paper).
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Counters worked on side by side: one AVX-512 register of words, or two AVX2 ones.
pub(crate) const LANES: usize = 16;
const LOW: u64 = 0xffff_ffff;
/// Words that one batch of counters yields.
pub(crate) const TILE: usize = 4 * LANES;

/// One 128-bit block: `counter` and the result are four words, the first the least significant.
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut x = counter;
    let mut k = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(x[0]) * u64::from(MULTIPLIER[0]);
        let p1 = u64::from(x[2]) * u64::from(MULTIPLIER[1]);
        x = [
            (p1 >> 32) as u32 ^ x[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ x[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    x
}

/// The sixteen blocks with counters `16·tile .. 16·tile + 16` of a stream, word by word:
/// `out[w][l]` is word `w` of counter `16·tile + l`. Written so that the compiler turns each inner
/// loop into vector instructions of whatever width the caller was compiled for: a word lives in the
/// low half of a 64-bit lane, which is where the widening multiplication of x86 wants it.
#[inline(always)]
pub(crate) fn tile(key: [u32; 2], stream: [u32; 2], tile: u64) -> [[u32; LANES]; 4] {
    // A multiple of 16, so that a lane never carries into the high word.
    let first = tile.wrapping_mul(LANES as u64);
    let mut x0 = [first & LOW; LANES];
    for (lane, word) in x0.iter_mut().enumerate() {
        *word |= lane as u64;
    }
    let mut x1 = [first >> 32; LANES];
    let mut x2 = [u64::from(stream[0]); LANES];
    let mut x3 = [u64::from(stream[1]); LANES];
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for lane in 0..LANES {
            let p0 = x0[lane].wrapping_mul(u64::from(MULTIPLIER[0]));
            let p1 = x2[lane].wrapping_mul(u64::from(MULTIPLIER[1]));
            x0[lane] = (p1 >> 32) ^ x1[lane] ^ u64::from(k0);
            x1[lane] = p1 & LOW;
            x2[lane] = (p0 >> 32) ^ x3[lane] ^ u64::from(k1);
            x3[lane] = p0 & LOW;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    let mut out = [[0; LANES]; 4];
    for lane in 0..LANES {
        out[0][lane] = x0[lane] as u32;
        out[1][lane] = x1[lane] as u32;
        out[2][lane] = x2[lane] as u32;
        out[3][lane] = x3[lane] as u32;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors distributed with the authors' Random123 library.
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn tile_is_sixteen_blocks() {
        let key = [0x1234_5678, 0x9abc_def0];
        let stream = [0xdead_beef, 0x0bad_cafe];
        // The last two cross from a low word of all ones into the high word.
        for number in [0, 1, 77, (1 << 28) - 1, 1 << 28, u64::MAX >> 4] {
            let words = tile(key, stream, number);
            for (lane, word0) in words[0].iter().enumerate() {
                let block = number * 16 + lane as u64;
                let counter = [block as u32, (block >> 32) as u32, stream[0], stream[1]];
                let expected = philox4x32_10(counter, key);
                let got = [*word0, words[1][lane], words[2][lane], words[3][lane]];
                assert_eq!(got, expected);
            }
        }
    }
}

//! A hash that is the same on every version and platform, unlike the standard library's.

/// Returns the 128-bit FNV-1a hash (draft-eastlake-fnv) of the parts, with a zero byte between them.
pub(crate) fn fnv1a_128(parts: &[&str]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let between = |index| if index == 0 { "" } else { "\0" };
    let bytes = parts.iter().enumerate().flat_map(|(index, part)| between(index).bytes().chain(part.bytes()));
    bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a_128(&[""]), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv1a_128(&["a"]), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn parts_are_told_apart() {
        assert_ne!(fnv1a_128(&["a", "b"]), fnv1a_128(&["ab"]));
        assert_eq!(fnv1a_128(&["a", "b"]), fnv1a_128(&["a\0b"]));
    }
}

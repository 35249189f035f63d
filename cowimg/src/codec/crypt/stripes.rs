//! A key spread over many stripes, so that it is lost when any part of them is: the anti-forensic splitter of LUKS
//! (On-Disk Format Specification 1.2.3, section 2.4).

use zeroize::{Zeroize, Zeroizing};

use super::HashAlgorithm;

/// Fills `stripes`, a multiple of the key's length whose last part gets the key itself; `random` fills the rest.
pub(super) fn spread<E>(
    hash: HashAlgorithm,
    key: &[u8],
    stripes: &mut [u8],
    random: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let Some(last) = stripes.len().checked_sub(key.len()) else { return Ok(()) };
    let (all_but_last, last) = stripes.split_at_mut(last);
    random(all_but_last)?;
    let mut mixed = mix(hash, all_but_last, key.len());
    xor(&mut mixed, key);
    last.copy_from_slice(&mixed);
    Ok(())
}

/// The key that `stripes` hold.
pub(super) fn gather(hash: HashAlgorithm, stripes: &[u8], key_len: usize) -> Zeroizing<Vec<u8>> {
    let (all_but_last, last) = stripes.split_at(stripes.len().saturating_sub(key_len));
    let mut key = mix(hash, all_but_last, key_len);
    xor(&mut key, last);
    key
}

/// All stripes mixed into one.
fn mix(hash: HashAlgorithm, stripes: &[u8], key_len: usize) -> Zeroizing<Vec<u8>> {
    let mut mixed = Zeroizing::new(vec![0; key_len]);
    for stripe in stripes.chunks_exact(key_len.max(1)) {
        xor(&mut mixed, stripe);
        diffuse(hash, &mut mixed);
    }
    mixed
}

/// Replaces each piece of a digest's length by the digest of its number and itself.
fn diffuse(hash: HashAlgorithm, block: &mut [u8]) {
    for (number, piece) in block.chunks_mut(hash.len()).enumerate() {
        let mut digest = hash.digest(&[&(number as u32).to_be_bytes(), piece]);
        piece.copy_from_slice(&digest[..piece.len()]);
        digest.zeroize();
    }
}

fn xor(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to ^= from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_and_a_changed_bit_loses_it() {
        for hash in HashAlgorithm::ALL {
            let key: Vec<u8> = (0..48).collect();
            let mut stripes = vec![0; 48 * 10];
            let random = |bytes: &mut [u8]| {
                bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 % 251) as u8);
                Ok::<_, ()>(())
            };
            spread(*hash, &key, &mut stripes, random).expect("random bytes");
            assert_eq!(*gather(*hash, &stripes, 48), key);
            stripes[100] ^= 1;
            assert_ne!(*gather(*hash, &stripes, 48), key);
        }
    }
}

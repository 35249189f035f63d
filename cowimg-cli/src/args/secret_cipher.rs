//! Secrets that are themselves encrypted, under a key that is another secret: AES with 256 bits, chained, filled up to
//! whole blocks as PKCS #7 has it.

use aes::Aes256;
use aes::cipher::array::Array;
use aes::cipher::{BlockModeDecrypt, KeyIvInit};

/// Bytes of the key.
const KEY_LEN: usize = 32;
/// Bytes of a block, and of the initialisation vector.
const BLOCK_LEN: usize = 16;

/// What `bytes` are under a key and an initialisation vector.
pub(super) fn decrypt(key: &[u8], vector: &[u8], mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    if key.len() != KEY_LEN {
        return Err(format!("the key of a secret has {KEY_LEN} bytes, and this one {}", key.len()));
    }
    if vector.len() != BLOCK_LEN {
        return Err(format!("iv has {} bytes; it must have {BLOCK_LEN}, in base64", vector.len()));
    }
    let cipher = cbc::Decryptor::<Aes256>::new_from_slices(key, vector);
    let mut cipher = cipher.map_err(|_| "key and iv do not fit the cipher".to_owned())?;
    let (blocks, rest) = Array::slice_as_chunks_mut(&mut bytes);
    if !rest.is_empty() || blocks.is_empty() {
        return Err(format!("an encrypted secret has whole blocks of {BLOCK_LEN} bytes"));
    }
    cipher.decrypt_blocks(blocks);
    let padding = usize::from(bytes.last().copied().unwrap_or(0));
    if padding > BLOCK_LEN {
        return Err("the secret does not decrypt with this key and iv".to_owned());
    }
    bytes.truncate(bytes.len() - padding);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl enc -aes-256-cbc` with this key and vector.
    const CIPHERTEXT: [u8; 16] =
        [0x34, 0x94, 0x95, 0xbd, 0xeb, 0x8a, 0x09, 0xfe, 0x93, 0x4f, 0xc4, 0xeb, 0x29, 0x24, 0x9f, 0x12];

    #[test]
    fn what_was_encrypted_comes_back() {
        let (key, vector) = ([b'k'; 32], [b'v'; 16]);
        assert_eq!(decrypt(&key, &vector, CIPHERTEXT.to_vec()).unwrap(), b"open sesame");
        assert!(decrypt(&key[1..], &vector, CIPHERTEXT.to_vec()).is_err());
        assert!(decrypt(&key, &vector[1..], CIPHERTEXT.to_vec()).is_err());
        assert!(decrypt(&key, &vector, CIPHERTEXT[1..].to_vec()).is_err());
        assert!(decrypt(&key, &vector, Vec::new()).is_err());
    }
}

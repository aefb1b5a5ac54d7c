//! A new key: what nobody can guess, and everybody recognizes.

use zeroize::Zeroizing;

use crate::admit::auth::api_key::PREFIX;
use crate::config::Secret;

/// The prefix and 256 random bits.
pub fn random_key() -> Result<Secret, String> {
    let mut bits = Zeroizing::new([0; 32]);
    getrandom::fill(bits.as_mut_slice())
        .map_err(|e| format!("the system gives no random numbers: {e}"))?;
    let mut key = String::with_capacity(PREFIX.len() + DIGITS);
    key.push_str(PREFIX);
    key.extend(base62(&mut bits).map(char::from));
    Ok(Secret::new(key))
}

/// Digits to base 62 that 256 bits need.
const DIGITS: usize = 43;

/// Letters and digits only: a double click takes all of it. Leaves zeros in the number's place.
fn base62(number: &mut [u8; 32]) -> [u8; DIGITS] {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = [0; DIGITS];
    for digit in text.iter_mut().rev() {
        let mut rest = 0;
        for byte in number.iter_mut() {
            let part = rest << 8 | usize::from(*byte);
            *byte = (part / 62) as u8;
            rest = part % 62;
        }
        *digit = ALPHABET[rest];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_to_base_62() {
        let mut small = [0; 32];
        small[30..].copy_from_slice(&[1, 0]); // 256 = 4 * 62 + 8
        assert!(base62(&mut small).ends_with(b"0048"));
        // 2^256 - 1
        let largest = base62(&mut [255; 32]);
        assert_eq!(&largest, b"yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1");
    }

    #[test]
    fn keys_have_the_prefix_and_are_never_the_same() {
        let (a, b) = (random_key().unwrap(), random_key().unwrap());
        assert!(a.expose().starts_with("ttk_") && a.expose().len() == 47);
        assert!(a != b);
    }
}

//! Keys as text: base64 of 32 bytes (RFC 4648, section 4), as `wg` shows them.

use zeroize::Zeroizing;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Characters of a key, its one `=` included.
pub const KEY_LEN: usize = 44;

/// The 44 characters of a key.
#[must_use]
pub fn encode(key: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(KEY_LEN));
    for chunk in key.chunks(3) {
        let bits = chunk.iter().fold(0u32, |all, b| all << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize]));
        }
    }
    text.push('=');
    text
}

/// A public key as `wg` shows it: 44 characters.
#[must_use]
pub fn public(key: &dataplane::tunnel::PublicKey) -> String {
    encode(&key.0).to_string()
}

/// The key of 44 characters; `None` if they are none, or are not how [`encode`] would write it.
#[must_use]
pub fn decode(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.as_bytes().strip_suffix(b"=").filter(|d| d.len() == KEY_LEN - 1)?;
    let mut key = Zeroizing::new([0u8; 32]);
    let (mut bits, mut held, mut at) = (0u32, 0, 0);
    for digit in digits {
        let value = ALPHABET.iter().position(|a| a == digit)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            *key.get_mut(at)? = (bits >> held & 0xff) as u8;
            at += 1;
        }
    }
    // 43 digits are 258 bits: the last two are zero, or two texts would mean the same key.
    (bits & 3 == 0).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_what_wg_writes() {
        // echo AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= | base64 -d | xxd
        let key = std::array::from_fn(|i| i as u8);
        assert_eq!(encode(&key).as_str(), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        assert_eq!(encode(&[0xff; 32]).as_str(), "//////////////////////////////////////////8=");
        for bad in [
            "",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8==",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdH-8=",
        ] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_key_comes_back(key in any::<[u8; 32]>()) {
            prop_assert_eq!(decode(&encode(&key)).map(|k| *k), Some(key));
        }

        #[test]
        fn what_is_decoded_is_written_alike(text in "[A-Za-z0-9+/]{43}=") {
            if let Some(key) = decode(&text) {
                prop_assert_eq!(&*encode(&key), &text);
            }
        }
    }
}

//! Sizes and offsets as people write them: `65536`, `64k`, `1.5G`, `0x10000`.
//!
//! ```text
//! size   = [blanks] ["+"] ( "0x" hex-digits | decimal [suffix] )
//! suffix = b (bytes) k M G T P E, in either case; each is 1024 times the one before it
//! ```
//!
//! A fraction needs a suffix that has room for it, and is rounded to the nearest byte. Hexadecimal numbers take
//! no suffix, because `0x1e` and `0x1b` would then have two meanings.

use std::ffi::OsString;
use std::fmt;

/// The largest size or offset: the largest file offset there is.
const MAX: u64 = i64::MAX as u64;

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// Not a number with a known suffix.
    NotASize(String),
    /// `1.5` or `1.5b`: there are no parts of bytes.
    PartOfAByte(String),
    /// Below zero.
    Negative(String),
    /// Above 2^63 - 1.
    TooLarge(String),
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SizeError::NotASize(text) => write!(
                f,
                "'{text}' is not a size; write a number of bytes, with a suffix k, M, G, T, P or E if you like (64k, \
                 1.5G), or a hexadecimal number (0x10000)"
            ),
            SizeError::PartOfAByte(text) => {
                write!(f, "'{text}' is a part of a byte; a fraction needs a suffix: k, M, G, T, P or E")
            }
            SizeError::Negative(text) => {
                write!(f, "'{text}' is below zero; it must be between 0 and {MAX} bytes")
            }
            SizeError::TooLarge(text) => {
                write!(f, "'{text}' is too large; it must be between 0 and {MAX} bytes")
            }
        }
    }
}

impl std::error::Error for SizeError {}

/// Parses a size or an offset in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, SizeError> {
    let number = text.trim_start();
    if let Some(rest) = number.strip_prefix('-')
        && parse_unsigned(rest, text).is_ok()
    {
        return Err(SizeError::Negative(text.to_owned()));
    }
    parse_unsigned(number.strip_prefix('+').unwrap_or(number), text)
}

/// Parses a number that is no size, as C writes them: hexadecimal after 0x, octal after 0.
pub(crate) fn parse_number(word: &str) -> Result<i128, String> {
    let (digits, is_negative) = word.strip_prefix('-').map_or((word, false), |digits| (digits, true));
    let parsed = match (digits.strip_prefix("0x").or(digits.strip_prefix("0X")), digits.strip_prefix('0')) {
        (Some(hexadecimal), _) => u64::from_str_radix(hexadecimal, 16),
        (None, Some(octal)) if !octal.is_empty() => u64::from_str_radix(octal, 8),
        (None, _) => digits.parse(),
    };
    let value = parsed.map_err(|_| format!("'{word}' is not a number"))?;
    Ok(if is_negative { -i128::from(value) } else { i128::from(value) })
}

/// What `resize` is told: a size, or a difference to the size that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeChange {
    /// Make it this many bytes.
    To(u64),
    /// Add this many bytes.
    Grow(u64),
    /// Take this many bytes away.
    Shrink(u64),
}

/// Stands before a negative size, so that it is not taken for options. No argument of a process has this byte.
const MARK: char = '\0';

/// The command line with a mark before every negative size of `resize`: `-5M` is one and `-q` an option.
pub(crate) fn mark_negative_sizes(arguments: &[OsString]) -> Vec<OsString> {
    let is_resize = arguments.get(1).is_some_and(|command| command == "resize");
    let is_negative_size = |argument: &&OsString| {
        let number = argument.to_str().and_then(|text| text.strip_prefix('-'));
        number.is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit() || first == '.'))
            && number.is_some_and(|number| parse_unsigned(number, number).is_ok())
    };
    let marked = |argument: &OsString| match Some(argument).filter(is_negative_size) {
        Some(size) if is_resize => {
            let mut marked = OsString::from(String::from(MARK));
            marked.push(size);
            marked
        }
        _ => argument.clone(),
    };
    arguments.iter().map(marked).collect()
}

/// Parses `SIZE`, `+SIZE` or `-SIZE`.
pub(crate) fn parse_size_change(text: &str) -> Result<SizeChange, SizeError> {
    let text = text.strip_prefix(MARK).unwrap_or(text);
    if let Some(more) = text.strip_prefix('+') {
        return parse_unsigned(more, text).map(SizeChange::Grow);
    }
    if let Some(less) = text.strip_prefix('-') {
        return parse_unsigned(less, text).map(SizeChange::Shrink);
    }
    parse_size(text).map(SizeChange::To)
}

/// Parses a number without a sign; `whole` is what the user wrote, for the message.
fn parse_unsigned(number: &str, whole: &str) -> Result<u64, SizeError> {
    let not_a_size = || SizeError::NotASize(whole.to_owned());
    let too_large = || SizeError::TooLarge(whole.to_owned());
    if let Some(digits) = number.strip_prefix("0x").or_else(|| number.strip_prefix("0X")) {
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_a_size());
        }
        return u64::from_str_radix(digits, 16).ok().filter(|&size| size <= MAX).ok_or_else(too_large);
    }
    let (digits, shift) = split_suffix(number);
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = integer.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
    if !all_digits || (integer.is_empty() && fraction.is_empty()) {
        return Err(not_a_size());
    }
    if shift == 0 && fraction.bytes().any(|digit| digit != b'0') {
        return Err(SizeError::PartOfAByte(whole.to_owned()));
    }
    let integer = if integer.is_empty() { 0 } else { integer.parse::<u128>().map_err(|_| too_large())? };
    let total =
        integer.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(fraction_bytes(fraction, shift)));
    total.filter(|&bytes| bytes <= u128::from(MAX)).map(|bytes| bytes as u64).ok_or_else(too_large)
}

/// The digits, and the power of two that the suffix stands for.
fn split_suffix(number: &str) -> (&str, u32) {
    let shift = match number.bytes().last().map(|byte| byte.to_ascii_lowercase()) {
        Some(b'b') => 0,
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        Some(b't') => 40,
        Some(b'p') => 50,
        Some(b'e') => 60,
        _ => return (number, 0),
    };
    (&number[..number.len() - 1], shift)
}

/// `0.fraction << shift`, rounded to the nearest byte. `fraction` is all digits.
///
/// In floating point, as qemu-img has it: of an exbibyte the last bytes differ from exact arithmetic, and the same
/// text is to make the same disk.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "powers of two are exact; never negative"
)]
fn fraction_bytes(fraction: &str, shift: u32) -> u128 {
    let part: f64 = format!("0.{fraction}").parse().unwrap_or(0.0);
    (part * (1_u64 << shift) as f64 + 0.5) as u128
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs that `qemu-img create` (10.0) printed for the same texts.
    #[test]
    fn sizes_mean_what_they_mean_to_qemu_img() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("1k", 1024),
            ("1K", 1024),
            ("1.5k", 1536),
            ("1.5G", 1610612736),
            ("0x200", 512),
            ("0X1F", 31),
            ("0xE", 14),
            ("0x10b", 267),
            ("1E", 1 << 60),
            ("1e", 1 << 60),
            ("100b", 100),
            ("1.0b", 1),
            ("1.", 1),
            (".5k", 512),
            ("5.k", 5120),
            ("0.1k", 102),
            ("0.9999k", 1024),
            ("0.00049k", 1),
            ("1.00001k", 1024),
            (" 10", 10),
            ("\t7k", 7168),
            ("+10", 10),
            ("+0x10", 16),
            ("010", 10),
            ("7E", 7 << 60),
            ("7.99E", 9211842821808707328),
            ("1.1E", 1268213655067531680),
            ("9223372036854775807", i64::MAX as u64),
            ("0x7fffffffffffffff", i64::MAX as u64),
            ("3.7T", 4068193022771),
            ("0.3T", 329853488333),
            ("0.0001T", 109951163),
            ("0.7M", 734003),
            ("0.999999999999999999999G", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_its_reason() {
        for text in [
            "", "k", ".", ".k", "0x", "0xg", "0x10k", "0x1.8k", "00x10", "1e3", "10 ", "1 k", "1.5 k", "1kb",
            "1KiB", "1kk", "1,5k", "1_000", "inf", "nan", "banana", "++7", "+ 7", "+-7", "--7", "1.2.3k",
            "٣",
        ] {
            assert_eq!(parse_size(text), Err(SizeError::NotASize(text.to_owned())), "{text:?}");
        }
        for text in ["1.5", "1.5b", "0.5"] {
            assert_eq!(parse_size(text), Err(SizeError::PartOfAByte(text.to_owned())), "{text:?}");
        }
        for text in ["-1", "-0", "-5M", " -1"] {
            assert_eq!(parse_size(text), Err(SizeError::Negative(text.to_owned())), "{text:?}");
        }
        for text in [
            "8E",
            "16E",
            "9223372036854775808",
            "18446744073709551616",
            "0x8000000000000000",
            "0x10000000000000000",
            "7.9999999999999999999E",
            "340282366920938463463374607431768211456",
            "340282366920938463463374607431768211455E",
        ] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge(text.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn a_sign_makes_a_change_of_size() {
        assert_eq!(parse_size_change("1M"), Ok(SizeChange::To(1 << 20)));
        assert_eq!(parse_size_change("+1M"), Ok(SizeChange::Grow(1 << 20)));
        assert_eq!(parse_size_change("-1.5k"), Ok(SizeChange::Shrink(1536)));
        assert_eq!(parse_size_change("+"), Err(SizeError::NotASize("+".to_owned())));
        assert_eq!(parse_size_change("+-1"), Err(SizeError::NotASize("+-1".to_owned())));
    }
}

//! Sizes for people: three significant digits and a binary unit, rounded as qemu-img rounds.

/// Units, each 1024 times the one before it.
const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// `bytes` as text: `196 KiB`, `2.25 MiB`, `0.977 MiB`.
///
/// A unit is used up to 999 of it, so that there are never four digits before the point: 1000 KiB is `0.977 MiB`.
/// (Just below that a number can still round up to a thousand; it is then written `1e+03`, as C's `%g` does it.)
pub(crate) fn human_size(bytes: u64) -> String {
    let exponent =
        (0..UNITS.len()).rev().find(|&exponent| starts_at(exponent) <= u128::from(bytes)).unwrap_or(0);
    // f64 holds sizes to 53 bits; three digits need 10.
    #[allow(clippy::cast_precision_loss, reason = "three digits are printed")]
    let value = bytes as f64 / (1_u64 << (10 * exponent)) as f64;
    format!("{} {}", three_digits(value), UNITS[exponent])
}

/// The smallest number of bytes that is written in a unit: a thousand of the unit below.
fn starts_at(exponent: usize) -> u128 {
    match exponent {
        0 => 0,
        _ => 1000 << (10 * (exponent - 1)),
    }
}

/// Three significant digits without trailing zeroes, for a value from 0.9 to 1000, or 0.
fn three_digits(value: f64) -> String {
    // The exponent after rounding: 99.97 becomes 100, which has no decimals.
    let scientific = format!("{value:.2e}");
    let decimals = match scientific.split_once('e').map(|(_, exponent)| exponent) {
        Some("3") => return "1e+03".to_owned(),
        Some("2") => return format!("{value:.0}"),
        Some("1") => 1,
        Some("-1") => 3,
        _ => 2,
    };
    format!("{value:.decimals$}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What qemu-img 10.0 printed for files of these sizes.
    #[test]
    fn sizes_are_rounded_as_qemu_img_rounds_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10752, "10.5 KiB"),
            (101888, "99.5 KiB"),
            (200704, "196 KiB"),
            (524288, "512 KiB"),
            (1000448, "977 KiB"),
            (1024000, "0.977 MiB"),
            (1047552, "0.999 MiB"),
            (1048576, "1 MiB"),
            (1234944, "1.18 MiB"),
            (1265664, "1.21 MiB"),
            (2297856, "2.19 MiB"),
            (2359296, "2.25 MiB"),
            (12345856, "11.8 MiB"),
            (123457024, "118 MiB"),
            (1045954560, "998 MiB"),
            (1047003136, "998 MiB"),
            (1072693248, "0.999 GiB"),
            (1234568192, "1.15 GiB"),
            (1 << 40, "1 TiB"),
            (1 << 60, "1 EiB"),
        ] {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn the_largest_size_has_a_text() {
        assert_eq!(human_size(u64::MAX), "16 EiB");
    }

    #[test]
    fn just_below_the_next_unit_is_written_as_c_writes_it() {
        assert_eq!(human_size(999 * 1024 + 512), "1e+03 KiB");
        assert_eq!(human_size(999), "999 B");
        assert_eq!(human_size(1000), "0.977 KiB");
    }
}

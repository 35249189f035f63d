//! Bytes as lines of hexadecimal numbers, with the characters that they stand for beside them.

use std::io::{self, Write};

/// Bytes in a line.
const LINE: usize = 16;

/// Writes `bytes`, whose first one stands at `offset`.
pub(crate) fn dump(bytes: &[u8], offset: u64, out: &mut dyn Write) -> io::Result<()> {
    for (line, start) in bytes.chunks(LINE).zip((offset..).step_by(LINE)) {
        write!(out, "{start:08x}: ")?;
        for byte in line {
            write!(out, " {byte:02x}")?;
        }
        write!(out, "{:width$}  ", "", width = 3 * (LINE - line.len()))?;
        for &byte in line {
            let shown = if byte == b' ' || byte.is_ascii_graphic() { byte } else { b'.' };
            out.write_all(&[shown])?;
        }
        out.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_last_line_keeps_its_columns() {
        let mut text = Vec::new();
        dump(b"0123456789abcdef\x00\xff", 0x1000, &mut text).unwrap();
        let expected = "00001000:  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  0123456789abcdef\n\
                        00001010:  00 ff                                            ..\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}

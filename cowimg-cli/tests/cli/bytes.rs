//! `read`, `write`, `zero` and `discard`: bytes of the disk, with qemu-io as the other reader and writer.

use std::fs;

use crate::workbench::Workbench;

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    next.take(len).collect()
}

#[test]
fn written_bytes_are_read_back_by_both_programs() {
    let bench = Workbench::with_images();
    let bytes = noise(2_500_000);
    fs::write(bench.path("noise"), &bytes).unwrap();

    bench.cowimg("write top.qcow2 1000000 --from noise").ok();
    assert!(bench.cowimg("read top.qcow2 1000000 2500000").ok().stdout == bytes);
    bench.cowimg("write top.qcow2 40M --pattern 0xa5 --length 100k").ok();
    bench.qemu_io("top.qcow2", &["read -P 0xa5 40M 100k", "read -P 0 41062400 4k"]);
    bench.cowimg_fed("write top.qcow2 5", b"hello").ok();
    assert_eq!(bench.cowimg("read top.qcow2 4 7").ok().stdout, b"\x01hello\x01");
    bench.cowimg("write -f raw base.img 0 --pattern 7 --length 1").ok();
    assert_eq!(bench.cowimg("read base.img 0 2").ok().stdout, [7, 1]);
    bench.assert_sound("top.qcow2");
}

#[test]
fn hexadecimal_lines_are_those_of_qemu_io() {
    let bench = Workbench::with_images();
    bench.cowimg_fed("write top.qcow2 1M", b"The quick brown fox \x00\xff~").ok();
    let text = bench.cowimg("read --hex top.qcow2 1M 32").ok().text();
    let expected = "00100000:  54 68 65 20 71 75 69 63 6b 20 62 72 6f 77 6e 20  The quick brown \n\
                    00100010:  66 6f 78 20 00 ff 7e 04 04 04 04 04 04 04 04 04  fox ..~.........\n";
    assert_eq!(text, expected);
}

#[test]
fn zeroes_and_discards_read_as_zeroes_and_give_space_back() {
    let bench = Workbench::with_images();
    bench.cowimg("zero child.qcow2 0 100").ok();
    bench.cowimg("zero --unmap child.qcow2 1M 64k").ok();
    bench.cowimg("discard child.qcow2 512k 256k").ok();
    bench.qemu_io(
        "child.qcow2",
        &[
            "read -P 0 0 100",
            "read -P 1 100 4k",
            "read -P 0 1M 64k",
            "read -P 0 512k 256k",
            "read -P 1 768k 256k",
        ],
    );
    bench.assert_sound("child.qcow2");
}

#[test]
fn writing_to_a_raw_file_without_a_stated_format_warns() {
    let bench = Workbench::with_images();
    for arguments in ["write base.img 0 --pattern 1 --length 1", "zero base.img 0 1", "discard base.img 0 1"]
    {
        let run = bench.cowimg(arguments).ok();
        assert!(run.stderr.contains("warning: base.img: no format was given"), "{arguments}: {}", run.stderr);
    }
    assert!(bench.cowimg("zero -f raw base.img 0 1").ok().stderr.is_empty());
    assert!(bench.cowimg("read base.img 0 1").ok().stderr.is_empty());
}

#[test]
fn a_range_past_the_end_changes_nothing() {
    let bench = Workbench::with_images();
    fs::write(bench.path("noise"), noise(100)).unwrap();
    let before = bench.content();
    for arguments in [
        "read child.qcow2 64M 1",
        "read child.qcow2 0 7E",
        "zero child.qcow2 63M 2M",
        "discard child.qcow2 65M 0",
        "write child.qcow2 65M",
        "write child.qcow2 67108800 --from noise",
        "write child.qcow2 67108864 --pattern 1 --length 1",
    ] {
        let run = bench.cowimg(arguments);
        assert_eq!(run.code, Some(1), "{arguments}");
        assert!(run.stderr.contains("whose size is 67108864 bytes"), "{arguments}: {}", run.stderr);
        assert!(run.stdout.is_empty());
        assert_eq!(bench.content(), before, "{arguments}");
    }
}

#[test]
fn input_that_is_too_long_is_written_as_far_as_it_fits_in_whole_pieces() {
    let bench = Workbench::new();
    bench.cowimg("create -q z 2M").ok();
    let run = bench.cowimg_fed("write z 512k", &noise(2 << 20));
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("1048576 bytes of it were written"), "{}", run.stderr);
    assert!(bench.cowimg("read z 512k 1M").ok().stdout == noise(1 << 20));
}

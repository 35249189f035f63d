//! `compare`, `measure`, `dd`, `bench` and `convert`, called as `qemu-img`, beside the real one: the same line prints the
//! same, ends with the same code and makes the same disk.

use std::cell::RefCell;
use std::process::Command;

use crate::workbench::{self, Run, Workbench};

/// The program under the name of the other one.
struct Strict {
    bench: Workbench,
    /// What was not the same.
    mismatches: RefCell<Vec<String>>,
}

impl Drop for Strict {
    /// All mismatches at once.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let mismatches = self.mismatches.borrow();
            assert!(mismatches.is_empty(), "{}", mismatches.join("\n"));
        }
    }
}

impl Strict {
    fn new() -> Strict {
        let bench = Workbench::with_images();
        std::fs::create_dir(bench.path("bin")).expect("a folder can be made");
        let program = env!("CARGO_BIN_EXE_cowimg");
        std::os::unix::fs::symlink(program, bench.path("bin/qemu-img")).expect("a link can be made");
        // Two more disks: another size with data behind, and one that only looks different.
        bench.qemu_img("convert -f raw -O raw base.img longer.img");
        bench.qemu_img("resize -q -f raw longer.img 66M");
        bench.qemu_img("convert -f raw -O raw longer.img tail.img");
        bench.qemu_io("tail.img", &["write -P 9 65M 64k"]);
        bench.qemu_img("convert -f raw -O qcow2 -o preallocation=metadata base.img full.qcow2");
        bench.qemu_img("create -q -f qcow2 marked.qcow2 8M");
        bench.qemu_img("bitmap --add -g 64k marked.qcow2 first");
        bench.qemu_io("marked.qcow2", &["write -P 7 1M 300k"]);
        bench.qemu_img("snapshot -c snap marked.qcow2");
        bench.qemu_io("marked.qcow2", &["write -P 8 2M 64k"]);
        Strict { bench, mismatches: RefCell::default() }
    }

    fn ours(&self, arguments: &str) -> Run {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let output = Command::new(self.bench.path("bin/qemu-img"))
            .args(words)
            .current_dir(self.bench.folder())
            .output()
            .expect("the program starts");
        Run {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn theirs(&self, arguments: &str) -> Run {
        self.bench.try_qemu_img(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Notes what the two printed and how they ended, if that is not the same.
    fn compare_runs(&self, arguments: &str, theirs: &Run, ours: &Run) {
        if (ours.text(), ours.code) != (theirs.text(), theirs.code) {
            self.mismatches.borrow_mut().push(format!(
                "{arguments}:\n  theirs {:?} {:?} {}\n  ours   {:?} {:?} {}",
                theirs.code,
                theirs.text(),
                theirs.stderr,
                ours.code,
                ours.text(),
                ours.stderr
            ));
        }
    }

    /// Both print the same and end alike.
    fn same(&self, arguments: &str) {
        self.compare_runs(arguments, &self.theirs(arguments), &self.ours(arguments));
    }

    /// The same for a line with a target, `OUT`, which both make: the disks are the same too.
    fn same_target(&self, arguments: &str, format: &str) {
        let theirs = self.theirs(&arguments.replace("OUT", "theirs"));
        let ours = self.ours(&arguments.replace("OUT", "ours"));
        self.compare_runs(arguments, &theirs, &ours);
        if theirs.code == Some(0) && ours.code == Some(0) {
            let run = self.theirs(&format!("compare -f {format} -F {format} theirs ours"));
            if run.text() != "Images are identical.\n" {
                self.mismatches.borrow_mut().push(format!("{arguments}: {}{}", run.text(), run.stderr));
            }
            if format == "qcow2" {
                self.bench.assert_sound("ours");
            }
        }
        for name in ["ours", "theirs"] {
            let _it_may_not_be_there = std::fs::remove_file(self.bench.path(name));
        }
    }
}

#[test]
fn compare_says_what_qemu_img_says() {
    if workbench::reference_is_older() {
        return;
    }
    let strict = Strict::new();
    for arguments in [
        "compare base.img comp.qcow2",
        "compare -f raw -F qcow2 base.img comp.qcow2",
        "compare base.img top.qcow2",
        "compare -q base.img top.qcow2",
        "compare -s base.img comp.qcow2",
        "compare -s base.img base.img",
        "compare -s base.img full.qcow2",
        "compare -s comp.qcow2 full.qcow2",
        "compare base.img longer.img",
        "compare longer.img base.img",
        "compare -s base.img longer.img",
        "compare base.img tail.img",
        "compare tail.img base.img",
        "compare -q base.img tail.img",
        "compare -q base.img longer.img",
        "compare longer.img tail.img",
        "compare -p base.img comp.qcow2",
        "compare -p base.img top.qcow2",
        "compare -p base.img longer.img",
        "compare -p -q base.img longer.img",
        "compare -p child.qcow2 top.qcow2",
        "compare -p base.img missing.img",
        "compare -U -T none base.img comp.qcow2",
        "compare --cache=unsafe --force-share --progress --strict base.img base.img",
        "compare base.img missing.img",
        "compare missing.img base.img",
        "compare -f qcow2 base.img comp.qcow2",
        "compare -f bogus base.img comp.qcow2",
        "compare -T bogus base.img comp.qcow2",
        "compare base.img",
        "compare",
        "compare base.img base.img base.img",
        "compare --bogus base.img base.img",
        "compare marked.qcow2 marked.qcow2",
        "compare --a-format raw --b-format qcow2 base.img comp.qcow2",
    ] {
        strict.same(arguments);
    }
}

#[test]
fn measure_says_what_qemu_img_says() {
    let strict = Strict::new();
    for arguments in [
        "measure --size 1G",
        "measure --size 1G -O qcow2",
        "measure --size 1G -O qcow2 --output=json",
        "measure --size=1001 -O raw --output json",
        "measure --size 0 -O qcow2",
        "measure -O qcow2 top.qcow2",
        "measure -O qcow2 --output=json top.qcow2",
        "measure -O raw top.qcow2",
        "measure -f raw -O qcow2 base.img",
        "measure -O qcow2 -o cluster_size=4k,refcount_bits=64 base.img",
        "measure -O qcow2 -o preallocation=full --size 1G",
        "measure -O qcow2 -o preallocation=metadata -o cluster_size=2M --size 1G",
        "measure -O qcow2 -o extended_l2=on --size 1G",
        "measure -O qcow2 -o compat=0.10 marked.qcow2",
        "measure -O qcow2 -U marked.qcow2",
        "measure -O qcow2 -l snap marked.qcow2",
        "measure -O qcow2 -l snapshot.name=snap --output=json marked.qcow2",
        "measure -O qcow2 -l nosnap marked.qcow2",
        "measure -O qcow2 -o backing_file=base.img,backing_fmt=raw child.qcow2",
        "measure -O vmdk --size 1G",
        "measure -O bogus --size 1G",
        "measure -O qcow2 -o bogus=1 --size 1G",
        "measure -O qcow2 -o cluster_size=3 --size 1G",
        "measure --size 1G base.img",
        "measure base.img comp.qcow2",
        "measure -f raw --size 1G",
        "measure -l snap --size 1G",
        "measure",
        "measure --size bogus",
        "measure --size 1G -O qcow2 -o size=3G",
        "measure -O qcow2 missing.img",
        "measure -O qcow2 -o cluster_size=512 --size 1P",
    ] {
        strict.same(arguments);
    }
}

#[test]
fn dd_makes_what_qemu_img_makes() {
    if workbench::reference_is_older() {
        return;
    }
    let strict = Strict::new();
    for (arguments, format) in [
        ("dd if=base.img of=OUT", "raw"),
        ("dd -f raw -O qcow2 bs=1M count=2 if=base.img of=OUT", "qcow2"),
        ("dd -f raw -O qcow2 bs=1M skip=1 count=2 if=base.img of=OUT", "qcow2"),
        ("dd -U -O raw bs=64k skip=3 if=comp.qcow2 of=OUT", "raw"),
        ("dd bs=1000 count=3 if=top.qcow2 of=OUT", "raw"),
        ("dd bs=1M skip=64 if=top.qcow2 of=OUT", "raw"),
        ("dd bs=1M skip=65 if=top.qcow2 -O qcow2 of=OUT", "qcow2"),
        ("dd bs=1M count=0 if=top.qcow2 of=OUT", "raw"),
        ("dd if=top.qcow2", "raw"),
        ("dd of=OUT", "raw"),
        ("dd", "raw"),
        ("dd if=missing.img of=OUT", "raw"),
        ("dd bs=0 if=base.img of=OUT", "raw"),
        ("dd bs=banana if=base.img of=OUT", "raw"),
        ("dd seek=1 if=base.img of=OUT", "raw"),
        ("dd if=base.img of=OUT something", "raw"),
        ("dd -O bogus if=base.img of=OUT", "raw"),
        ("dd -f qcow2 if=base.img of=OUT", "raw"),
        ("dd --output-format=qcow2 --format=raw if=base.img of=OUT bs=4M", "qcow2"),
    ] {
        strict.same_target(arguments, format);
    }
}

#[test]
fn bench_reports_as_qemu_img_does() {
    if workbench::reference_is_older() {
        return;
    }
    let strict = Strict::new();
    let without_time = |run: Run| {
        let text = run.text();
        let lines: Vec<&str> =
            text.lines().map(|line| line.split(" completed in ").next().unwrap_or(line)).collect();
        Run { stdout: lines.join("\n").into_bytes(), ..run }
    };
    for arguments in [
        "bench -c 1000 -f qcow2 top.qcow2",
        "bench -c 10 -q -f raw base.img",
        "bench -w -c 200 -d 16 --flush-interval=50 -f qcow2 marked.qcow2",
        "bench -w -c 210 -d 16 --flush-interval=50 --no-drain --pattern=7 -f qcow2 marked.qcow2",
        "bench -c 100 -d 1 -s 64k -S 128k -o 1M -t none -f raw base.img",
        "bench -c 100 -d 3 -s 64k -S 128k -o 1M -f raw base.img",
        "bench -c 100 -i threads -n -U -f raw base.img",
        "bench -c 20 -s 128M -f raw base.img",
        "bench -c 20 -n -t none -f raw base.img",
        "bench -c 20 --aio=threads -f raw base.img",
        "bench -c 0 -f raw base.img",
        "bench -d 0 -f raw base.img",
        "bench --flush-interval=50 -f raw base.img",
        "bench -w --flush-interval=5 -f raw base.img",
        "bench -o 65M -c 1 -f raw base.img",
        "bench --pattern=256 -w -f raw base.img",
        "bench -t bogus -f raw base.img",
        "bench -i bogus -f raw base.img",
        "bench missing.img",
        "bench",
        "bench -c 10 --depth=2 --offset=0 --buffer-size=512 --step-size=1k -f raw base.img",
    ] {
        let (theirs, ours) = (strict.theirs(arguments), strict.ours(arguments));
        let (theirs, ours) = (without_time(theirs), without_time(ours));
        strict.compare_runs(arguments, &theirs, &ours);
    }
    strict.bench.assert_sound("marked.qcow2");
}

#[test]
fn convert_makes_what_qemu_img_makes() {
    let strict = Strict::new();
    for (arguments, format) in [
        ("convert base.img OUT", "raw"),
        ("convert -O qcow2 base.img comp.qcow2 longer.img OUT", "qcow2"),
        ("convert -c -O qcow2 base.img marked.qcow2 OUT", "qcow2"),
        ("convert -c -S 0 -O qcow2 marked.qcow2 OUT", "qcow2"),
        ("convert -p -O qcow2 base.img OUT", "qcow2"),
        ("convert -p -O raw top.qcow2 OUT", "raw"),
        ("convert -p -c -O qcow2 top.qcow2 OUT", "qcow2"),
        ("convert -p -S 0 -O qcow2 marked.qcow2 OUT", "qcow2"),
        ("convert -p -q -O qcow2 base.img OUT", "qcow2"),
        ("convert -p missing.img OUT", "raw"),
        ("convert -C base.img OUT", "raw"),
        ("convert -C -O qcow2 top.qcow2 OUT", "qcow2"),
        ("convert -l snap -O qcow2 marked.qcow2 OUT", "qcow2"),
        ("convert -l snapshot.id=1 marked.qcow2 OUT", "raw"),
        ("convert -l nosnap marked.qcow2 OUT", "raw"),
        ("convert -m 1 -W -O qcow2 base.img OUT", "qcow2"),
        ("convert -r 1G -O qcow2 base.img OUT", "qcow2"),
        ("convert --salvage -O qcow2 base.img OUT", "qcow2"),
        ("convert -t none -T none -O raw marked.qcow2 OUT", "raw"),
        ("convert -t writethrough -O qcow2 marked.qcow2 OUT", "qcow2"),
        ("convert -O qcow2 -B base.img -F raw child.qcow2 OUT", "qcow2"),
        ("convert -O qcow2 -B longer.img -F raw top.qcow2 OUT", "qcow2"),
        ("convert -O qcow2 -o backing_file=base.img,backing_fmt=raw child.qcow2 OUT", "qcow2"),
        ("convert -O qcow2 -o cluster_size=4k,compat=0.10 child.qcow2 OUT", "qcow2"),
        ("convert -O qcow2 -o extended_l2=on,cluster_size=16k child.qcow2 OUT", "qcow2"),
        ("convert -O qcow2 -o preallocation=falloc marked.qcow2 OUT", "qcow2"),
        ("convert -O raw -o preallocation=full marked.qcow2 OUT", "raw"),
        ("convert -O raw -o size=100M marked.qcow2 OUT", "raw"),
        ("convert -S 64k -U -f qcow2 top.qcow2 OUT", "raw"),
        ("convert --bitmaps -O qcow2 marked.qcow2 OUT", "qcow2"),
        ("convert --bitmaps --skip-broken-bitmaps -O qcow2 marked.qcow2 OUT", "qcow2"),
        // Refused.
        ("convert -O qcow2 -B base.img child.qcow2 OUT", "qcow2"),
        ("convert -O qcow2 -B base.img -F raw child.qcow2 top.qcow2 OUT", "qcow2"),
        ("convert -B base.img -F raw child.qcow2 OUT", "raw"),
        ("convert -c base.img OUT", "raw"),
        ("convert -c -C -O qcow2 base.img OUT", "qcow2"),
        ("convert -S 4k -C base.img OUT", "raw"),
        ("convert --salvage -C base.img OUT", "raw"),
        ("convert -c -o preallocation=full -O qcow2 base.img OUT", "qcow2"),
        ("convert -S 7 base.img OUT", "raw"),
        ("convert -S 17M base.img OUT", "raw"),
        ("convert -m 0 base.img OUT", "raw"),
        ("convert -m 17 base.img OUT", "raw"),
        ("convert -r x base.img OUT", "raw"),
        ("convert -t bogus base.img OUT", "raw"),
        ("convert -T bogus base.img OUT", "raw"),
        ("convert -O bogus base.img OUT", "raw"),
        ("convert -f bogus base.img OUT", "raw"),
        ("convert --target-is-zero base.img OUT", "raw"),
        ("convert --target-image-opts base.img OUT", "raw"),
        ("convert --skip-broken-bitmaps base.img OUT", "raw"),
        ("convert --bitmaps base.img OUT", "raw"),
        ("convert --bitmaps -O qcow2 marked.qcow2 marked.qcow2 OUT", "qcow2"),
        ("convert --bitmaps -O raw marked.qcow2 OUT", "raw"),
        ("convert -l snap marked.qcow2 marked.qcow2 OUT", "raw"),
        ("convert -n base.img OUT", "raw"),
        ("convert -n -o size=3 base.img OUT", "raw"),
        ("convert base.img", "raw"),
        ("convert", "raw"),
        ("convert --bogus base.img OUT", "raw"),
    ] {
        strict.same_target(arguments, format);
    }
}

#[test]
fn convert_writes_into_a_target_that_exists_as_qemu_img_does() {
    let strict = Strict::new();
    for (arguments, format) in [
        ("convert -n -O qcow2 base.img OUT", "qcow2"),
        ("convert -n -S 0 -O qcow2 marked.qcow2 OUT", "qcow2"),
        ("convert -n -p -O qcow2 base.img comp.qcow2 OUT", "qcow2"),
        ("convert -n --target-is-zero -O qcow2 base.img OUT", "qcow2"),
        ("convert -n --target-is-zero -B base.img -F raw -O qcow2 child.qcow2 OUT", "qcow2"),
        ("convert -n -C -O qcow2 marked.qcow2 OUT", "qcow2"),
        ("convert -n -O qcow2 base.img comp.qcow2 longer.img OUT", "qcow2"),
        ("convert -n base.img OUT", "raw"),
        ("convert -n -O raw -S 0 marked.qcow2 OUT", "raw"),
        ("convert -n -c -O raw marked.qcow2 OUT", "raw"),
    ] {
        for name in ["theirs", "ours"] {
            strict.bench.qemu_img(&format!("create -q -f {format} {name} 130M"));
            if !arguments.contains("zero") {
                let path = strict.bench.path(name);
                let run = Command::new("qemu-io")
                    .args(["-f", format, "-c", "write -P 0xee 0 9M", "-c", "write -P 0xed 129M 1M"])
                    .arg(&path)
                    .output()
                    .expect("qemu-io is installed");
                assert!(run.status.success());
            }
        }
        strict.same_target(arguments, format);
    }
}

#[test]
fn a_damaged_source_is_salvaged() {
    let strict = Strict::new();
    strict.bench.qemu_img("convert -c -f raw -O qcow2 base.img damaged.qcow2");
    // The compressed clusters of the first 2 MiB lie behind the tables; one of them is broken.
    let path = strict.bench.path("damaged.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    let first = 5 * 65536;
    bytes[first..first + 40].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let plain = strict.ours("convert damaged.qcow2 ours");
    assert_eq!(plain.code, Some(1), "{}", plain.stderr);
    strict.same_target("convert --salvage damaged.qcow2 OUT", "raw");
    strict.same_target("convert --salvage -O qcow2 damaged.qcow2 OUT", "qcow2");
    let run = strict.ours("convert --salvage damaged.qcow2 ours");
    assert!(run.stderr.contains("65536 bytes at offset 0 could not be read"), "{}", run.stderr);
    let quiet = strict.ours("convert -q --salvage damaged.qcow2 ours");
    assert_eq!(quiet.stderr, "");
}

//! An image that somebody else uses: both programs refuse the same command lines, and say who it is; cache modes.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::workbench::{self, Workbench};

/// A program that has an image open until this is dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Holder {
    /// `qemu-io` waits for commands, `cowimg write` for bytes.
    fn start(bench: &Workbench, program: &str, arguments: &[&str]) -> Holder {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(bench.folder()).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut holder = Holder(command.spawn().expect("the program starts"));
        let started = Instant::now();
        // It takes all its locks within milliseconds, with those of the layers below.
        let mut locks = 0;
        while locks == 0 || locks != holder.locks() {
            assert!(holder.0.try_wait().expect("it can be asked").is_none(), "it could not open the image");
            assert!(started.elapsed() < Duration::from_secs(60), "it has no lock after a minute");
            locks = holder.locks();
            std::thread::sleep(Duration::from_millis(200));
        }
        holder
    }

    fn locks(&self) -> usize {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{}/fdinfo", self.0.id())) else { return 0 };
        let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
        texts.map(|text| text.matches("lock:").count()).sum()
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

#[test]
fn beside_a_writer_both_programs_refuse_the_same_command_lines() {
    let bench = Workbench::with_images();
    let holder = Holder::start(&bench, "qemu-io", &["-f", "qcow2", "child.qcow2"]);
    let before = bench.content();
    for arguments in [
        "info child.qcow2",
        "info --output=json child.qcow2",
        "map child.qcow2",
        "check child.qcow2",
        "convert -O raw child.qcow2 new.raw",
        "map top.qcow2",
        "convert -O raw top.qcow2 new.raw",
        "info --backing-chain top.qcow2",
        "convert -n -O qcow2 base.qcow2 child.qcow2",
        "resize child.qcow2 +1M",
        "resize top.qcow2 +1M",
    ] {
        let run = bench.same(arguments);
        assert_eq!(run.code, Some(1), "{arguments}");
        let who = format!(
            "child.qcow2: in use: another process has it open for writing (pid {}, qemu-io)",
            holder.pid()
        );
        assert!(run.stderr.contains(&who), "{arguments}: {}", run.stderr);
        assert!(run.stderr.contains("Stop that process"), "{arguments}: {}", run.stderr);
    }
    let refused = bench.cowimg("create --force -f qcow2 child.qcow2 1M");
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("in use: another process"), "{}", refused.stderr);
    assert_eq!(bench.cowimg("convert --force -O qcow2 base.qcow2 child.qcow2").code, Some(1));
    assert_eq!(bench.cowimg("zero child.qcow2 0 64k").code, Some(1));
    assert!(bench.content() == before, "a refused command has changed a file");
}

#[test]
fn a_command_that_only_reads_may_share() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    let _holder = Holder::start(&bench, "qemu-io", &["-f", "qcow2", "child.qcow2"]);
    for arguments in [
        "info -U child.qcow2",
        "map -U top.qcow2",
        "check -U child.qcow2",
        "info -U --backing-chain top.qcow2",
    ] {
        assert_eq!(bench.same(arguments).code, Some(0), "{arguments}");
    }
    bench.cowimg("convert -U -O raw top.qcow2 new.raw").ok();
    // What nobody writes is not refused.
    assert_eq!(bench.same("info top.qcow2").code, Some(0));
    assert_eq!(bench.same("map base.qcow2").code, Some(0));
    bench.cowimg("create -f qcow2 -b child.qcow2 -F qcow2 new.qcow2").ok();
}

#[test]
fn beside_a_reader_nothing_is_written() {
    let bench = Workbench::with_images();
    let holder = Holder::start(&bench, "qemu-io", &["-r", "-f", "qcow2", "top.qcow2"]);
    let before = bench.content();
    for arguments in
        ["resize child.qcow2 +1M", "resize top.qcow2 +1M", "convert -n -O qcow2 comp.qcow2 top.qcow2"]
    {
        let run = bench.same(arguments);
        assert_eq!(run.code, Some(1), "{arguments}");
        let who = format!("(pid {}, qemu-io)", holder.pid());
        assert!(run.stderr.contains("relies on nobody else writing it") && run.stderr.contains(&who));
    }
    assert!(bench.content() == before, "a refused command has changed a file");
    assert_eq!(bench.same("map top.qcow2").code, Some(0));
    assert_eq!(bench.same("check child.qcow2").code, Some(0));
}

#[test]
fn qemu_imgs_program_is_refused_while_we_write() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    let holder = Holder::start(&bench, env!("CARGO_BIN_EXE_cowimg"), &["write", "child.qcow2", "0"]);
    for arguments in ["info child.qcow2", "map top.qcow2", "resize child.qcow2 +1M"] {
        let run = bench.same(arguments);
        assert_eq!(run.code, Some(1), "{arguments}");
        assert!(run.stderr.contains(&format!("(pid {}, cowimg)", holder.pid())), "{}", run.stderr);
    }
    assert_eq!(bench.same("info -U child.qcow2").code, Some(0));
    drop(holder);
    assert_eq!(bench.same("info child.qcow2").code, Some(0));
}

/// Under qemu-img's name a target is emptied where it is; not while somebody uses it.
#[test]
fn a_target_that_is_in_use_is_not_emptied() {
    let bench = Workbench::with_images();
    let program = bench.path("qemu-img");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cowimg"), &program).expect("a link can be made");
    let holders = ["top.qcow2", "comp.qcow2"].map(|name| {
        let access = if name == "top.qcow2" { &["-r"][..] } else { &[] };
        Holder::start(&bench, "qemu-io", &[access, &["-f", "qcow2", name]].concat())
    });
    let before = bench.content();
    for arguments in [
        "create -f qcow2 comp.qcow2 1M",
        "create -f raw comp.qcow2 1M",
        "create -f qcow2 top.qcow2 1M",
        "create -f qcow2 child.qcow2 1M",
        "convert -O qcow2 base.qcow2 comp.qcow2",
        "convert -O raw base.qcow2 top.qcow2",
        "convert -n -O qcow2 base.qcow2 top.qcow2",
    ] {
        let words = arguments.split_whitespace();
        let output = bench.command(&program.display().to_string()).args(words).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {errors}");
        assert!(errors.starts_with("qemu-img: ") && errors.contains(": in use: "), "{arguments}: {errors}");
        assert!(holders.iter().any(|holder| errors.contains(&format!("(pid {}, qemu-io)", holder.pid()))));
        assert!(bench.content() == before, "{arguments} has changed a file");
        let theirs = bench.try_qemu_img(&arguments.split_whitespace().collect::<Vec<_>>());
        assert_eq!(theirs.code, Some(1), "{arguments}: {}", theirs.stderr);
    }
}

#[test]
fn cache_modes_have_qemu_imgs_names_and_no_others() {
    let bench = Workbench::with_images();
    for mode in ["none", "off", "directsync", "writeback", "writethrough", "unsafe"] {
        assert_eq!(bench.same(&format!("check -T {mode} top.qcow2")).code, Some(0), "{mode}");
        bench.cowimg(&format!("convert --force -T {mode} -t {mode} -O qcow2 top.qcow2 new.qcow2")).ok();
        bench.qemu_img("compare top.qcow2 new.qcow2");
        bench.cowimg(&format!("convert -n -t {mode} -O qcow2 base.qcow2 new.qcow2")).ok();
        bench.qemu_img("compare base.qcow2 new.qcow2");
        bench.qemu_img("check new.qcow2");
    }
    for mode in ["on", "default", "NONE", "write-back"] {
        for arguments in [
            format!("check -T {mode} top.qcow2"),
            format!("convert -T {mode} -O raw top.qcow2 new.raw"),
            format!("convert -t {mode} -O raw top.qcow2 new.raw"),
        ] {
            let run = bench.same(&arguments);
            assert_eq!(run.code, Some(1), "{arguments}");
            assert!(run.stderr.contains("writethrough"), "{arguments}: {}", run.stderr);
        }
    }
    // qemu-img makes the target before it looks at the mode.
    let _ = std::fs::remove_file(bench.path("new.raw"));
    assert_eq!(bench.cowimg("convert -t on -O raw top.qcow2 new.raw").code, Some(1));
    assert!(!bench.path("new.raw").exists());
}

//! A machine that loses its power: a file system on a disk that logs what reaches it and in which order (dm-log-writes), in a
//! Linux that runs as an ordinary process (user-mode Linux). It needs no rights; what it needs is downloaded once into
//! the target folder.

mod log;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) use log::Replay;

const DISK_BYTES: u64 = 64 << 20;
/// The log's file is sparse.
const LOG_BYTES: u64 = 8 << 30;
/// Seconds until a machine that does not end is ended.
const PATIENCE: &str = "1200";
/// The packages that hold the kernel with its modules, and a program that loads these.
const PACKAGES: [&str; 2] = ["user-mode-linux", "busybox-static"];
/// Where the logged file system is inside the machine.
pub(crate) const MOUNTED: &str = "/mnt/disk";

/// Whether machines are to be started: it takes minutes, and packages are downloaded.
pub(crate) fn is_wanted() -> bool {
    let is_wanted = std::env::var_os("COWIMG_POWER_CUT").is_some();
    if !is_wanted {
        println!("not tried: `make soak`, or COWIMG_POWER_CUT=1, starts the machine");
    }
    is_wanted
}

/// Runs a shell script in a machine with a logged file system at [`MOUNTED`], and gives the log. `dmsetup message power 0
/// mark TEXT` leaves a mark in it. The machine sees the host's files, with the rights of whoever starts it.
pub(crate) fn run_in_machine(work: &Path, mount_options: &str, script: &str) -> Replay {
    assert!(super::qemu_tools::is_installed("dmsetup"), "this test needs dmsetup: apt-get install dmsetup");
    let system = downloaded();
    let (disk, log, done) = (work.join("disk"), work.join("log"), work.join("done"));
    for (file, bytes) in [(&disk, DISK_BYTES), (&log, LOG_BYTES)] {
        File::create(file).and_then(|file| file.set_len(bytes)).expect("there is room for disks");
    }
    let busybox = system.join("bin/busybox");
    let init = format!(
        "#!/bin/sh\nexport PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin DM_DISABLE_UDEV=1\n\
         mount -t proc none /proc; mount -t sysfs none /sys\n\
         modules={system}/usr/lib/uml/modules/$(uname -r)/kernel/drivers/md\n\
         prepare() {{ set -e\n\
         for module in dm-mod dm-log-writes; do {busybox} insmod $modules/$module.ko; done\n\
         dmsetup create power --table \"0 $(blockdev --getsz /dev/ubdb) log-writes /dev/ubdb /dev/ubdc\"\n\
         dmsetup mknodes\n\
         mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/power\n\
         mount -t tmpfs none /mnt; mkdir {MOUNTED}; mount -o {mount_options} /dev/mapper/power {MOUNTED}\n}}\n\
         (prepare) && ( {script}\n) && umount {MOUNTED} && dmsetup remove power && touch {done}\n\
         {busybox} halt -f\n",
        system = system.display(),
        busybox = busybox.display(),
        done = done.display(),
    );
    let init_path = work.join("init.sh");
    fs::write(&init_path, init).expect("the script can be written");
    fs::set_permissions(&init_path, fs::Permissions::from_mode(0o755)).expect("the script can be run");
    let output = Command::new("timeout")
        .args(["--kill-after=5", PATIENCE])
        .arg(system.join("usr/bin/linux.uml"))
        .args(["mem=256M", "rootfstype=hostfs", "rootflags=/", "rw", "con=null", "con0=fd:0,fd:1", "quiet"])
        .arg(format!("umid=cowimg-{}", std::process::id()))
        .arg(format!("init={}", init_path.display()))
        .arg(format!("ubd1={}", disk.display()))
        .arg(format!("ubd2={}", log.display()))
        .stdin(std::process::Stdio::null())
        .output();
    assert!(done.exists(), "the machine did not finish: {}", said(output));
    Replay::of(&log, DISK_BYTES)
}

/// The files of a folder of the file system on a disk as a power cut left it, after the journal is replayed; in `to`.
pub(crate) fn recover(disk: &[u8], folder: &str, to: &Path) {
    const CHUNK: usize = 64 << 10;
    let image = to.join("disk");
    let file = File::create(&image).expect("there is room for disks");
    file.set_len(disk.len() as u64).expect("there is room for disks");
    for (nth, chunk) in
        disk.chunks(CHUNK).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0))
    {
        file.write_all_at(chunk, (nth * CHUNK) as u64).expect("there is room for disks");
    }
    let tool = |tool: &str, arguments: &[&str]| {
        let output = super::qemu_tools::command(tool).args(arguments).arg(&image).output();
        let is_well = output.as_ref().is_ok_and(|output| matches!(output.status.code(), Some(0 | 1)));
        assert!(is_well, "{tool}: {}", said(output));
    };
    tool("e2fsck", &["-f", "-y", "-E", "journal_only"]);
    // What the file system promises itself holds, too: else the replay is wrong.
    tool("e2fsck", &["-f", "-n"]);
    tool("debugfs", &["-R", &format!("rdump {folder} {}", to.display())]);
    fs::remove_file(image).expect("the disk can be removed");
}

/// Where the packages are unpacked.
fn downloaded() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("power_cut");
    let system = folder.join("system");
    if system.join("usr/bin/linux.uml").exists() && system.join("bin/busybox").exists() {
        return system;
    }
    fs::create_dir_all(&system).expect("the target folder can be written");
    let script = format!(
        "rm -f *.deb; apt-get download {0} || {{ apt-get update && apt-get download {0}; }}; \
         for package in *.deb; do dpkg -x $package system || exit 1; done; rm *.deb",
        PACKAGES.join(" ")
    );
    let output = Command::new("sh").args(["-c", &script]).current_dir(&folder).output();
    let is_there = system.join("usr/bin/linux.uml").exists();
    assert!(is_there, "{PACKAGES:?} cannot be downloaded with apt-get here: {}", said(output));
    system
}

fn said(output: std::io::Result<Output>) -> String {
    output.map_or_else(
        |error| error.to_string(),
        |output| {
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            format!("{:?}\n{out}{err}", output.status)
        },
    )
}

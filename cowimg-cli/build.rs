//! Links the release program statically where this machine can: an empty program starts in 0.59 ms instead of
//! 0.78, since no library is looked for, mapped and bound. It stays position independent. Code is the same either way, and
//! so is every other build: debug ones, tests, other systems, cross builds, and machines without the archives (libc.a and
//! its like, which some distributions pack separately).
//!
//! The target feature `crt-static` would be the usual way. It holds for all crates of a build, and Cargo has no place
//! for it that leaves procedural macros out. So the names under which the linker finds shared libraries lead to the
//! archives instead, by scripts in a folder of its own.
//!
//! `COWIMG_LINK=dynamic` keeps shared libraries.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the standard library asks the linker for.
const LIBRARIES: [&str; 6] = ["dl", "m", "pthread", "rt", "util", "c"];

/// Compiles where the C library knows packed relocations: 1 KiB in place of 99, to be read at each start. A linker that does
/// not know them says so, and goes on.
const KNOWS_PACKED: &str = "#include <features.h>\n\
    _Static_assert(__GLIBC_PREREQ(2, 36), \"\");\n\
    int main(void) { return 0; }\n";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=COWIMG_LINK");
    if !is_wanted() {
        return Ok(());
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    if !links_statically(&folder, "int main(void) { return 0; }\n") {
        return Ok(());
    }
    let scripts = folder.join("archives");
    fs::create_dir_all(&scripts)?;
    for library in LIBRARIES {
        // The C library and the compiler's refer to each other.
        let script = format!("GROUP(-l:lib{library}.a -l:libc.a -l:libgcc_eh.a -l:libgcc.a)\n");
        fs::write(scripts.join(format!("lib{library}.so")), script)?;
    }
    fs::write(scripts.join("libgcc_s.so"), "GROUP(-l:libgcc_eh.a -l:libgcc.a -l:libc.a)\n")?;
    println!("cargo::rustc-link-arg-bin=cowimg=-static-pie");
    println!("cargo::rustc-link-arg-bin=cowimg=-L{}", scripts.display());
    if links_statically(&folder, KNOWS_PACKED) {
        println!("cargo::rustc-link-arg-bin=cowimg=-Wl,-z,pack-relative-relocs");
    }
    Ok(())
}

/// Whether this is a build that the question is for.
fn is_wanted() -> bool {
    let value = |name: &str| env::var(name).unwrap_or_default();
    let is_release = value("PROFILE") == "release";
    let is_linux = value("CARGO_CFG_TARGET_OS") == "linux" && value("CARGO_CFG_TARGET_ENV") == "gnu";
    let is_native = value("HOST") == value("TARGET");
    let is_static = value("CARGO_CFG_TARGET_FEATURE").split(',').any(|feature| feature == "crt-static");
    is_release && is_linux && is_native && !is_static && value("COWIMG_LINK") != "dynamic"
}

/// Whether compiler and linker make a program of `code` from archives alone.
fn links_statically(folder: &Path, code: &str) -> bool {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let source = folder.join("tried.c");
    if fs::write(&source, code).is_err() {
        return false;
    }
    let archives = LIBRARIES.map(|library| format!("-l:lib{library}.a"));
    let status = Command::new(linker)
        .arg("-static-pie")
        .arg("-o")
        .arg(folder.join("tried"))
        .arg(&source)
        .args(archives)
        .args(["-l:libgcc_eh.a", "-l:libgcc.a"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

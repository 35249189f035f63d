//! Says that the locks and atomics are shuttle's.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(cowimg_shuttle)");
    println!("cargo::rustc-check-cfg=cfg(fuzzing)");
    println!("cargo::rustc-cfg=cowimg_shuttle");
}

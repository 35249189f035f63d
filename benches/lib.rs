//! Nothing is here: the benchmarks are in `inner_loops.rs`, run with `cargo bench -p cowimg-benches`.

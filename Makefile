# The commands of the project. `make` alone lists them.

CARGO ?= cargo
FUZZ_SECONDS ?= 60
SOAK_ROUNDS ?= 20
SOAK_SEED ?= $(shell date +%s)
CRASH_STATES ?= 2000000
KILLS ?= 500
MIRI_TESTS := range:: storage::memory:: storage::buffer qcow2::table_cache qcow2::in_flight qcow2::metadata_map \
    format::qcow2::l2_entry format::qcow2::l1_entry format::qcow2::geometry --skip memory_conforms
FUZZ_TARGETS := header l2_entry snapshot_table bitmaps luks_header luks image qcow1 names

# mkfs.ext4, debugfs and e2fsck live in sbin, which a plain user's PATH often lacks.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-growth bench-rivals fuzz soak races tsan miri test-needs

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: test-needs ## Show the program at work on a real file system, checked against qemu-img
	$(CARGO) build --release -p cowimg-cli
	COWIMG="$$($(CARGO) metadata --no-deps --format-version 1 \
	    | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/cowimg" cowimg-cli/demo.sh

test: test-needs ## Run every test; installs qemu-utils and e2fsprogs when they are missing
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -x; $(CARGO) nextest run --workspace --no-fail-fast; \
	else set -x; $(CARGO) test --workspace --no-fail-fast --lib --bins --tests; fi
	$(CARGO) test --workspace --doc

lint: ## Formatting, clippy and documentation; every warning is an error
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy -p cowimg --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc -p cowimg --no-deps

bench: test-needs ## Measure whole commands beside qemu-img, then the library's inner loops; BENCH=word for some of the first
	$(CARGO) build --release -p cowimg-cli
	$(CARGO) run --release -p cowimg-benches --bin side_by_side -- $(BENCH)
	$(CARGO) bench -p cowimg-benches

bench-growth: ## Measure what work costs as disks and chains grow
	$(CARGO) build --release -p cowimg-cli
	$(CARGO) run --release -p cowimg-benches --bin side_by_side -- --growth

# imago is built twice, for its two ways exclude each other in one build.
bench-rivals: test-needs ## Measure reads and writes in process beside the crates imago and qcow2-rs; BENCH=word for some
	cd benches/rivals && $(CARGO) build --release --locked -p cowimg-rivals-imago-sync
	cd benches/rivals && $(CARGO) run --release --locked -- $(BENCH)

# Without a sanitizer: the code is safe Rust, whose mistakes are panics, and inputs run some five times as fast.
fuzz: ## Feed hostile bytes to each decoder, FUZZ_SECONDS (60) each; needs a nightly toolchain
	@$(CARGO) +nightly --version >/dev/null 2>&1 || { \
	    echo "make fuzz: cargo-fuzz needs a nightly compiler: rustup toolchain install nightly" >&2; exit 1; }
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { set -x; $(CARGO) install --locked cargo-fuzz; }
	@set -e; for target in $(FUZZ_TARGETS); do \
	    mkdir -p fuzz/target/corpus/$$target; \
	    (set -x; $(CARGO) +nightly fuzz run --sanitizer none $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
	        -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=512 -max_len=40960 \
	        $$(test ! -f fuzz/dictionaries/$$target || echo -dict=fuzz/dictionaries/$$target)); \
	done

soak: test-needs ## The library's tests SOAK_ROUNDS (20) times with random draws, 2000000 power cuts and real ones, 500 kills, all images
	@set -e; for round in $$(seq $(SOAK_ROUNDS)); do \
	    (set -x; COWIMG_SOAK=1 COWIMG_TEST_SEED=$$(($(SOAK_SEED) + round)) $(CARGO) test -q -p cowimg --lib --tests); \
	done
	COWIMG_CRASH_STATES=$(CRASH_STATES) COWIMG_TEST_SEED=$(SOAK_SEED) \
	    $(CARGO) test --release -p cowimg --test crash soak -- --nocapture
	COWIMG_KILLS=$(KILLS) COWIMG_TEST_SEED=$(SOAK_SEED) $(CARGO) test -p cowimg-cli --test cli killed -- --nocapture
	COWIMG_SOAK=1 $(CARGO) test -p cowimg-cli --test cli full_ext4 -- --nocapture
	COWIMG_FAILED_CALLS=all $(CARGO) test -p cowimg-cli --test cli failed_calls -- --nocapture
	COWIMG_POWER_CUT=1 COWIMG_TEST_SEED=$(SOAK_SEED) $(CARGO) test -p cowimg --test crash power:: -- --nocapture
	COWIMG_POWER_CUT=1 COWIMG_TEST_SEED=$(SOAK_SEED) $(CARGO) test -p cowimg-cli --test cli power:: -- --nocapture
	COWIMG_MATRIX=all COWIMG_TEST_SEED=$(SOAK_SEED) $(CARGO) test -p cowimg --test matrix

races: ## What threads share, in every order of steps that loom and shuttle find; COWIMG_ORDERS draws more
	cd cowimg/races && $(CARGO) test -- --nocapture

# zstd's C code is not watched; what compares bytes or runs other programs has no threads of ours in it and is left out.
tsan: ## Threads on one image, and of the jobs, under ThreadSanitizer; needs a nightly toolchain with rust-src
	RUSTFLAGS=-Zsanitizer=thread $(CARGO) +nightly test -Zbuild-std \
	    --target $$(rustc -vV | sed -n 's/^host: //p') -p cowimg --test concurrency --test linearizable --test late_io \
	    --test job_threads

# Left out: whatever calls C code (zstd), maps files, asks hosts for what miri does not know (fallocate, locks, SEEK_HOLE), or
# takes hours there. What is left has the memory that threads share without a lock, and the one buffer with its own layout; of
# random cases, which take a second each there and have no threads, a few; and without the conformance of storages, megabytes
# byte by byte under the standard library's own lock.
miri: ## What threads share without a lock, and formats, under miri; needs a nightly toolchain with miri
	PROPTEST_CASES=8 MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-many-seeds=0..4" $(CARGO) +nightly miri test -p cowimg --lib -- $(MIRI_TESTS)

test-needs:
	@.ci/needs

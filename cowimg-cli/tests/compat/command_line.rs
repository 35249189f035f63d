//! What is the same for every subcommand, and that none of their options is missing.

use std::process::Command;

use crate::bench_folder::{BenchFolder, Side};
use crate::runner::{Table, reference_is_10};
use crate::{
    amend, bench, bitmap, check, commit, compare, convert, create, dd, info, map, measure, rebase, resize,
    snapshot,
};

const SUBCOMMANDS: [&str; 15] = [
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map",
    "measure", "rebase", "resize", "snapshot",
];

pub(crate) const TABLE: Table = Table {
    images: &["new a.qcow2 1M\n"],
    rows: r"
--version  # own words
-V  # own words
--help  # own words
-h  # own words
amend --help  # own words
bench --help  # own words
bitmap --help  # own words
check --help  # own words
commit --help  # own words
compare --help  # own words
convert --help  # own words
create --help  # own words
dd --help  # own words
info --help  # own words
info -h  # own words
map --help  # own words
measure --help  # own words
rebase --help  # own words
resize --help  # own words
snapshot --help  # own words
info --help a.qcow2  # own words
nosuch
nosuch a.qcow2
--nosuch
-x
''
INFO a.qcow2
read a.qcow2 0 512
write a.qcow2 0
zero a.qcow2 0 512
discard a.qcow2 0 512
create --force -f qcow2 a.qcow2 1M
convert --force -O qcow2 a.qcow2 b.qcow2
info --json a.qcow2
",
};

#[test]
fn words_of_every_kind() {
    TABLE.prove();
}

#[test]
fn there_are_enough_command_lines() {
    let tables = [
        &amend::GOOD,
        &amend::BAD,
        &bench::TABLE,
        &bitmap::GOOD,
        &bitmap::BAD,
        &check::SOUND,
        &check::DAMAGE,
        &check::BAD,
        &commit::TABLE,
        &compare::TABLE,
        &convert::FORMS,
        &convert::BAD,
        &create::GOOD,
        &create::BAD,
        &dd::TABLE,
        &info::CHAINS,
        &info::DISKS,
        &info::BAD,
        &map::CHAINS,
        &map::DISKS,
        &map::BAD,
        &measure::TABLE,
        &rebase::TABLE,
        &resize::TABLE,
        &snapshot::TABLE,
        &TABLE,
    ];
    let command_lines: usize = tables.iter().map(|table| table.command_lines()).sum();
    println!("{command_lines} command lines");
    assert!(command_lines >= 250, "only {command_lines} command lines");
}

/// The long options in a help text.
fn long_options(help: &str) -> Vec<String> {
    let words = help.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
    let mut options: Vec<String> =
        words.filter(|word| word.len() > 3 && word.starts_with("--")).map(str::to_owned).collect();
    options.sort();
    options.dedup();
    options
}

#[test]
fn every_long_option_of_qemu_img_is_in_our_help() {
    if !reference_is_10() {
        eprintln!("LEFT OUT: the help texts of this qemu-img are not those of version 10");
        return;
    }
    let bench = BenchFolder::new("");
    bench.reset();
    let help = |mut command: Command, name: &str| {
        let output =
            command.args([name, "--help"]).output().expect("timeout is installed: package coreutils");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Slips of the pen in qemu-img's own texts.
    let misprints = ["--progres", "--source-image-opts", "--output-format"];
    let missing: Vec<String> = SUBCOMMANDS
        .into_iter()
        .flat_map(|name| {
            let theirs = long_options(&help(bench.qemu_img(Side::Theirs), name));
            let ours = long_options(&help(bench.qemu_img(Side::Ours), name));
            assert!(!theirs.is_empty(), "qemu-img {name} --help names options");
            let missing = theirs
                .into_iter()
                .filter(move |option| !ours.contains(option) && !misprints.contains(&option.as_str()));
            missing.map(move |option| format!("{name} {option}"))
        })
        .collect();
    assert!(missing.is_empty(), "help texts name no {missing:?}");
}

//! The models of loom, each as a test.

use cowimg_races::under_loom;

fn tell(name: &str, orders: u64) {
    println!("{name}: {orders} orders of steps, nothing found");
    assert!(orders > 1, "{name}: only {orders} orders were tried");
}

#[test]
fn entries_of_two_words_are_seen_whole() {
    tell("entries of two words", under_loom::entries_of_two_words_are_seen_whole());
}

#[test]
fn what_was_written_before_an_entry_is_seen_with_it() {
    tell("publishing", under_loom::what_was_written_before_an_entry_is_seen_with_it());
}

#[test]
fn a_slice_that_is_held_is_the_only_copy() {
    tell("the table cache", under_loom::a_slice_that_is_held_is_the_only_copy());
}

#[test]
fn what_a_look_holds_is_the_only_copy() {
    tell("looks", under_loom::what_a_look_holds_is_the_only_copy());
}

#[test]
fn what_was_dropped_is_not_looked_at() {
    tell("looks and drops", under_loom::what_was_dropped_is_not_looked_at());
}

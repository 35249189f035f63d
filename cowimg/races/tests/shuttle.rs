//! The models of shuttle, each as a test. `COWIMG_ORDERS` says how many orders are drawn where not all are tried. A binary of
//! its own: shuttle reports every panic of a process, and loom ends its threads with some.

use cowimg_races::{under_shuttle, whole_engine};

fn orders() -> usize {
    std::env::var("COWIMG_ORDERS").map_or(20_000, |text| text.parse().expect("COWIMG_ORDERS is a number"))
}

/// One order of the whole engine takes as long as a hundred of a small model.
fn orders_of_the_engine() -> usize {
    (orders() / 10).max(1)
}

fn tell(name: &str, orders: u64) {
    println!("{name}: {orders} orders of steps, nothing found");
    assert!(orders > 1, "{name}: only {orders} orders were tried");
}

#[test]
fn no_cluster_is_reused_while_it_is_read() {
    tell("reuse of clusters", under_shuttle::no_cluster_is_reused_while_it_is_read(orders()));
}

#[test]
fn closed_epochs_are_empty_and_open_again() {
    tell("closed epochs", under_shuttle::closed_epochs_are_empty_and_open_again(orders()));
}

#[test]
fn clusters_have_one_owner_at_a_time() {
    tell("cluster locks", under_shuttle::clusters_have_one_owner_at_a_time(orders()));
}

#[test]
fn every_order_of_one_operation_and_one_closing() {
    tell("one operation, one closing", under_shuttle::every_order_of_one_operation_and_one_closing());
}

#[test]
fn no_cluster_is_given_to_two() {
    tell("the engine: allocation", whole_engine::no_cluster_is_given_to_two(orders_of_the_engine()));
}

#[test]
fn a_failed_reservation_loses_nothing() {
    tell(
        "the engine: failed reservations",
        whole_engine::a_failed_reservation_loses_nothing(orders_of_the_engine()),
    );
}

#[test]
fn a_freed_cluster_waits_until_that_is_durable() {
    let orders = whole_engine::a_freed_cluster_waits_until_that_is_durable(orders_of_the_engine());
    tell("the engine: freed clusters", orders);
}

#[test]
fn compressed_clusters_share_without_harm() {
    let orders = whole_engine::compressed_clusters_share_without_harm(orders_of_the_engine());
    tell("the engine: compressed clusters", orders);
}

#[test]
fn what_is_kept_of_compressed_clusters_is_forgotten_in_time() {
    let orders = whole_engine::what_is_kept_is_forgotten_in_time(orders_of_the_engine());
    tell("the engine: what is kept of compressed clusters", orders);
}

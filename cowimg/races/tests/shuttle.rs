//! The models of shuttle, each as a test. `COWIMG_ORDERS` says how many orders are drawn where not all are tried. A binary of
//! its own: shuttle reports every panic of a process, and loom ends its threads with some.

use cowimg_races::under_shuttle;

fn orders() -> usize {
    std::env::var("COWIMG_ORDERS").map_or(20_000, |text| text.parse().expect("COWIMG_ORDERS is a number"))
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

//! Epochs and cluster locks: orders of steps drawn at random, and every one where that ends.

#[path = "../../../src/qcow2/in_flight.rs"]
mod in_flight;
#[path = "../../../src/qcow2/striped.rs"]
mod striped;
mod sync;

use std::sync::Arc;

use shuttle::scheduler::DfsScheduler;
use shuttle::{Config, Runner, thread};

use in_flight::{ClusterLocks, Epochs};
use sync::Mutex;
use sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// Orders that are drawn for a model: so many at random, and as many that switch at a few places only, where rare
/// mistakes are.
fn many_orders(orders: usize, model: impl Fn() + Send + Sync + Copy + 'static) -> u64 {
    shuttle::check_random(model, orders);
    shuttle::check_pct(model, orders, 3);
    2 * orders as u64
}

/// A cluster whose reference is gone is reused only when nobody reads it any more: writers move a block from cluster to
/// cluster, and take those again that have passed.
pub fn no_cluster_is_reused_while_it_is_read(orders: usize) -> u64 {
    const CLUSTERS: u64 = 4;
    struct Image {
        epochs: Epochs,
        /// Where the block is.
        place: AtomicU64,
        /// Each cluster's owner: changes when it is taken again.
        owners: [AtomicU64; CLUSTERS as usize],
        /// Clusters that nothing refers to, with the epoch in which that was so.
        retired: Mutex<Vec<(u64, u64)>>,
    }
    many_orders(orders, || {
        let image = Arc::new(Image {
            epochs: Epochs::default(),
            place: AtomicU64::new(0),
            owners: Default::default(),
            retired: Mutex::new((1..CLUSTERS).map(|cluster| (cluster, 0)).collect()),
        });
        image.epochs.try_advance();
        image.epochs.try_advance();
        let reader = |image: Arc<Image>| {
            move || {
                for _ in 0..2 {
                    let _operation = image.epochs.enter();
                    let place = image.place.load(SeqCst) as usize;
                    let before = image.owners[place].load(SeqCst);
                    let after = image.owners[place].load(SeqCst);
                    assert!(
                        before.is_multiple_of(2) && after == before,
                        "cluster {place} was reused under a reader"
                    );
                }
            }
        };
        let writer = |image: Arc<Image>| {
            move || {
                for _ in 0..3 {
                    let mut retired = image.retired.lock().expect("nobody panics here");
                    image.epochs.try_advance();
                    let free = retired.iter().position(|(_, epoch)| image.epochs.has_passed(*epoch));
                    let Some(free) = free else { continue };
                    let (cluster, _) = retired.swap_remove(free);
                    // It is filled: odd while that lasts.
                    image.owners[cluster as usize].fetch_add(1, SeqCst);
                    image.owners[cluster as usize].fetch_add(1, SeqCst);
                    let old = image.place.swap(cluster, SeqCst);
                    retired.push((old, image.epochs.now()));
                }
            }
        };
        let threads = [
            thread::spawn(reader(Arc::clone(&image))),
            thread::spawn(reader(Arc::clone(&image))),
            thread::spawn(writer(Arc::clone(&image))),
            thread::spawn(writer(image)),
        ];
        threads.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
    })
}

/// While the epochs are closed no operation runs, and both sides get their turn: two that close one after the other, as under
/// the change lock, and two that operate.
pub fn closed_epochs_are_empty_and_open_again(orders: usize) -> u64 {
    many_orders(orders, || {
        let epochs = Arc::new(Epochs::default());
        let is_closed = Arc::new(AtomicBool::new(false));
        let alone = Arc::new(Mutex::new(()));
        let close = |epochs: Arc<Epochs>, is_closed: Arc<AtomicBool>, alone: Arc<Mutex<()>>| {
            move || {
                let _alone = alone.lock().expect("nobody panics here");
                let closed = epochs.close();
                is_closed.store(true, SeqCst);
                thread::yield_now();
                is_closed.store(false, SeqCst);
                drop(closed);
            }
        };
        let operate = |epochs: Arc<Epochs>, is_closed: Arc<AtomicBool>| {
            move || {
                for _ in 0..2 {
                    let operation = epochs.enter();
                    assert!(!is_closed.load(SeqCst), "an operation runs while the epochs are closed");
                    epochs.try_advance();
                    assert!(!is_closed.load(SeqCst), "the epochs closed over an operation");
                    drop(operation);
                }
            }
        };
        let threads = [
            thread::spawn(close(Arc::clone(&epochs), Arc::clone(&is_closed), Arc::clone(&alone))),
            thread::spawn(close(Arc::clone(&epochs), Arc::clone(&is_closed), alone)),
            thread::spawn(operate(Arc::clone(&epochs), Arc::clone(&is_closed))),
            thread::spawn(operate(epochs, is_closed)),
        ];
        threads.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
    })
}

/// A cluster has one owner at a time, and nobody waits for ever.
pub fn clusters_have_one_owner_at_a_time(orders: usize) -> u64 {
    many_orders(orders, || {
        let locks = Arc::new(ClusterLocks::default());
        let owned: Arc<[AtomicBool; 4]> = Arc::default();
        let ranges = [(0, 2), (1, 4), (3, 4), (0, 4)];
        let threads = ranges.map(|(first, end)| {
            let (locks, owned) = (Arc::clone(&locks), Arc::clone(&owned));
            thread::spawn(move || {
                for _ in 0..2 {
                    let _lock = locks.lock(first, end);
                    let mine = || owned[first as usize..end as usize].iter();
                    assert!(mine().all(|owned| !owned.swap(true, SeqCst)), "a cluster has two owners");
                    assert!(mine().all(|owned| owned.swap(false, SeqCst)), "a cluster has two owners");
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
    })
}

/// One operation beside one that closes, in every order that there is.
pub fn every_order_of_one_operation_and_one_closing() -> u64 {
    let orders = Runner::new(DfsScheduler::new(None, false), Config::default()).run(|| {
        let epochs = Arc::new(Epochs::default());
        let is_closed = Arc::new(AtomicBool::new(false));
        let (other, closed_there) = (Arc::clone(&epochs), Arc::clone(&is_closed));
        let operating = thread::spawn(move || {
            let _operation = other.enter();
            assert!(!closed_there.load(SeqCst), "an operation runs while the epochs are closed");
        });
        let closed = epochs.close();
        is_closed.store(true, SeqCst);
        is_closed.store(false, SeqCst);
        drop(closed);
        operating.join().expect("the thread ends");
    });
    orders as u64
}

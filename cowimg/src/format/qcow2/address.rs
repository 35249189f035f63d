//! Offsets and cluster numbers, each with a type of its own so that they cannot be mixed up.
//!
//! Arithmetic that needs the cluster size lives on [`Geometry`](super::Geometry).

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The bare number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }
    };
}

address! {
    /// A byte's place on the guest's disk.
    GuestOffset
}
address! {
    /// A byte's place in the image file.
    HostOffset
}
address! {
    /// A cluster's number on the guest's disk: the guest offset divided by the cluster size.
    GuestCluster
}
address! {
    /// A cluster's number in the image file: the host offset divided by the cluster size.
    HostCluster
}

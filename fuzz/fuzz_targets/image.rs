//! See the module of this name. Inputs are images of which a few fields were changed.
#![no_main]

use cowimg_fuzz::{mutation, targets, templates};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|bytes: &[u8]| targets::image::run(bytes));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let plain = |data: &mut [u8], size| fuzzer_mutate(data, size, max_size);
    mutation::change_image(&mut data[..max_size], size, seed, (templates::qcow2(), &plain))
});

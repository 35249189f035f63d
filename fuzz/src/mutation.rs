//! Changes of images that know what an image is: a valid one, of which some fields say something else.
//!
//! Bytes that are changed anywhere hit guest data or break the header, where decoders stop at once. Here a field is drawn by
//! the structure that it is in, and its new value is one that could mean something there: a place in the file, another
//! field's value, one more or less, an extreme. What the header's decoder then refuses is mostly put right again.

use cowimg::format::qcow2::Header;

use super::dice::Dice;
use super::image_fields::{self, Field};

/// Where an image tells the whole-image target what to do with it: the end of the first sector, which is in no structure
/// that a small image has.
pub const PROGRAM: std::ops::Range<usize> = 496..512;

/// How often a change that the header's decoder refuses is drawn anew.
const TRIES: usize = 4;

/// Changes bytes without knowing what they are; the buffer, how many bytes of it there are, and how many there are then.
type Plain<'a> = &'a dyn Fn(&mut [u8], usize) -> usize;

/// Changes the first `size` bytes of `data`, an image of the format qcow2 that was one of `images` once, and returns how many
/// there are then.
pub fn change_image(
    data: &mut [u8],
    size: usize,
    seed: u32,
    (images, plain): (&[Vec<u8>], Plain<'_>),
) -> usize {
    let mut dice = Dice::new(seed.into());
    if size < PROGRAM.end || !data.starts_with(b"QFI\xfb") || dice.is_one_in(64) {
        return replace(data, images, &mut dice).unwrap_or(size);
    }
    if dice.is_one_in(10) {
        return plain(data, size);
    }
    let before = data[..size].to_vec();
    for _ in 0..TRIES {
        let mut len = size;
        for _ in 0..=dice.roll(4) {
            len = change(data, len, &mut dice);
        }
        if Header::decode(&data[..len]).is_ok() || dice.is_one_in(8) {
            return len;
        }
        data[..size].copy_from_slice(&before);
    }
    set_program(data, &mut dice);
    size
}

/// The same for a format whose fields have fixed places: `fields` are place and width of each.
pub fn change_fields(
    data: &mut [u8],
    size: usize,
    seed: u32,
    (template, fields, plain): (&[u8], &[(usize, usize)], Plain<'_>),
) -> usize {
    let mut dice = Dice::new(seed.into());
    if size < fields.iter().map(|(at, width)| at + width).max().unwrap_or(0) || dice.is_one_in(16) {
        let len = template.len().min(data.len());
        data[..len].copy_from_slice(&template[..len]);
        return len;
    }
    if dice.is_one_in(4) {
        return plain(data, size);
    }
    for _ in 0..=dice.roll(3) {
        let mut field = || {
            let (at, width) = dice.pick(fields);
            Field { at, width }
        };
        let both = (field(), field());
        set(&mut data[..size], both, 512, &mut dice);
    }
    size
}

/// Puts one of the valid images that fit in the place of what is there.
pub fn replace(data: &mut [u8], images: &[Vec<u8>], dice: &mut Dice) -> Option<usize> {
    let fitting: Vec<&Vec<u8>> = images.iter().filter(|image| image.len() <= data.len()).collect();
    if fitting.is_empty() {
        return None;
    }
    let image = dice.pick(&fitting);
    data[..image.len()].copy_from_slice(image);
    Some(image.len())
}

fn change(data: &mut [u8], size: usize, dice: &mut Dice) -> usize {
    let cluster = image_fields::cluster_size(&data[..size]);
    match dice.roll(24) {
        0 => grown(data, size, cluster),
        1 => size.saturating_sub(cluster * (1 + dice.roll(3) as usize)).max(PROGRAM.end),
        2 => copy_cluster(data, size, cluster, dice),
        3 | 4 => {
            set_program(data, dice);
            size
        }
        _ => {
            change_field(&mut data[..size], cluster, dice);
            size
        }
    }
}

fn grown(data: &mut [u8], size: usize, cluster: usize) -> usize {
    match data.get_mut(size..size + cluster) {
        Some(more) => {
            more.fill(0);
            size + cluster
        }
        None => size,
    }
}

fn copy_cluster(data: &mut [u8], size: usize, cluster: usize, dice: &mut Dice) -> usize {
    let clusters = (size / cluster) as u64;
    if clusters > 1 {
        let (from, to) = (dice.roll(clusters) as usize * cluster, dice.roll(clusters) as usize * cluster);
        data.copy_within(from..from + cluster, to);
    }
    size
}

fn set_program(data: &mut [u8], dice: &mut Dice) {
    if let Some(program) = data.get_mut(PROGRAM) {
        for _ in 0..=dice.roll(6) {
            let at = dice.roll(program.len() as u64) as usize;
            program[at] = dice.roll(256) as u8;
        }
    }
}

fn change_field(image: &mut [u8], cluster: usize, dice: &mut Dice) {
    let groups = image_fields::groups(image);
    if groups.is_empty() {
        return;
    }
    let group = &groups[dice.roll(groups.len() as u64) as usize];
    let field = dice.pick(group);
    let others = &groups[dice.roll(groups.len() as u64) as usize];
    let other = dice.pick(others);
    set(image, (field, other), cluster as u64, dice);
}

fn set(image: &mut [u8], (field, other): (Field, Field), cluster: u64, dice: &mut Dice) {
    let value = new_value(image, (field, other), cluster, dice);
    let bytes = value.to_be_bytes();
    image[field.at..field.at + field.width].copy_from_slice(&bytes[8 - field.width..]);
}

/// A value that could mean something: see the top of the module.
fn new_value(image: &[u8], (field, other): (Field, Field), cluster: u64, dice: &mut Dice) -> u64 {
    let value_of = |field: Field| {
        let bytes = &image[field.at..field.at + field.width];
        bytes.iter().fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
    };
    let old = value_of(field);
    let clusters = (image.len() as u64 / cluster).max(1);
    let flags = dice.pick(&[0, 1 << 63, 1 << 63, 1, 1 << 63 | 1, 1 << 62]);
    match dice.roll(12) {
        0 => 0,
        1 => old.wrapping_add(1),
        2 => old.wrapping_sub(1),
        3 => old ^ 1 << dice.roll(field.width as u64 * 8),
        4 if field.width == 8 => (dice.roll(clusters) * cluster) | flags,
        5 if field.width == 8 => ((clusters + dice.roll(8)) * cluster) | flags,
        6 if field.width == 8 => dice.roll(u64::MAX) >> dice.roll(64),
        4 | 5 => dice.roll(64),
        7 => value_of(other),
        8 => dice.pick(&[u64::MAX, 1 << 63, i64::MAX as u64, 1 << 31, u64::from(u32::MAX), 1 << 56, 1 << 40]),
        // A compressed cluster is said to have any number of sectors.
        9 if field.width == 8 => {
            1 << 62 | dice.roll(1 << 16) << dice.roll(46) | dice.roll(image.len() as u64)
        }
        10 => old ^ (old & old.wrapping_neg()),
        _ => dice.roll(256),
    }
}

/// Where the header of a LUKS volume has its numbers and texts: version, cipher, mode, hash, payload, length of the key,
/// iterations, and state, iterations, material and stripes of the key slots.
pub fn luks_fields() -> Vec<(usize, usize)> {
    let mut fields = vec![(6, 2), (8, 8), (40, 8), (72, 8), (104, 4), (108, 4), (112, 8), (132, 8), (164, 4)];
    for slot in 0..8 {
        let at = 208 + 48 * slot;
        fields.extend([(at, 4), (at + 4, 4), (at + 8, 8), (at + 40, 4), (at + 44, 4)]);
    }
    fields
}

/// Where an image of version 1 that was [`super::templates::qcow1`] once has its numbers.
pub fn qcow1_fields() -> Vec<(usize, usize)> {
    let mut fields = vec![(8, 8), (16, 4), (24, 8), (32, 1), (33, 1), (36, 4), (40, 8)];
    fields.extend((0..4).map(|entry| (48 + 8 * entry, 8)));
    fields.extend((0..16).map(|entry| (512 + 8 * entry, 8)));
    fields
}

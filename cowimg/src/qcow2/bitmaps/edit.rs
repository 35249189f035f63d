//! Adding, removing, enabling, disabling and clearing bitmaps: changes in memory, saved at the close.

use super::bits::Bits;
use super::{Bitmap, Standing, State, problem};
use crate::disk::Disk;
use crate::error::{BitmapProblem, Error, Result};
use crate::format::qcow2::{BitmapEntry, BitmapsExtension, HostOffset, Version};
use crate::format::qcow2::{BitmapTableEntry, TABLE_ENTRY_SIZE};
use crate::qcow2::Qcow2;
use crate::qcow2::metadata::{Freed, Space};

/// Whether a bitmap records what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Recording {
    /// It does ("auto").
    #[default]
    On,
    /// It stays as it is.
    Off,
}

/// What a new bitmap is to be; the default is what `qemu-img bitmap --add` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NewBitmap {
    /// Guest bytes that one bit stands for, a power of two from 512 to 2 GiB. Without it the cluster size, but at least
    /// 4 KiB and at most 64 KiB.
    pub granularity: Option<u64>,
    /// Whether it records from the start.
    pub recording: Recording,
}

impl Qcow2 {
    /// Adds a bitmap without any bit set.
    pub(crate) fn add_bitmap(&self, name: &[u8], new: &NewBitmap) -> Result<()> {
        check_name(name)?;
        if self.version == Version::V2 {
            return Err(Error::unsupported("an image of version 2 (compat=0.10) cannot store bitmaps"));
        }
        let entry = self.new_entry(name, new)?;
        self.begin_change()?;
        let _one_at_a_time = self.lock_commit();
        let mut state = self.lock_bitmaps();
        if state.index_of(name).is_ok() {
            return Err(problem(name, BitmapProblem::Exists));
        }
        check_limits(&state, &entry)?;
        state.list.push(Bitmap {
            entry,
            standing: Standing::Usable,
            table: Some(Vec::new()),
            owns_clusters: true,
            flags_at: None,
            marked: true,
            stored_bits: 0,
            resized: false,
            recorded: Bits::default(),
        });
        state.relisted = true;
        self.note_recording(&state);
        Ok(())
    }

    fn new_entry(&self, name: &[u8], new: &NewBitmap) -> Result<BitmapEntry> {
        let granularity = new.granularity.unwrap_or_else(|| self.cluster_size().clamp(4 << 10, 64 << 10));
        let bounds = 1 << BitmapEntry::MIN_GRANULARITY_BITS..=1 << BitmapEntry::MAX_GRANULARITY_BITS;
        if !granularity.is_power_of_two() || !bounds.contains(&granularity) {
            return Err(Error::invalid(format!(
                "the granularity is {granularity} bytes; it must be a power of two from 512 to 2147483648"
            )));
        }
        let granularity_bits = granularity.trailing_zeros() as u8;
        let bytes = BitmapEntry::bytes_for(self.size(), granularity_bits);
        let most = BitmapEntry::MAX_BYTES
            .min(u64::from(BitmapEntry::MAX_TABLE_ENTRIES).saturating_mul(self.cluster_size()));
        if bytes > most {
            return Err(Error::invalid(format!(
                "the bitmap would take {bytes} bytes and may take {most}: choose a larger granularity than \
                 {granularity}"
            )));
        }
        if bytes == 0 {
            return Err(Error::unsupported("a disk of 0 bytes cannot have bitmaps"));
        }
        Ok(BitmapEntry {
            table: HostOffset(0),
            table_entries: 0,
            flags: if new.recording == Recording::On { BitmapEntry::AUTO } else { 0 },
            kind: BitmapEntry::DIRTY_TRACKING,
            granularity_bits,
            extra: Vec::new(),
            name: name.to_vec(),
        })
    }

    /// Removes a bitmap, whatever state it is in.
    pub(crate) fn remove_bitmap(&self, name: &[u8]) -> Result<()> {
        self.check_bitmap_exists(name)?;
        self.begin_change()?;
        let _one_at_a_time = self.lock_commit();
        let mut state = self.lock_bitmaps();
        let index = state.index_of(name)?;
        let mut bitmap = state.list.remove(index);
        bitmap.recorded.clear(&mut state.budget);
        state.removed.extend(self.clusters_of(&bitmap));
        state.relisted = true;
        self.note_recording(&state);
        Ok(())
    }

    /// What is freed with a bitmap. Clusters that cannot be told to be its own stay: they leak at most.
    fn clusters_of(&self, bitmap: &Bitmap) -> Vec<Freed> {
        let Some(table) = bitmap.table.as_ref().filter(|_| bitmap.owns_clusters && bitmap.flags_at.is_some())
        else {
            return Vec::new();
        };
        let data = table.iter().filter_map(|entry| self.freed_cluster(*entry));
        data.chain([self.freed_table(bitmap.entry.table, table.len() as u64 * TABLE_ENTRY_SIZE)]).collect()
    }

    /// The cluster that an entry which goes refers to.
    pub(super) fn freed_cluster(&self, entry: BitmapTableEntry) -> Option<Freed> {
        match entry {
            BitmapTableEntry::Cluster(at) => Some(Freed::one(self.geometry.host_cluster(at), Space::Release)),
            BitmapTableEntry::Zeroes | BitmapTableEntry::Ones => None,
        }
    }

    /// The clusters of a table that goes.
    pub(super) fn freed_table(&self, offset: HostOffset, bytes: u64) -> Freed {
        let first = self.geometry.host_cluster(offset).get();
        Freed { clusters: first..first + self.geometry.clusters_for(bytes), space: Space::Release }
    }

    /// Takes every bit out of a bitmap.
    pub(crate) fn clear_bitmap(&self, name: &[u8]) -> Result<()> {
        self.change_bitmap(name, |state, index| {
            let State { list, budget, .. } = state;
            list[index].recorded.clear(budget);
            list[index].stored_bits = 0;
        })
    }

    /// Makes a bitmap record what is written from now on, or stop.
    pub(crate) fn set_recording(&self, name: &[u8], recording: Recording) -> Result<()> {
        self.change_bitmap(name, |state, index| {
            let flags = &mut state.list[index].entry.flags;
            match recording {
                Recording::On => *flags |= BitmapEntry::AUTO,
                Recording::Off => *flags &= !BitmapEntry::AUTO,
            }
        })
    }

    /// Changes a bitmap that can be used, after the file says that it is in use.
    pub(super) fn change_bitmap(&self, name: &[u8], change: impl FnOnce(&mut State, usize)) -> Result<()> {
        self.check_bitmap_exists(name)?;
        self.begin_change()?;
        let _one_at_a_time = self.lock_commit();
        let mut state = self.lock_bitmaps();
        let index = state.index_of(name)?;
        state.list[index].check_usable()?;
        self.mark_in_use(&mut state, |bitmap| bitmap.entry.name == name)?;
        change(&mut state, index);
        self.note_recording(&state);
        Ok(())
    }

    /// So that a name that does not exist changes nothing at all.
    fn check_bitmap_exists(&self, name: &[u8]) -> Result<()> {
        self.loaded_bitmaps()?.index_of(name).map(drop)
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("a bitmap's name is not empty"));
    }
    if name.len() > BitmapEntry::MAX_NAME {
        return Err(Error::invalid(format!(
            "a bitmap's name has at most {} bytes; this one has {}",
            BitmapEntry::MAX_NAME,
            name.len()
        )));
    }
    if name.contains(&0) {
        return Err(Error::invalid("a bitmap's name has no zero byte"));
    }
    Ok(())
}

/// Refuses a bitmap that the directory has no room for.
fn check_limits(state: &State, new: &BitmapEntry) -> Result<()> {
    if state.list.len() as u64 >= u64::from(BitmapsExtension::MAX_BITMAPS) {
        return Err(Error::unsupported(format!(
            "the image has {} bitmaps, which is the most that it may have",
            state.list.len()
        )));
    }
    let entries = state.list.iter().map(|bitmap| &bitmap.entry).chain([new]);
    let bytes = entries.map(BitmapEntry::stored_len).fold(0, u64::saturating_add);
    if bytes > BitmapsExtension::MAX_DIRECTORY_SIZE {
        return Err(Error::unsupported(format!(
            "the bitmap directory would have {bytes} bytes and may have {}",
            BitmapsExtension::MAX_DIRECTORY_SIZE
        )));
    }
    Ok(())
}

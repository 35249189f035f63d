//! Bitmaps and the size of the disk: what is new is clean, what is gone is gone, as QEMU has it.

use super::{Standing, State};
use crate::error::{BitmapProblem, Result};
use crate::qcow2::Qcow2;

impl Qcow2 {
    /// To be called before the disk changes its size: refuses where a bitmap cannot follow, and marks all of them in use,
    /// those too that record nothing. Takes the commit lock.
    pub(crate) fn begin_bitmap_resize(&self) -> Result<()> {
        self.failure.check_for_change()?;
        let _one_at_a_time = self.lock_commit();
        let mut state = self.lock_bitmaps();
        for bitmap in &state.list {
            match bitmap.standing {
                Standing::Usable => {}
                Standing::Inconsistent => {
                    return Err(super::problem(&bitmap.entry.name, BitmapProblem::Inconsistent));
                }
                Standing::Unusable(why) => {
                    return Err(super::problem(&bitmap.entry.name, BitmapProblem::Unusable { why }));
                }
            }
        }
        self.mark_in_use(&mut state, |_| true)
    }

    /// To be called when the disk has its new size: bits of what is gone are dropped, and bits of what is new are zero.
    pub(crate) fn resize_bitmaps(&self, new_size: u64) {
        let mut state = self.lock_bitmaps();
        let State { list, budget, .. } = &mut *state;
        for bitmap in list {
            let bits = bitmap.bits_for(new_size);
            bitmap.stored_bits = bitmap.stored_bits.min(bits);
            bitmap.recorded.truncate(bits, budget);
            bitmap.resized = true;
        }
    }
}

//! Writing clusters compressed, in place of writing them as they are.

use super::image::Image;
use crate::codec::{self, CodecError};
use crate::error::{Error, Result};

impl Image {
    /// Writes `buf` at `offset`, both in bytes and both whole clusters (the last may end with the disk), each of which is
    /// stored compressed; one that does not become smaller is stored as it is. Everything else is as with
    /// [`Image::write_at`]. Raw images, encrypted ones and those with an external data file refuse it.
    pub fn write_compressed_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let (Some(method), Some(cluster_size)) = (self.compression(), self.cluster_size()) else {
            return self.named(Err(Error::unsupported("a raw image cannot hold compressed clusters")));
        };
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.size() {
            // Refused in the words of every write.
            return self.write_at(buf, offset);
        }
        if !offset.is_multiple_of(cluster_size) || !(end.is_multiple_of(cluster_size) || end == self.size()) {
            return self.named(Err(Error::invalid(format!(
                "a compressed write begins and ends where clusters of {cluster_size} bytes do"
            ))));
        }
        if let Some(qcow2) = self.top.qcow2() {
            self.named(qcow2.refuse_compressed())?;
        }
        let mut packed = vec![0; cluster_size as usize - 1];
        let mut at = offset;
        for part in buf.chunks(cluster_size as usize) {
            let mut whole = part.to_vec();
            whole.resize(cluster_size as usize, 0);
            let len = codec::compress(method, &whole, &mut packed).map_err(|error| match error {
                CodecError::NotBuilt { .. } => Error::unsupported(error.to_string()),
                other => Error::invalid(other.to_string()),
            });
            match self.named(len)? {
                Some(len) => self.write_compressed(&packed[..len], at)?,
                None => self.write_at(part, at)?,
            }
            at += part.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::storage::MemoryStorage;
    use crate::{Access, CreateOptions, ErrorKind, ExtentKind, Format, Image};

    const CLUSTER: u64 = 65536;

    fn opened() -> (tempfile::TempDir, Image) {
        let folder = tempfile::tempdir().unwrap();
        let image =
            Image::create(folder.path().join("i.qcow2"), &CreateOptions::qcow2(3 * CLUSTER + 512)).unwrap();
        (folder, image)
    }

    #[test]
    fn clusters_are_stored_compressed_unless_that_saves_nothing() {
        let (folder, image) = opened();
        let mut bytes = vec![7; 3 * CLUSTER as usize + 512];
        let mut state = 1_u64;
        for byte in &mut bytes[CLUSTER as usize..2 * CLUSTER as usize] {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        // The second time over what is there.
        for _ in 0..2 {
            image.write_compressed_at(&bytes, 0).unwrap();
            let mut found = vec![0; bytes.len()];
            image.read_at(&mut found, 0).unwrap();
            assert!(found == bytes);
        }
        let kind = |at| image.extent_at(at, 1).unwrap().kind;
        assert_eq!(
            [0, 1, 2, 3].map(|nth| kind(nth * CLUSTER)),
            [ExtentKind::Compressed, ExtentKind::Data, ExtentKind::Compressed, ExtentKind::Compressed]
        );
        image.close().unwrap();
        let image = Image::open(folder.path().join("i.qcow2")).unwrap();
        assert!(image.check().unwrap().is_clean());
    }

    #[test]
    fn parts_of_clusters_and_raw_images_are_refused() {
        let (_folder, image) = opened();
        for (offset, len) in [(1, CLUSTER), (0, 512), (CLUSTER, CLUSTER - 1), (3 * CLUSTER, 511)] {
            let error = image.write_compressed_at(&vec![1; len as usize], offset).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidArgument(_)), "{error}");
        }
        for offset in [4 * CLUSTER, u64::MAX - 65535] {
            let error = image.write_compressed_at(&vec![1; CLUSTER as usize], offset).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::OutOfBounds { .. }), "{error}");
        }
        let raw = Arc::new(MemoryStorage::with_bytes(vec![0; 4096]));
        let raw = Image::options().access(Access::ReadWrite).format(Format::Raw).open_storage(raw).unwrap();
        let error = raw.write_compressed_at(&[1; 4096], 0).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    }
}

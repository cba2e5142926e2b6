//! Bytes on their way out.

/// Bytes on their way out, in a buffer that does not grow.
pub struct Outbox {
    bytes: Box<[u8]>,
    used: usize,
}

impl Outbox {
    /// Room for `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes].into(), used: 0 }
    }

    /// The next `bytes` bytes, to be filled; `None`, and nothing is taken, when there is no room for all.
    pub fn room(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let place = self.bytes.get_mut(self.used..)?.get_mut(..bytes)?;
        self.used += bytes;
        Some(place)
    }

    /// Puts all parts; `false`, and nothing is put, when there is no room for all.
    pub fn put(&mut self, parts: &[&[u8]]) -> bool {
        let total = parts.iter().map(|part| part.len()).sum();
        let Some(mut place) = self.room(total) else { return false };
        for part in parts {
            let Some((here, rest)) = place.split_at_mut_checked(part.len()) else { return false };
            here.copy_from_slice(part);
            place = rest;
        }
        true
    }

    /// What is to be sent.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    /// Everything was sent.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::Outbox;

    #[test]
    fn parts_are_put_whole_or_not_at_all() {
        let mut out = Outbox::new(6);
        assert!(out.put(&[b"ab", b"", b"c"]));
        assert!(!out.put(&[b"de", b"fg"]));
        assert!(out.room(4).is_none());
        out.room(3).unwrap().copy_from_slice(b"xyz");
        assert_eq!(out.bytes(), b"abcxyz");
        out.clear();
        assert_eq!(out.bytes(), b"");
        assert!(out.put(&[b"123456"]));
    }
}

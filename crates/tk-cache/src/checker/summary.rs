use super::{CacheAnswer, CheckedPath, SignatureTrust};

/// What a check found, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Paths that were checked.
    pub paths: usize,
    /// Those that at least one cache has.
    pub present: usize,
    /// Those that every cache said it has not.
    pub missing: usize,
    /// Those of which neither can be told, because a cache could not be asked.
    pub unknown: usize,
    /// Those that are present, but nowhere with the signatures that were demanded.
    pub untrusted: usize,
    /// Those of which it is not known what they refer to: the closure behind them is not part of
    /// the check.
    pub not_followed: usize,
    /// Bytes of the NARs of what is present, uncompressed.
    pub nar_size: u64,
    /// Bytes to fetch for what is present, from the first cache that has it each time; as far as
    /// the caches tell.
    pub download_size: u64,
    /// Paths that are present and of which the caches do not tell how much is to be fetched.
    pub unknown_size: usize,
    /// The same for each cache.
    pub caches: Vec<CacheSummary>,
}

/// What one cache has of all that was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheSummary {
    /// Paths that it has.
    pub present: usize,
    /// Paths that it said it has not.
    pub absent: usize,
    /// Paths about which it could not be asked.
    pub not_asked: usize,
    /// Paths that it has, but not with the signatures that were demanded.
    pub untrusted: usize,
    /// Bytes of the NARs of what it has, uncompressed.
    pub nar_size: u64,
    /// Bytes to fetch for what it has, as far as it tells.
    pub download_size: u64,
    /// Paths that it has and of which it does not tell that.
    pub unknown_size: usize,
}

impl Summary {
    /// Counts one more path.
    pub fn add(&mut self, checked: &CheckedPath) {
        self.paths += 1;
        self.missing += usize::from(checked.is_missing());
        self.unknown += usize::from(checked.is_unknown());
        self.not_followed += usize::from(!checked.followed);
        if let Some((_, narinfo, _)) = checked.first() {
            self.present += 1;
            self.untrusted += usize::from(!checked.is_trusted());
            // A cache may claim any size.
            self.nar_size = self.nar_size.saturating_add(narinfo.info.nar_size);
            let size = narinfo.file_size;
            self.unknown_size += usize::from(size.is_none());
            self.download_size = self.download_size.saturating_add(size.unwrap_or(0));
        }
        if self.caches.len() < checked.answers.len() {
            let caches = checked.answers.len();
            self.caches.resize_with(caches, CacheSummary::default);
        }
        for (cache, answer) in self.caches.iter_mut().zip(&checked.answers) {
            cache.add(answer);
        }
    }
}

impl CacheSummary {
    fn add(&mut self, answer: &CacheAnswer) {
        match answer {
            CacheAnswer::Absent => self.absent += 1,
            CacheAnswer::NotAsked(_) => self.not_asked += 1,
            CacheAnswer::Present(narinfo, trust) => {
                self.present += 1;
                self.untrusted += usize::from(matches!(trust, SignatureTrust::Untrusted(_)));
                self.nar_size = self.nar_size.saturating_add(narinfo.info.nar_size);
                let size = narinfo.file_size;
                self.unknown_size += usize::from(size.is_none());
                self.download_size = self.download_size.saturating_add(size.unwrap_or(0));
            }
        }
    }
}

//! Signatures that clients give to paths. Nobody can tell those of an unknown key from junk, and everybody may
//! add them: so there is a bound, and what is right by a trusted key stays and is added whatever else is there.

use super::context::{OperationContext, OperationResult, refused};
use std::collections::BTreeSet;
use tk_narinfo::{PathInfo, Policy, Signature};
use tk_path::{StoreDir, StorePath};
use tk_store::StoreExt;

impl OperationContext {
    pub async fn add_signatures(
        &self,
        path: &StorePath,
        signatures: &BTreeSet<Signature>,
    ) -> OperationResult<()> {
        let store = self.able(&self.abilities.signatures, "takes no further signatures")?;
        let info = self.abilities.store.require_info(path).await?;
        let new: BTreeSet<_> = signatures.difference(&info.signatures).cloned().collect();
        let (dir, policy) = (self.abilities.store.dir(), &self.policy);
        let good = good(policy, dir, &info, &new);
        let all = size(&info.signatures) + size(&new);
        if good.len() < new.len() && all > self.most_signatures() {
            return Err(refused(format!(
                "{path} has, with these, {all} bytes of signatures, which is too many; \
                 those of trusted keys are taken if they come alone"
            )));
        }
        Ok(store.add_signatures(path, &new).await?)
    }

    /// Leaves out of `info` signatures that are too many.
    pub fn bound_signatures(&self, info: &mut PathInfo) {
        let most = self.most_signatures();
        if size(&info.signatures) <= most {
            return;
        }
        let dir = self.abilities.store.dir();
        let mut kept = good(&self.policy, dir, info, &info.signatures);
        let mut left = most.saturating_sub(size(&kept));
        for signature in &info.signatures {
            if let Some(rest) = left.checked_sub(length(signature)) {
                left = rest;
                kept.insert(signature.clone());
            }
        }
        info.signatures = kept;
    }

    fn most_signatures(&self) -> usize {
        if self.trusted { MOST_OF_TRUSTED } else { MOST }
    }
}

/// Those of `signatures` over `info` that trusted keys have made.
fn good(
    policy: &Policy,
    dir: &StoreDir,
    info: &PathInfo,
    signatures: &BTreeSet<Signature>,
) -> BTreeSet<Signature> {
    let Ok(text) = info.fingerprint(dir) else {
        return BTreeSet::new();
    };
    let verifies = |signature: &&Signature| {
        let verdict = policy.keys.verify(text.as_bytes(), signature);
        matches!(verdict, Ok(Some(true)))
    };
    signatures.iter().filter(verifies).cloned().collect()
}

fn size(signatures: &BTreeSet<Signature>) -> usize {
    signatures.iter().map(length).sum()
}

/// As text, with what stands around it in a narinfo.
fn length(signature: &Signature) -> usize {
    8 + signature.key_name().len() + signature.bytes().len().div_ceil(3) * 4
}

/// In bytes: some hundred.
const MOST: usize = 16 << 10;
/// In bytes: well below what readers of narinfos take.
const MOST_OF_TRUSTED: usize = 512 << 10;

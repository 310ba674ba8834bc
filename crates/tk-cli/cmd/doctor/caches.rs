//! What there is to know of one cache to fetch from.

use super::{CommandContext, OpenOptions};
use futures::{StreamExt, stream};
use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tk_cache::{
    BinaryCache,
    observer::{AnsweredRequest, NetworkObserver},
};
use tk_narinfo::{CacheInfo, MAX_NARINFO_BYTES, NarInfo, TrustedKeys};
use tk_open::{OpenSettings, OpenStore, open_with, store_reference, without_password};
use tk_path::{HashPart, StorePath};
use tk_project::doctor::{
    CacheKeysSeen, ClockSeen, DoctorFinding, MemorySeen, judge_cache_keys, judge_clock,
    judge_memory,
};
use tk_store::Store;
use tokio::time::timeout;

/// Asks the cache at `uri` who it is; if it answers, also what it signs with, what time it is there, and
/// whether it still says what is remembered.
pub async fn examine(cx: &CommandContext, uri: &str, patience: Duration) -> Vec<DoctorFinding> {
    let name = &*without_password(uri);
    let heard = Arc::new(ServerHeard::default());
    let mut settings = (*cx.settings).clone();
    settings.observer = heard.clone();
    settings.tell = Arc::new(drop);
    let reached = timeout(patience, reach(&settings, uri, name)).await;
    let reached = reached.unwrap_or_else(|_| {
        let advice =
            "see whether the network and the server are up; nix waits for it, too, at every build";
        let seconds = patience.as_secs();
        let words = format!("{name} does not answer within {seconds} s");
        Err(DoctorFinding::fail("substituter", words, advice).of(name))
    });
    let opened = match reached {
        Ok(opened) => opened,
        Err(finding) => return vec![finding],
    };
    let words = format!("{name} answers");
    let mut findings = vec![DoctorFinding::pass("substituter", words).of(name)];
    if let Some(cache) = opened.cache() {
        let late = |check| DoctorFinding::unproven(check, format!("{name} took too long")).of(name);
        let keys = timeout(patience, keys(cx, uri, name, cache));
        let memory = timeout(patience, memory(cx, name, cache, &heard));
        let (keys, memory) = futures::join!(keys, memory);
        findings.push(keys.unwrap_or_else(|_| late("keys")));
        findings.extend(memory.unwrap_or_else(|_| Some(late("memory"))));
    }
    findings.extend(heard.clock(name));
    findings
}

async fn reach(settings: &OpenSettings, uri: &str, name: &str) -> Result<OpenStore, DoctorFinding> {
    let advice = "see whether the URL is right and the server is up, or take it out of substituters in nix.conf";
    let failed = |why: String| DoctorFinding::fail("substituter", why, advice).of(name);
    let mut wish = OpenOptions::default();
    wish.refresh = true;
    let opened = open_with(uri, settings, &wish).await;
    let opened = opened.map_err(|error| failed(error.to_line()))?;
    let Some(cache) = opened.cache() else {
        let described = opened.describe().await;
        return described
            .map(|_| opened)
            .map_err(|error| failed(format!("{name}: {}", error.to_line())));
    };
    let text = cache.read_cache_info().await;
    let text = text.map_err(|error| failed(format!("{name}: {}", error.to_line())))?;
    let Some(text) = text else {
        return Err(failed(format!(
            "{name} answers, but is no cache: it has no nix-cache-info"
        )));
    };
    let fits = CacheInfo::parse(&text).and_then(|info| info.check_store_dir(cache.dir()));
    fits.map_err(|error| failed(format!("{name}: {error}")))?;
    Ok(opened)
}

async fn keys(cx: &CommandContext, uri: &str, name: &str, cache: &BinaryCache) -> DoctorFinding {
    let trusted = match cx.settings.trusted_keys() {
        Ok(keys) => keys,
        Err(error) => {
            let advice = "mend trusted-public-keys in nix.conf: each is NAME:BASE64";
            return DoctorFinding::fail("keys", error.to_line(), advice).of(name);
        }
    };
    if cx.settings.nix_conf.is_on("require-sigs") == Some(false) {
        let advice = "set 'require-sigs = true' in nix.conf, unless every cache is yours";
        let words = format!("{name} is believed without signatures (require-sigs = false)");
        return DoctorFinding::warn("keys", words, advice).of(name);
    }
    let named = store_reference(uri).ok();
    let trusted_param = named.and_then(|reference| reference.params.get("trusted").cloned());
    if matches!(trusted_param.as_deref(), Some("true" | "1")) {
        let advice = "leave out 'trusted' unless the cache is yours, and trust its key";
        let words = format!("{name} is believed without signatures, as its URL says");
        return DoctorFinding::warn("keys", words, advice).of(name);
    }
    let sample = sample(cx, cache).await;
    judge_cache_keys(name, &seen_of(&sample, cache, &trusted))
}

fn seen_of(sample: &[NarInfo], cache: &BinaryCache, trusted: &TrustedKeys) -> CacheKeysSeen {
    let mut seen = CacheKeysSeen::default();
    let mut names = BTreeSet::new();
    for narinfo in sample {
        let signatures = &narinfo.info.signatures;
        let valid = narinfo.info.valid_signatures(cache.dir(), trusted);
        let is_trusted = valid.is_ok_and(|valid| valid > 0);
        // What its own address proves is taken without a signature.
        if narinfo.info.ca.is_some() && !is_trusted {
            continue;
        }
        seen.looked_at += 1;
        seen.unsigned += usize::from(signatures.is_empty());
        seen.trusted += usize::from(is_trusted);
        names.extend(
            signatures
                .iter()
                .map(|signature| signature.key_name().to_owned()),
        );
    }
    seen.names = names.into_iter().take(MOST_NAMES).collect();
    seen
}

/// A few narinfos of the cache: the first that it lists or, far away, of paths that this machine knows of.
async fn sample(cx: &CommandContext, cache: &BinaryCache) -> Vec<NarInfo> {
    if cache.folder().is_some() {
        let Ok(all) = cache.all_narinfos().await else {
            return Vec::new();
        };
        let read = all.filter_map(|(_, narinfo)| async { narinfo.ok() });
        return read.take(SAMPLE).collect().await;
    }
    let remembered = remembered(cx, cache).into_iter();
    let remembered = remembered.filter(|(_, there)| *there).map(|(part, _)| part);
    let parts: BTreeSet<HashPart> = remembered.chain(parts_of_store(cx)).collect();
    let texts = ask(cache, parts.into_iter().collect()).await.into_iter();
    let texts = texts.filter_map(Option::flatten);
    let read = texts.filter_map(|text| {
        let text = std::str::from_utf8(&text).ok()?;
        NarInfo::parse(cache.dir(), text).ok()
    });
    read.take(SAMPLE).collect()
}

/// Some paths of this machine's store, which the cache may have, too.
fn parts_of_store(cx: &CommandContext) -> Vec<HashPart> {
    let dir = cx.settings.store_dir().unwrap_or_default();
    let entries = fs::read_dir(dir.as_str()).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let paths = names.filter_map(|name| StorePath::parse(&name).ok());
    let paths = paths.filter(|path| !path.as_str().ends_with(".drv"));
    let parts = paths.filter_map(|path| HashPart::parse(path.hash_part()).ok());
    parts.take(ASKED).collect()
}

/// What was said of a cache on HTTP, by this program's memory and by Nix's.
fn remembered(cx: &CommandContext, cache: &BinaryCache) -> Vec<(HashPart, bool)> {
    let identity = cache.objects().to_string();
    match cx.settings.narinfo_memory() {
        Some(memory) if identity.starts_with("http") => {
            memory.sample(&identity, cache.dir(), ASKED as u32)
        }
        _ => Vec::new(),
    }
}

async fn memory(
    cx: &CommandContext,
    name: &str,
    cache: &BinaryCache,
    heard: &ServerHeard,
) -> Option<DoctorFinding> {
    cache.folder().is_none().then_some(())?;
    let remembered = remembered(cx, cache);
    let now = ask(cache, remembered.iter().map(|(part, _)| *part).collect());
    let mut seen = MemorySeen::default();
    for ((part, was_there), now) in remembered.iter().zip(now.await) {
        let now = now.filter(|_| !heard.is_refused(part));
        let Some(now) = now else {
            seen.failed += 1;
            continue;
        };
        seen.asked += 1;
        seen.gone += usize::from(*was_there && now.is_none());
        seen.come += usize::from(!*was_there && now.is_some());
    }
    Some(judge_memory(name, seen))
}

/// The narinfo of each of `parts` as the cache has it now, in their order; `None` where it could not be asked.
async fn ask(cache: &BinaryCache, parts: Vec<HashPart>) -> Vec<Option<Option<Vec<u8>>>> {
    let objects = cache.objects();
    let names: Vec<_> = parts.iter().map(narinfo_name).collect();
    let reads = names
        .iter()
        .map(|name| objects.read(name, MAX_NARINFO_BYTES));
    let reads: Vec<_> = reads.collect();
    let texts = stream::iter(reads).buffered(objects.parallel());
    let texts: Vec<_> = texts.collect().await;
    let texts = texts.into_iter().map(tk_store::Result::ok);
    texts
        .map(|text| text.map(|text| text.map(|text| text.to_vec())))
        .collect()
}

pub fn narinfo_name(part: &HashPart) -> String {
    format!("{part}.narinfo")
}

/// What a server said beside what it was asked for.
#[derive(Debug, Default)]
struct ServerHeard {
    has_answered: AtomicBool,
    /// How this machine's clock differs from that of the first answer that tells the time.
    clock: OnceLock<ClockSeen>,
    /// URLs that it wanted a login for. The cache takes them for absent, as Nix does.
    refused: Mutex<BTreeSet<String>>,
}

impl ServerHeard {
    fn clock(&self, name: &str) -> Option<DoctorFinding> {
        let unproven = || {
            let words =
                format!("{name} does not tell the time, or old answers of it are kept on the way");
            DoctorFinding::unproven("clock", words).of(name)
        };
        match self.clock.get() {
            Some(seen) => Some(judge_clock(name, *seen)),
            None => self.has_answered.load(Ordering::Relaxed).then(unproven),
        }
    }

    fn is_refused(&self, part: &HashPart) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let name = narinfo_name(part);
        refused.iter().any(|url| url.ends_with(&name))
    }
}

impl NetworkObserver for ServerHeard {
    fn answered(&self, request: &AnsweredRequest<'_>) {
        let Ok(status) = request.outcome else { return };
        self.has_answered.store(true, Ordering::Relaxed);
        if matches!(status, 401 | 403) {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.insert(request.url.to_owned());
        }
        if let Some(theirs) = request.date {
            let age = request.age.unwrap_or_default();
            let _ = self
                .clock
                .set(ClockSeen::of(SystemTime::now(), theirs, age));
        }
    }
}

/// Narinfos whose signatures are looked at.
const SAMPLE: usize = 5;
/// Paths that a cache is asked for.
const ASKED: usize = 20;
/// Names of keys that are told.
const MOST_NAMES: usize = 3;

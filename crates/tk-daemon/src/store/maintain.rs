use super::DaemonStore;
use crate::worker::ops::{OptimiseStore, VerifyStore};
use async_trait::async_trait;
use std::sync::Mutex;
use tk_store::{
    Error, FaultKind, Maintain, MetadataCheck, OptimiseReport, RepairSource, Result, StoreFault,
    StoreVerifyOptions, StoreVerifyReport, VerifyDepth,
    log::{Level, LogEvent, LogField, LogSink, ResultType, strip_ansi, strip_error_prefix},
};

#[async_trait]
impl Maintain for DaemonStore {
    /// What was done is counted by what the daemon tells meanwhile.
    async fn optimise(&self, log: &dyn LogSink) -> Result<OptimiseReport> {
        let report = Mutex::new(OptimiseReport::default());
        let count = |event: LogEvent| {
            if let LogEvent::Result {
                kind: ResultType::FILE_LINKED,
                fields,
                ..
            } = &event
                && let Some(LogField::Int(bytes)) = fields.first()
            {
                let mut report = report.lock().unwrap_or_else(|e| e.into_inner());
                report.files_linked += 1;
                report.bytes_saved += bytes;
            }
            log.event(event);
        };
        self.call_logged(&OptimiseStore {}, &count).await?;
        Ok(report.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    /// What is wrong is known by the daemon's words alone.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the protocol cannot say what is wanted.
    async fn verify_store(
        &self,
        options: &StoreVerifyOptions,
        log: &dyn LogSink,
    ) -> Result<StoreVerifyReport> {
        let cannot = match (&options.repair, options.metadata) {
            (RepairSource::Stores(_), _) => Some("repairs from its own substituters only"),
            (_, MetadataCheck::Canonical) => Some("cannot check modes and times"),
            _ => None,
        };
        if let Some(what) = cannot {
            return Err(Error::Unsupported {
                store: self.to_string(),
                what: what.to_owned(),
            });
        }
        let request = VerifyStore {
            check_contents: options.depth == VerifyDepth::Contents,
            repair: options.repair.is_wanted(),
        };
        let faults = Mutex::new(Vec::new());
        let note = |event: LogEvent| {
            if let LogEvent::Message { level, text } = &event
                && let Some(kind) = kind_of(*level, text)
            {
                let mut faults = faults.lock().unwrap_or_else(|e| e.into_inner());
                if faults.len() < MAX_FAULTS {
                    faults.push(fault(kind, text));
                }
            }
            log.event(event);
        };
        let errors_left = self.call_logged(&request, &note).await?;
        let mut faults = faults.into_inner().unwrap_or_else(|e| e.into_inner());
        // Which of them were mended the daemon does not say, but when all were.
        for fault in &mut faults {
            fault.mended |= request.repair && !errors_left;
        }
        Ok(StoreVerifyReport {
            verified: None,
            faults,
            errors_left,
        })
    }
}

fn fault(kind: FaultKind, text: &str) -> StoreFault {
    StoreFault {
        subject: String::new(),
        kind,
        line: strip_error_prefix(&strip_ansi(text)),
        mended: kind == FaultKind::Disappeared,
    }
}

/// What is wrong by the daemon's words; it does not always say how much they matter.
fn kind_of(level: Level, text: &str) -> Option<FaultKind> {
    let text = strip_ansi(text);
    let has = |words| text.contains(words);
    Some(if has("disappeared, removing from database") {
        FaultKind::Disappeared
    } else if has("disappeared, but it still has valid referrers") {
        FaultKind::DisappearedWithReferrers
    } else if has("was modified! expected hash") && text.starts_with("link ") {
        FaultKind::LinkModified
    } else if has("was modified! expected hash") {
        FaultKind::Modified
    } else if level == Level::Error || text.starts_with("error:") {
        FaultKind::Other
    } else {
        return None;
    })
}

/// What is kept of what a daemon says is wrong.
const MAX_FAULTS: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// As Nix 2.8, 2.26 and 2.34 say it through a daemon.
    #[test]
    fn words_of_daemons() {
        for (text, kind) in [
            ("reading the Nix store...", None),
            (
                "link \"/nix/store/.links/0\" was modified! expected hash 0, got '1'",
                Some(FaultKind::LinkModified),
            ),
            (
                "path '/nix/store/x' was modified! expected hash 'sha256:0', got 'sha256:1'",
                Some(FaultKind::Modified),
            ),
            (
                "path '/nix/store/x' disappeared, removing from database...",
                Some(FaultKind::Disappeared),
            ),
            (
                "path '/nix/store/x' disappeared, but it still has valid referrers!",
                Some(FaultKind::DisappearedWithReferrers),
            ),
            (
                "\u{1b}[31;1merror:\u{1b}[0m cannot repair path '/nix/store/x'",
                Some(FaultKind::Other),
            ),
        ] {
            assert_eq!(kind_of(Level::Info, text), kind, "{text}");
        }
    }
}

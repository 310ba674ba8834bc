//! The line that tells how far something is.

use super::size;
use std::time::Duration;

/// How far something is.
#[derive(Debug, Clone, Default)]
pub struct ProgressState {
    pub verb: &'static str,
    /// Paths that are where they should be, and all of them; `None` for a thing without number.
    pub paths: Option<(u64, u64)>,
    /// Bytes that are where they should be.
    pub bytes: u64,
    /// All of them, if that is known.
    pub all_bytes: Option<u64>,
    /// Bytes of the last second or so, on the wire if there is one.
    pub speed: u64,
    /// How long it will take.
    pub left: Option<Duration>,
    /// Bytes that went over the wire, packed.
    pub wire: u64,
    /// What is worked on.
    pub name: String,
}

impl ProgressState {
    /// One line of at most `columns` columns. The verb and the number of paths are always in it;
    /// what does not fit is left out, the least important first.
    pub fn to_bar(&self, columns: usize) -> String {
        let counter = self.counter();
        let columns = columns.saturating_sub(1);
        let mut room = columns.saturating_sub(self.verb.len() + counter.len());
        let mut fits = |part: String| {
            let fits = !part.is_empty() && part.len() + 2 <= room;
            room -= if fits { part.len() + 2 } else { 0 };
            fits.then_some(format!("  {part}")).unwrap_or_default()
        };
        let bytes = fits(self.amount("/"));
        let left = fits(self.eta());
        let speed = fits(format!("{}/s", size(self.speed)));
        let wire = fits(self.on_the_wire());
        let bar = match self.all_bytes {
            Some(all) if room > LEAST_BAR + 3 => {
                let cells = MOST_BAR.min(room - 3);
                room -= cells + 3;
                format!(" [{}]", bar(self.bytes, all, cells))
            }
            _ => String::new(),
        };
        let name = if room > LEAST_NAME + 2 && !self.name.is_empty() {
            format!("  {}", shortened(self.name.clone(), room - 1))
        } else {
            String::new()
        };
        let verb = self.verb;
        let line = format!("{verb}{bar}{counter}{bytes}{speed}{left}{wire}{name}");
        shortened(line, columns + 1)
    }

    /// The same as a line of a log.
    pub fn to_line(&self) -> String {
        let counter = self.counter();
        let parts = [self.amount(" of "), self.on_the_wire(), self.eta()];
        let parts = parts.iter().filter(|part| !part.is_empty());
        let parts: Vec<_> = parts.map(String::as_str).collect();
        format!("{}{counter} {}", self.verb, parts.join(", "))
    }

    fn counter(&self) -> String {
        match self.paths {
            Some((done, 1)) => format!(" {done}/1 path"),
            Some((done, all)) => format!(" {done}/{all} paths"),
            None => String::new(),
        }
    }

    fn amount(&self, of: &str) -> String {
        match self.all_bytes {
            Some(all) => format!("{}{of}{}", size(self.bytes), size(all)),
            None => size(self.bytes),
        }
    }

    fn eta(&self) -> String {
        self.left
            .map_or(String::new(), |left| format!("ETA {}", duration(left)))
    }

    /// Where all that is known is what came and is not unpacked yet, that is said.
    fn on_the_wire(&self) -> String {
        match self.wire {
            0 => String::new(),
            wire => format!("{} on the wire", size(wire)),
        }
    }
}

/// `line`, if need be cut so that it does not reach column `columns`.
pub fn shortened(line: String, columns: usize) -> String {
    let most = columns.saturating_sub(1);
    if line.chars().count() > most {
        line.chars().take(most).collect()
    } else {
        line
    }
}

/// The width of the terminal behind stderr.
pub fn columns() -> usize {
    let size = console::Term::stderr().size_checked();
    size.map_or(80, |(_, columns)| usize::from(columns))
}

fn bar(done: u64, all: u64, cells: usize) -> String {
    let part = done.min(all) as f64 / all.max(1) as f64;
    let filled = (part * cells as f64) as usize;
    let mut bar = "=".repeat(filled);
    if filled < cells {
        bar.push('>');
    }
    format!("{bar:cells$}")
}

/// In whole seconds, never none.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil().max(1.0) as u64;
    match (seconds / 3600, seconds / 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (hours, minutes) => format!("{hours} h {} min", minutes % 60),
    }
}

/// Cells of the bar.
const LEAST_BAR: usize = 8;
const MOST_BAR: usize = 30;

/// Characters of a name that are worth showing.
const LEAST_NAME: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ProgressState {
        ProgressState {
            verb: "push",
            paths: Some((12, 40)),
            bytes: 12 << 20,
            all_bytes: Some(16 << 20),
            speed: 3 << 19,
            left: Some(Duration::from_millis(2_900)),
            wire: 5 << 20,
            name: "hello-2.12.1-with-a-long-name".into(),
        }
    }

    #[test]
    fn fits_and_keeps_its_counter() {
        for columns in 40..=200 {
            let line = state().to_bar(columns);
            assert!(line.chars().count() < columns, "{columns}: {line}");
            assert!(line.contains(" 12/40 paths"), "{columns}: {line}");
        }
        assert_eq!(state().to_bar(40), "push 12/40 paths  12.00 MiB/16.00 MiB");
        assert_eq!(
            state().to_bar(80),
            "push [=============>    ] 12/40 paths  12.00 MiB/16.00 MiB  1.50 MiB/s  ETA 3 s"
        );
        assert_eq!(
            state().to_bar(140),
            "push [======================>       ] 12/40 paths  12.00 MiB/16.00 MiB  1.50 MiB/s  \
             ETA 3 s  5.00 MiB on the wire  hello-2.12.1-with-a-long"
        );
        assert_eq!(state().to_bar(10), "push 12/4");
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let nothing = ProgressState {
            verb: "pull",
            paths: Some((0, 1)),
            all_bytes: Some(16 << 20),
            ..ProgressState::default()
        };
        assert_eq!(
            nothing.to_bar(60),
            "pull [>                    ] 0/1 path  0 B/16.00 MiB  0 B/s"
        );
        assert_eq!(nothing.to_line(), "pull 0/1 path 0 B of 16.00 MiB");
        let reading = ProgressState {
            verb: "add",
            bytes: 1024,
            ..ProgressState::default()
        };
        assert_eq!(reading.to_line(), "add 1.00 KiB");
    }

    #[test]
    fn durations() {
        for (seconds, expected) in [
            (0.0, "1 s"),
            (59.2, "1 min 0 s"),
            (125.0, "2 min 5 s"),
            (7261.0, "2 h 1 min"),
        ] {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), expected);
        }
    }
}

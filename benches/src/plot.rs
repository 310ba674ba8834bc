//! `tk-bench plot`: the figures of a run as a picture, SVG without scripts, fonts or styles from elsewhere.
//!
//! One group of bars for each job, ours first; each group has a scale of its own, as wide as its slowest bar. A line marks
//! the physical limit where one was measured.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Draw the figures of `--json` as a picture.
#[derive(clap::Args)]
pub struct Plot {
    /// What `--json` wrote
    result: PathBuf,
    /// The picture to make
    out: PathBuf,
    /// Only these jobs, by parts of their titles
    #[arg(long, value_delimiter = ';', value_name = "PART;…")]
    jobs: Vec<String>,
    /// Without these contenders, by the beginning of the name
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    without: Vec<String>,
}

impl Plot {
    pub fn run(self) -> Result<()> {
        let name = || format!("reading {}", self.result.display());
        let text = fs::read(&self.result).with_context(name)?;
        let value = serde_json::from_slice(&text).with_context(name)?;
        let mut groups = groups(&value)?;
        groups.retain(|group| {
            let wanted = |part: &String| group.title.contains(part.as_str());
            self.jobs.is_empty() || self.jobs.iter().any(wanted)
        });
        for group in &mut groups {
            let unwanted = |bar: &Bar, name: &String| bar.name.starts_with(name.as_str());
            group
                .bars
                .retain(|bar| !self.without.iter().any(|name| unwanted(bar, name)));
        }
        groups.retain(|group| !group.bars.is_empty());
        save(&groups, &self.out)
    }
}

/// Draws what `Report::to_json` gives.
///
/// # Errors
/// When nothing was measured, or the file cannot be written.
pub fn write(result: &Value, out: &Path) -> Result<()> {
    save(&groups(result)?, out)
}

fn save(groups: &[Group], out: &Path) -> Result<()> {
    ensure!(!groups.is_empty(), "there is nothing to draw");
    fs::write(out, picture(groups)).with_context(|| format!("writing {}", out.display()))
}

/// One job.
#[derive(Debug)]
struct Group {
    title: String,
    bars: Vec<Bar>,
    /// Seconds, of the slowest limit.
    limit: Option<f64>,
}

#[derive(Debug)]
struct Bar {
    name: String,
    ours: bool,
    yardstick: bool,
    seconds: f64,
    /// Its time divided by ours.
    ratio: Option<f64>,
}

/// An error if it has not the form of results. What has no figure is left out.
fn groups(result: &Value) -> Result<Vec<Group>> {
    grouped(result).context("these are no results of tk-bench")
}

fn grouped(result: &Value) -> Option<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for row in result.get("results")?.as_array()? {
        let text = |key: &str| row.get(key)?.as_str();
        let title = crate::contest::title(text("job")?, text("corpus")?);
        let Some(seconds) = row.get("median")?.as_f64() else {
            continue;
        };
        if groups.last().is_none_or(|group| group.title != title) {
            groups.push(Group {
                title,
                bars: Vec::new(),
                limit: None,
            });
        }
        let group = groups.last_mut()?;
        match text("role")? {
            "limit" => group.limit = Some(group.limit.unwrap_or(0.0).max(seconds)),
            role => group.bars.push(Bar {
                name: text("contender")?.to_owned(),
                ours: role == "ours",
                yardstick: role == "yardstick",
                seconds,
                ratio: row["oursByIt"].as_f64().map(|ours| 1.0 / ours),
            }),
        }
    }
    // One bar alone compares nothing.
    groups.retain(|group| group.bars.len() + usize::from(group.limit.is_some()) > 1);
    groups
        .iter_mut()
        .for_each(|group| group.bars.sort_by_key(|bar| (!bar.ours, bar.yardstick)));
    Some(groups)
}

fn picture(groups: &[Group]) -> String {
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = TOP + groups.len() as f64 * (TITLE + GAP) + rows as f64 * STEP + BOTTOM;
    let mut svg = String::new();
    let out = &mut svg;
    // Strings take everything.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"{FONT}\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n"
    );
    legend(out);
    let mut y = TOP;
    for group in groups {
        y = draw(group, y, out) + GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Returns where the next thing may begin.
fn draw(group: &Group, top: f64, out: &mut String) -> f64 {
    let longest = group.bars.iter().map(|bar| bar.seconds).fold(0.0, f64::max);
    let scale = BARS
        / longest
            .max(group.limit.unwrap_or(0.0))
            .max(f64::MIN_POSITIVE);
    text(
        out,
        (MARGIN, top + 13.0),
        &group.title,
        INK,
        "font-weight=\"600\"",
    );
    let first = top + TITLE;
    let rows = || {
        group
            .bars
            .iter()
            .zip(0..)
            .map(|(bar, i)| (bar, first + f64::from(i) * STEP))
    };
    rows().for_each(|(bar, y)| draw_bar(bar, y, scale, out));
    let end = first + group.bars.len() as f64 * STEP;
    if let Some(limit) = group.limit {
        let (x, bottom) = (LEFT + limit * scale, end - STEP + BAR + 3.0);
        line(out, x, first - 3.0, bottom);
    }
    // Over the line, which would run through figures.
    rows().for_each(|(bar, y)| label(bar, y, scale, out));
    end
}

fn draw_bar(bar: &Bar, y: f64, scale: f64, out: &mut String) {
    let width = bar.width(scale);
    let (colour, weight) = match bar {
        Bar { ours: true, .. } => (OURS, "600"),
        Bar {
            yardstick: true, ..
        } => (YARDSTICK, "400"),
        _ => (RIVAL, "400"),
    };
    let attributes = format!("text-anchor=\"end\" font-weight=\"{weight}\"");
    text(out, (LEFT - 8.0, y + BASE), &bar.name, INK, &attributes);
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>"
    );
}

fn label(bar: &Bar, y: f64, scale: f64, out: &mut String) {
    let label = match bar.ratio.filter(|_| !bar.ours) {
        Some(ratio) => format!("{}  ({} ×)", duration(bar.seconds), short(ratio)),
        None => duration(bar.seconds),
    };
    let at = (LEFT + bar.width(scale) + 8.0, y + BASE);
    let halo = format!("paint-order=\"stroke\" stroke=\"{PAPER}\" stroke-width=\"5\"");
    text(out, at, &label, FAINT, &halo);
}

impl Bar {
    fn width(&self, scale: f64) -> f64 {
        (self.seconds * scale).max(1.0)
    }
}

fn line(out: &mut String, x: f64, top: f64, bottom: f64) {
    let _ = writeln!(
        out,
        "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{LIMIT}\" \
         stroke-width=\"2\" stroke-dasharray=\"4 3\"/>"
    );
}

fn legend(out: &mut String) {
    let title = "Time for the same work, medians of one run: shorter is better";
    text(
        out,
        (MARGIN, 30.0),
        title,
        INK,
        "font-size=\"16\" font-weight=\"600\"",
    );
    let mut x = MARGIN;
    for (colour, label, width) in [
        (OURS, "tk-store and its crates", 180.0),
        (RIVAL, "others (× is their time / ours)", 232.0),
        (YARDSTICK, "other tools, as a yardstick", 208.0),
    ] {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"45\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{colour}\"/>"
        );
        text(out, (x + 18.0, 56.0), label, FAINT, "");
        x += width;
    }
    line(out, x, 44.0, 58.0);
    text(out, (x + 8.0, 56.0), "limit of the machine", FAINT, "");
}

fn text(out: &mut String, (x, y): (f64, f64), text: &str, colour: &str, attributes: &str) {
    let text = escaped(text);
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\" {attributes}>{text}</text>"
    );
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{} ns", short(s * 1e9)),
        s if s < 1e-3 => format!("{} µs", short(s * 1e6)),
        s if s < 1.0 => format!("{} ms", short(s * 1e3)),
        s => format!("{} s", short(s)),
    }
}

/// Three digits or more.
fn short(number: f64) -> String {
    match number {
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

// Pixels.
const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 8.0;
const TITLE: f64 = 23.0;
const GAP: f64 = 16.0;
/// From one bar to the next, and the height of a bar.
const STEP: f64 = 20.0;
const BAR: f64 = 15.0;
/// From the top of a bar to the line that its text stands on.
const BASE: f64 = BAR - 4.0;
/// Where bars begin, and how long the longest is: names fit before it, figures behind it.
const LEFT: f64 = 132.0;
const BARS: f64 = 660.0;

/// A background of its own, so that it is readable on light and dark pages.
const PAPER: &str = "#ffffff";
const INK: &str = "#1f2328";
const FAINT: &str = "#57606a";
const OURS: &str = "#1a7f64";
const RIVAL: &str = "#8fa3bf";
const YARDSTICK: &str = "#d9c38c";
const LIMIT: &str = "#c0392b";
const FONT: &str = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(job: &str, who: &str, role: &str, median: f64) -> Value {
        json!({ "job": job, "corpus": "many", "contender": who, "role": role, "median": median, "oursByIt": 0.5 })
    }

    fn sample() -> Value {
        json!({ "results": [
            row("dump", "nix <2.34>", "rival", 2.0),
            row("dump", "tk-store", "ours", 1.0),
            row("dump", "limit: reading", "limit", 0.5),
            row("dump", "limit: SHA-256", "limit", 0.75),
            row("hash & more", "tk-store", "ours", 1e-7),
            row("hash & more", "openssl", "yardstick", 2e-4),
            row("alone", "tk-store", "ours", 1.0),
        ]})
    }

    /// Every element is closed in its order, every attribute is quoted, no text has a bare sign in it.
    fn well_formed(xml: &str) -> Result<usize, String> {
        let (mut open, mut elements) = (Vec::new(), 0);
        for piece in xml.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').ok_or("a tag without end")?;
            let bare = text.split('&').skip(1).any(|entity| !entity.contains(';'));
            if bare || text.contains('>') || tag.matches('"').count() % 2 != 0 {
                return Err(format!("a bare sign in {piece:?}"));
            }
            let name = tag
                .trim_matches('/')
                .split_whitespace()
                .next()
                .ok_or("no name")?;
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) if open.pop() != Some(name) => return Err(format!("{name} is not open")),
                (false, false) => open.push(name),
                _ => (),
            }
            elements += usize::from(!tag.starts_with('/'));
        }
        if open.is_empty() {
            Ok(elements)
        } else {
            Err(format!("{open:?} are left open"))
        }
    }

    #[test]
    fn the_picture_is_xml_and_names_every_job_and_contender() {
        let svg = picture(&groups(&sample()).unwrap());
        assert!(well_formed(&svg).unwrap() > 20, "{svg}");
        for text in [
            "dump many",
            "hash &amp; more many",
            "nix &lt;2.34&gt;",
            "openssl",
            "1.00 s",
            "100 ns",
            "(2.00 ×)",
        ] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert!(!svg.contains("alone"), "{svg}");
        // What the check is worth.
        assert!(well_formed(&svg.replacen("</text>", "", 1)).is_err());
        assert!(well_formed(&svg.replacen("&lt;", "<", 1)).is_err());
        assert!(well_formed(&svg.replacen("&amp;", "&", 1)).is_err());
    }

    #[test]
    fn ours_is_first_and_the_slowest_limit_is_the_line() {
        let groups = groups(&sample()).unwrap();
        let names: Vec<_> = groups[0].bars.iter().map(|bar| &bar.name[..]).collect();
        assert_eq!(
            (names, groups[0].limit),
            (vec!["tk-store", "nix <2.34>"], Some(0.75))
        );
        let lines = picture(&groups).matches("<line").count();
        assert_eq!(
            lines, 2,
            "one in the legend, one in the only group with a limit"
        );
    }

    #[test]
    fn no_results_are_no_picture() {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("x.svg");
        assert!(write(&json!({}), &file).is_err());
        assert!(write(&json!({ "results": [] }), &file).is_err());
        assert!(!file.exists());
    }
}

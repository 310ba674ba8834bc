//! Arguments with a unit.

use std::time::Duration;
use tk_open::nix_conf::parse_number;

/// Reads a time, such as 12h.
pub fn duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(24 * 3600),
        _ => None,
    };
    let number = number.parse::<u64>().ok();
    let all = number.and_then(|number| number.checked_mul(seconds?));
    let all = all.ok_or("a time is a number with s, m, h or d, such as 12h")?;
    Ok(Duration::from_secs(all))
}

/// Reads bytes, with the units that nix takes: K, M, G and T.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = "a size is a number of bytes, perhaps with K, M, G or T, such as 10G";
    parse_number(text).ok_or_else(|| wrong.to_owned())
}

/// Seconds in the largest unit of which there are at least two: `119m`.
pub fn short_time(seconds: u64) -> String {
    let units = [(24 * 3600, 'd'), (3600, 'h'), (60, 'm')];
    let unit = units.into_iter().find(|(size, _)| seconds >= 2 * size);
    let (size, unit) = unit.unwrap_or((1, 's'));
    format!("{}{unit}", seconds / size)
}

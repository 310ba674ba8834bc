//! Times as services write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time like `2026-11-23T22:11:33.000Z`, to the second. Only UTC.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let utc = text
        .strip_suffix('Z')
        .or_else(|| text.strip_suffix("+00:00"))?;
    let (date, time) = utc.split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let time = time.split_once('.').map_or(time, |(whole, _)| whole);
    let [hour, minute, second] = numbers(time, ':')?;
    let sane = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !sane {
        return None;
    }
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let mut numbers = text.split(between).map(|digits| match digits.len() {
        1..=4 => digits.parse().ok(),
        _ => None,
    });
    let three = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(three)
}

/// Days since 1970. Years are taken to begin in March, so that the day of a leap year is the last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day.max(1) - 1;
    (year * 365 + year / 4 - year / 100 + year / 400 + day_of_year).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56.789Z", 951_827_696),
            ("2026-11-23T22:11:33+00:00", 1_795_471_893),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ];
        for (text, seconds) in cases {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(parse(text), Some(time), "{text}");
        }
        for text in [
            "",
            "Z",
            "2026-11-23",
            "2026-13-01T00:00:00Z",
            "99999-01-01T00:00:00Z",
            "2026-11-23T22:11:33+01:00",
            "2026-11-23T22:11Z",
            "0-0-0T0:0:0Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

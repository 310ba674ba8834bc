//! The text that Nix gives structured attributes: compact, keys sorted, numbers as its JSON library writes them.

use serde_json::Value;

/// The text of `value`.
pub(super) fn compact(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                write(item, text);
            }
            text.push(']');
        }
        Value::Object(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            text.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                write(value, text);
            }
            text.push('}');
        }
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => text.push_str(&float_text(float)),
            None => text.push_str(&number.to_string()),
        },
        other => text.push_str(&other.to_string()),
    }
}

/// The shortest digits that mean this number; with an exponent, of at least two digits and with its sign, from 10^15
/// up and below 10^-4; always with a point or an exponent.
fn float_text(float: f64) -> String {
    let scientific = format!("{:e}", float.abs());
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits = digits.replace('.', "");
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let sign = if float.is_sign_negative() { "-" } else { "" };
    // Where the point stands, counted from the first digit.
    let (count, point) = (digits.len() as i32, exponent + 1);
    let zeros = |count: i32| "0".repeat(count.unsigned_abs() as usize);
    let text = match point {
        1..=15 if count <= point => format!("{digits}{}.0", zeros(point - count)),
        1..=15 => {
            let (before, after) = digits.split_at(point as usize);
            format!("{before}.{after}")
        }
        -3..=0 => format!("0.{}{digits}", zeros(point)),
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            let mark = if exponent < 0 { '-' } else { '+' };
            format!("{first}{dot}{rest}e{mark}{:02}", exponent.abs())
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts() {
        for (from, to) in [
            (
                r#" { "b" : [ 1 , null ], "a" : { "d": "\u00e9\u0001\n/", "c": true } } "#,
                r#"{"a":{"c":true,"d":"é\u0001\n/"},"b":[1,null]}"#,
            ),
            (
                "[1.0, -0.0, 0.5, 1.25, 123456.75]",
                "[1.0,-0.0,0.5,1.25,123456.75]",
            ),
            (
                "[1e14, 1e15, 1e16, 1.5e300, 0.001, 0.0001, 0.00001, 1.5e-7]",
                "[100000000000000.0,1e+15,1e+16,1.5e+300,0.001,0.0001,1e-05,1.5e-07]",
            ),
            (
                "[18446744073709551615, -9223372036854775808]",
                "[18446744073709551615,-9223372036854775808]",
            ),
        ] {
            let value: Value = serde_json::from_str(from).expect(from);
            assert_eq!(compact(&value), to);
        }
    }

    proptest! {
        #[test]
        fn floats_keep_their_value(float in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO) {
            let text = float_text(float);
            prop_assert_eq!(text.parse::<f64>().map(f64::to_bits), Ok(float.to_bits()));
            prop_assert!(text.contains(['.', 'e']));
        }
    }
}

//! Numbers as people read them.

use std::time::Duration;

/// A number with four significant digits, without needless zeros: `0.9123`, `12.3`, `1.2e-7`.
/// Whole numbers up to 10¹⁵ are written out with thin separators: `134 515 008` has no-break spaces.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    if value == value.trunc() && value.abs() < 1e15 {
        return grouped(value as i64);
    }
    let magnitude = value.abs();
    if !(1e-4..1e6).contains(&magnitude) {
        let text = format!("{value:.3e}");
        // `1.200e-7` → `1.2e-7`
        return match text.split_once('e') {
            Some((mantissa, exponent)) => format!("{}e{exponent}", trimmed(mantissa)),
            None => text,
        };
    }
    let digits_before = magnitude.log10().floor() as i32 + 1;
    let decimals = (4 - digits_before).max(0) as usize;
    trimmed(&format!("{value:.decimals$}")).to_owned()
}

/// An integer with a no-break space between groups of three digits from five digits on.
pub fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    if digits.len() < 5 {
        return value.to_string();
    }
    let mut out = String::from(if value < 0 { "-" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// With an SI prefix and three significant digits: `135 M`, `12.4 k`, `3.1 µ`.
pub fn si(value: f64) -> String {
    const PREFIXES: [&str; 9] = ["n", "µ", "m", "", "k", "M", "G", "T", "P"];
    scaled(value, 1000.0, 3, &PREFIXES)
}

/// Bytes with a binary prefix: `512 B`, `4.2 MiB`.
pub fn bytes(count: u64) -> String {
    const PREFIXES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    scaled(count as f64, 1024.0, 0, &PREFIXES)
}

/// A time span: `350 µs`, `12.3 ms`, `4.56 s`, `3 min 12 s`, `2 h 05 min`, `3 d 04 h`.
pub fn duration(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    let whole = seconds.round() as u64;
    if whole >= 86_400 {
        format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600)
    } else if whole >= 3600 {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    } else if whole >= 60 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else if seconds >= 1.0 || seconds == 0.0 {
        format!("{} s", significant(seconds, 3))
    } else if seconds >= 1e-3 {
        format!("{} ms", significant(seconds * 1e3, 3))
    } else {
        format!("{} µs", significant(seconds * 1e6, 3))
    }
}

/// A share as per cent: `12.3 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", significant(share * 100.0, 3))
}

fn scaled(value: f64, base: f64, unit: usize, prefixes: &[&str]) -> String {
    if !value.is_finite() || value == 0.0 {
        return format!("{value} {}", prefixes[unit]).trim_end().to_owned();
    }
    let mut scaled = value;
    let mut index = unit;
    // 999.5 would round to "1000", so the next prefix starts there.
    while scaled.abs() >= base * 0.9995 && index + 1 < prefixes.len() {
        scaled /= base;
        index += 1;
    }
    while scaled.abs() < 0.9995 && index > 0 {
        scaled *= base;
        index -= 1;
    }
    format!("{} {}", significant(scaled, 3), prefixes[index]).trim_end().to_owned()
}

/// `digits` significant digits, at least those before the point, without trailing zeros.
fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let before = value.abs().log10().floor() as i32 + 1;
    let decimals = (digits - before).clamp(0, 12) as usize;
    trimmed(&format!("{value:.decimals$}")).to_owned()
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (value, text) in [
            (0.0, "0"),
            (0.912_345, "0.9123"),
            (12.3, "12.3"),
            (1234.567, "1235"),
            (-0.000_123_46, "-0.0001235"),
            (1.2e-7, "1.2e-7"),
            (1_234_567.8, "1.235e6"),
            (9999.0, "9999"),
            (134_515_008.0, "134\u{202f}515\u{202f}008"),
            (-12_345.0, "-12\u{202f}345"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn units() {
        assert_eq!(si(134_515_008.0), "135 M");
        assert_eq!(si(999.7), "1 k");
        assert_eq!(si(0.000_003_1), "3.1 µ");
        assert_eq!(si(7.0), "7");
        assert_eq!(si(0.0), "0");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(4_404_019), "4.2 MiB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(percent(0.1234), "12.3 %");
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.000_35, "350 µs"),
            (0.0123, "12.3 ms"),
            (4.56, "4.56 s"),
            (59.7, "1 min 00 s"),
            (192.0, "3 min 12 s"),
            (7_500.0, "2 h 05 min"),
            (273_600.0, "3 d 04 h"),
        ] {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
    }
}

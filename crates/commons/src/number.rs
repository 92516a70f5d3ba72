//! Numbers as people read them.

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in decimal units, as file managers show them: `95.2 MB`.
pub fn bytes(n: u64) -> String {
    if n < 1000 {
        return format!("{n} B");
    }
    format!("{}B", scaled(n as f64))
}

/// Three significant digits and a decimal unit: `12.3 k`, `4.56 M`, `789`.
pub fn scaled(x: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let (mut value, mut unit) = (x, 0);
    while value.abs() >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.;
        unit += 1;
    }
    let text = match value.abs() {
        v if unit == 0 && v.fract() == 0. => format!("{value:.0}"),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    format!("{text} {}", UNITS[unit]).trim_end().to_owned() + if unit == 0 { " " } else { "" }
}

/// [`scaled`] without the trailing space of small numbers, for use before a unit with its own space.
pub fn short(x: f64) -> String {
    scaled(x).trim_end().to_owned()
}

/// Four significant digits, in scientific notation when very large or small.
pub fn significant(x: f64) -> String {
    match x.abs() {
        _ if !x.is_finite() => x.to_string(),
        0. => "0".into(),
        v if !(1e-3..1e6).contains(&v) => format!("{x:.3e}"),
        v if v >= 1000. => format!("{x:.0}"),
        v if v >= 100. => format!("{x:.1}"),
        v if v >= 10. => format!("{x:.2}"),
        v if v >= 1. => format!("{x:.3}"),
        _ => format!("{x:.4}"),
    }
}

/// Seconds as `0:07`, `12:34` or `1:02:03`.
pub fn clock(seconds: f64) -> String {
    let s = seconds.max(0.).round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s % 3600 / 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_digits() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(999), "999");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(95_234_567), "95.2 MB");
        assert_eq!(bytes(999_950), "1.00 MB");
        assert_eq!(short(12_345.), "12.3 k");
        assert_eq!(short(7.), "7");
        assert_eq!(significant(3.21987), "3.220");
        assert_eq!(significant(1.234e7), "1.234e7");
        assert_eq!(clock(7.4), "0:07");
        assert_eq!(clock(3723.), "1:02:03");
    }
}

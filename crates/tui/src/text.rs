//! Numbers and strangers' words as text for cells: short, of bounded width, and never a control sequence.

/// A duration in a column, without a space: `0`, `840ns`, `12.3µs`, `38.2ms`, `2.7s`.
///
/// Rounded to the nearest tenth; what rounds up to 1000.0 is written in the next unit. Seven characters at most up to
/// 27 hours. `warptrace_api::duration_text` is the one for running text.
pub fn duration(nanos: u64) -> String {
    if nanos == 0 {
        return "0".to_owned();
    }
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    let tenths = |unit: u64| (nanos / (unit / 10)) + u64::from(nanos % (unit / 10) >= unit / 20);
    let text = |tenths: u64, unit: &str| format!("{}.{}{unit}", tenths / 10, tenths % 10);
    let (micros, millis) = (tenths(1_000), tenths(1_000_000));
    if micros < 10_000 {
        text(micros, "µs")
    } else if millis < 10_000 {
        text(millis, "ms")
    } else {
        text(tenths(1_000_000_000), "s")
    }
}

/// Time since the start: `0:42`, `12:07`, `1:02:03`.
pub(crate) fn elapsed(nanos: u64) -> String {
    let secs = nanos / 1_000_000_000;
    let (hours, minutes, secs) = (secs / 3600, secs / 60 % 60, secs % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{secs:02}")
    } else {
        format!("{minutes}:{secs:02}")
    }
}

/// A count in running text, every digit: `1,234,567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count in a column of eight: exact below a hundred million, else to four figures (`123.4M`, `1.2G`).
pub(crate) fn count(n: u64) -> String {
    match n {
        0..100_000_000 => n.to_string(),
        100_000_000..1_000_000_000 => format!("{}.{}M", n / 1_000_000, n / 100_000 % 10),
        _ => format!("{}.{}G", n / 1_000_000_000, n / 100_000_000 % 10),
    }
}

/// Bytes: `0 B`, `512 B`, `1.5 KiB`, `44.1 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A fraction as a percentage of four or five characters: `0.0%`, `12.3%`, `100%`, `1234%` (several threads at once).
pub(crate) fn percent(share: f64) -> String {
    if !share.is_finite() {
        return "-".to_owned();
    }
    let value = share.max(0.0) * 100.0;
    if value < 99.95 {
        format!("{value:.1}%")
    } else {
        format!("{:.0}%", value.min(9_999.0))
    }
}

/// A bar of `width` cells filled to `share` (0..1, clamped; not a number is empty).
pub(crate) fn bar(share: f64, width: usize) -> String {
    let filled = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    let filled = filled.min(width);
    "█".repeat(filled) + &"░".repeat(width - filled)
}

/// Words from outside (names of processes, paths, commands) without what could steer the terminal: control characters
/// and direction overrides become `·`.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_control() => '·',
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '·',
            c => c,
        })
        .collect()
}

/// `text` in at most `width` characters, its end given up for `…`.
pub(crate) fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        out.push('…');
    }
    out
}

/// `text` in lines of at most `width` characters, broken between words; a longer word stands alone and is cut. No line
/// for no words.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(fit(word, width)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_tenth_of_its_unit_and_moves_to_the_next_when_it_rounds_there() {
        for (nanos, text) in [
            (0, "0"),
            (1, "1ns"),
            (999, "999ns"),
            (1_000, "1.0µs"),
            (1_049, "1.0µs"),
            (1_050, "1.1µs"),
            (999_949, "999.9µs"),
            (999_950, "1.0ms"),
            (38_240_000, "38.2ms"),
            (999_949_999, "999.9ms"),
            (999_950_000, "1.0s"),
            (62_000_000_000, "62.0s"),
            (99_999_900_000_000, "99999.9s"),
        ] {
            assert_eq!(duration(nanos), text, "{nanos}");
        }
        assert!(duration(u64::MAX).ends_with('s'));
    }

    #[test]
    fn counts_keep_every_digit_while_they_fit() {
        assert_eq!(count(99_999_999), "99999999");
        assert_eq!(count(123_456_789), "123.4M");
        assert_eq!(count(7_890_000_000), "7.8G");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(grouped(123), "123");
    }

    #[test]
    fn sizes_shares_and_times_read_as_people_write_them() {
        assert_eq!(
            [0, 1023, 1536, 1024 * 1024 - 1, 47_352_000_000].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "1.0 MiB", "44.1 GiB"]
        );
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(
            [0.0, 0.1234, 0.9996, 1.0, 12.34, f64::NAN].map(percent),
            ["0.0%", "12.3%", "100%", "100%", "1234%", "-"]
        );
        assert_eq!(
            [42, 727, 3_723].map(|secs| elapsed(secs * 1_000_000_000)),
            ["0:42", "12:07", "1:02:03"]
        );
    }

    #[test]
    fn a_bar_is_as_wide_as_asked_whatever_it_shows() {
        for share in [-1.0, 0.0, 0.33, 0.999, 1.0, 7.0, f64::NAN] {
            assert_eq!(bar(share, 10).chars().count(), 10, "{share}");
        }
        assert_eq!(bar(0.3, 10), "███░░░░░░░");
        assert_eq!(bar(0.5, 0), "");
    }

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("took 21.4 ms longer", 12), ["took 21.4 ms", "longer"]);
        assert_eq!(wrap("a cudaStreamSynchronize", 8), ["a", "cudaStr…"]);
        assert_eq!(wrap("  ", 8), [] as [&str; 0]);
        assert_eq!(wrap("a b", 0), ["", ""]);
    }

    #[test]
    fn words_from_outside_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{202e}d\u{9b}"), "a·[2Jb·c·d·");
        assert_eq!(fit("cudaStreamSynchronize", 8), "cudaStr…");
        assert_eq!(fit("short", 5), "short");
        assert_eq!(fit("x", 0), "");
    }
}

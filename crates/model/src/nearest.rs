//! The name that somebody probably meant.

/// The one of `names` that is the fewest letters away from `wanted`, if it is near: at most half of the letters.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 64;
    if wanted.len() > LONGEST {
        return None;
    }
    let wanted = wanted.to_lowercase();
    let names = names.into_iter().filter(|name| name.len() <= LONGEST);
    let (distance, name) = names.map(|n| (distance(&wanted, n), n)).min()?;
    (distance <= wanted.chars().count().max(3) / 2).then_some(name)
}

/// Letters to insert, remove or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_named_and_what_is_far_is_not() {
        let names = ["providers", "currency_name", "as_of"];
        for (wanted, found) in [
            ("provider", Some("providers")),
            ("Curency_Name", Some("currency_name")),
            ("asof", Some("as_of")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(wanted, names), found, "{wanted}");
        }
        assert_eq!(nearest(&"x".repeat(1_000_000), names), None);
    }
}

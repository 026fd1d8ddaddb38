//! Statistics of short series of numbers.

/// The median; the mean of the two middle ones of an even number. `None` without values. Cost: O(n log n).
pub(super) fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    Some(if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    })
}

/// The median distance from `center`.
pub(super) fn median_distance(values: &[f64], center: f64) -> Option<f64> {
    median(
        &values
            .iter()
            .map(|v| (v - center).abs())
            .collect::<Vec<_>>(),
    )
}

pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Standard deviation of a sample (n − 1); `None` below two values.
pub(super) fn deviation(values: &[f64]) -> Option<f64> {
    let center = mean(values)?;
    (values.len() > 1).then(|| {
        let squares: f64 = values.iter().map(|v| (v - center).powi(2)).sum();
        (squares / (values.len() - 1) as f64).sqrt()
    })
}

/// A straight line through points, by least squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Line {
    pub(super) slope: f64,
    /// Share of the variance that the line explains, 0..=1.
    pub(super) r_squared: f64,
    /// Probability of such a slope where there is none: two-sided t test, n − 2 degrees of freedom.
    pub(super) p_value: f64,
}

/// `None` below three points, and where all `x` are the same.
pub(super) fn line(points: &[(f64, f64)]) -> Option<Line> {
    if points.len() < 3 {
        return None;
    }
    let n = points.len() as f64;
    let (x_mean, y_mean) = (
        points.iter().map(|p| p.0).sum::<f64>() / n,
        points.iter().map(|p| p.1).sum::<f64>() / n,
    );
    let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in points {
        let (dx, dy) = (x - x_mean, y - y_mean);
        xx += dx * dx;
        xy += dx * dy;
        yy += dy * dy;
    }
    if xx == 0.0 {
        return None;
    }
    let r_squared = if yy == 0.0 {
        0.0
    } else {
        (xy * xy / (xx * yy)).clamp(0.0, 1.0)
    };
    let freedom = n - 2.0;
    // P(|T| > t) = I_{df / (df + t²)}(df / 2, 1 / 2), and df / (df + t²) = 1 − r².
    let p_value = regularized_beta(1.0 - r_squared, freedom / 2.0, 0.5);
    Some(Line {
        slope: xy / xx,
        r_squared,
        p_value,
    })
}

/// The median of the slopes between all pairs of points with different `x`: up to 29 % of the points may lie anywhere.
///
/// Cost: O(n²). Source: Sen, Estimates of the regression coefficient based on Kendall's tau, JASA 63 (1968).
pub(super) fn median_slope(points: &[(f64, f64)]) -> Option<f64> {
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    for (i, a) in points.iter().enumerate() {
        for b in &points[i + 1..] {
            if a.0 != b.0 {
                slopes.push((b.1 - a.1) / (b.0 - a.0));
            }
        }
    }
    median(&slopes)
}

/// The regularized incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22, by Lentz's method).
fn regularized_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges quickly below the mean; I_x(a, b) = 1 − I_{1−x}(b, a) brings the rest there.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - regularized_beta(1.0 - x, b, a);
    }
    let front =
        (a * x.ln() + b * (-x).ln_1p() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b)).exp() / a;
    let tiny = 1e-300;
    let (mut c, mut d) = (1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..300 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for term in [even, odd] {
            d = 1.0 / nonzero(1.0 + term * d, tiny);
            c = nonzero(1.0 + term / c, tiny);
            fraction *= c * d;
        }
        if (fraction - before).abs() <= 1e-15 * fraction.abs() {
            break;
        }
    }
    (front * fraction).clamp(0.0, 1.0)
}

fn nonzero(value: f64, tiny: f64) -> f64 {
    if value.abs() < tiny { tiny } else { value }
}

/// ln Γ(x) for x > 0, by Stirling's series above 10 and the recurrence below it; within 1e-12.
fn ln_gamma(x: f64) -> f64 {
    let mut shift = 0.0;
    let mut x = x;
    while x < 10.0 {
        shift += x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series =
        1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse * (1.0 / 1680.0)));
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series / x - shift
}

/// Rounded to `digits` decimals, halves as their binary value says (as Python's `round`).
pub(super) fn round(value: f64, digits: usize) -> f64 {
    format!("{value:.digits$}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_t_test_agrees_with_tables() {
        // t = 2.571 at 5 degrees of freedom and t = 12.706 at 1 are the 5 % points.
        for (t, df) in [(2.570_582, 5.0), (12.706_205, 1.0), (1.959_966, 1e7)] {
            let p = regularized_beta(df / (df + t * t), df / 2.0, 0.5);
            assert!((p - 0.05).abs() < 1e-5, "t {t} df {df}: {p}");
        }
    }

    #[test]
    fn a_line_needs_three_points_and_two_times() {
        assert_eq!(line(&[(0.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(line(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None);
        let flat = line(&[(0.0, 7.0), (1.0, 7.0), (2.0, 7.0)]).unwrap();
        assert_eq!((flat.slope, flat.r_squared), (0.0, 0.0));
        let exact = line(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]).unwrap();
        assert_eq!((exact.slope, exact.r_squared), (2.0, 1.0));
    }

    #[test]
    fn medians_of_few_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(deviation(&[1.0]), None);
        assert_eq!(median_slope(&[(0.0, 0.0), (0.0, 5.0)]), None);
        let mostly_two: Vec<_> = (0..9).map(|i| (f64::from(i), f64::from(2 * i))).collect();
        let with_outlier = [&mostly_two[..], &[(9.0, 900.0)]].concat();
        assert_eq!(median_slope(&with_outlier), Some(2.0));
    }
}

//! Many runs in one table: the median of each figure for each broker, and its ratio to the first broker's.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One figure's row.
struct Row {
    figure: String,
    unit: String,
    /// By broker, in the order of the columns: the values of the runs that were valid, and how many were not.
    cells: Vec<(Vec<f64>, usize)>,
}

/// Markdown. Figures and brokers come in the order in which they first appear. `per_core`: only rates, and each as what was done for a
/// second of processor time.
pub(crate) fn table(lines: &str, per_core: bool) -> Result<String> {
    let mut brokers: Vec<String> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let line: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        let word = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let (figure, broker, unit) = (word("figure"), word("broker"), word("unit"));
        if per_core && !unit.is_empty() && !unit.ends_with("/s") {
            continue;
        }
        let column = position(&mut brokers, |known| *known == broker, || broker.clone());
        let new = || Row { figure: figure.clone(), unit: String::new(), cells: Vec::new() };
        let row = position(&mut rows, |row| row.figure == figure, new);
        // A run that came to nothing has none.
        if rows[row].unit.is_empty() {
            rows[row].unit = unit;
        }
        let cells = &mut rows[row].cells;
        cells.resize_with(cells.len().max(column + 1), || (Vec::new(), 0));
        match (line["valid"].as_bool(), line[if per_core { "per_core" } else { "value" }].as_f64()) {
            (Some(true), Some(value)) => cells[column].0.push(value),
            _ => cells[column].1 += 1,
        }
    }
    let mut text = format!("| | {} |\n|---|{}\n", brokers.join(" | "), "---|".repeat(brokers.len()));
    for row in &mut rows {
        let name = if row.unit.is_empty() { row.figure.clone() } else { format!("{}, {}", row.figure, row.unit) };
        write!(text, "| {name} |")?;
        let medians: Vec<Option<f64>> = row.cells.iter_mut().map(|(values, _)| median(values)).collect();
        let base = medians.first().copied().flatten().filter(|base| *base > 0.0);
        for column in 0..brokers.len() {
            let invalid = row.cells.get(column).map_or(0, |(_, invalid)| *invalid);
            let cell = match medians.get(column).copied().flatten() {
                Some(value) => {
                    let ratio = base.filter(|_| column > 0).map(|base| format!(" ({} ×)", short(value / base)));
                    format!("{}{}", short(value), ratio.unwrap_or_default())
                }
                None if invalid > 0 => "invalid".to_owned(),
                None => "–".to_owned(),
            };
            write!(text, " {cell} |")?;
        }
        text.push('\n');
    }
    Ok(text)
}

fn position<T>(all: &mut Vec<T>, is: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> usize {
    all.iter().position(is).unwrap_or_else(|| {
        all.push(new());
        all.len() - 1
    })
}

/// The one in the middle; of an even number the lower of the two.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

/// As many digits as mean something, thousands apart.
fn short(value: f64) -> String {
    if value.abs() < 1000.0 {
        let digits = if value.abs() >= 100.0 || value == value.round() { 0 } else { 2 };
        return format!("{value:.digits$}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && digit != '-' && (digits.len() - at).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let line = |figure: &str, broker: &str, value: f64, valid: bool| {
            format!(r#"{{"figure":"{figure}","broker":"{broker}","value":{value},"unit":"u","valid":{valid}}}"#)
        };
        let lines = [
            line("publish", "one", 1000.0, true),
            line("publish", "one", 9000.0, true),
            line("publish", "one", 2000.0, true),
            line("publish", "two", 3000.0, true),
            line("publish", "two", 99.0, false),
            line("storm", "two", 1.234, true),
            line("storm", "three", 1.0, false),
        ];
        let expected = "| | one | two | three |\n|---|---|---|---|\n\
            | publish, u | 2,000 | 3,000 (1.50 ×) | – |\n\
            | storm, u | – | 1.23 | invalid |\n";
        assert_eq!(table(&lines.join("\n"), false).unwrap(), expected);
    }

    #[test]
    fn rates_for_a_second_of_processor_time() {
        let lines = r#"{"figure":"publish","broker":"one","value":5,"per_core":50,"unit":"publishes/s","valid":true}
            {"figure":"latency","broker":"one","value":5,"per_core":50,"unit":"ms p99","valid":true}"#;
        assert_eq!(table(lines, true).unwrap(), "| | one |\n|---|---|\n| publish, publishes/s | 50 |\n");
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> = [0.0, 1.5, 123.4, 1234.0, 1_234_567.0, -1234.0].into_iter().map(short).collect();
        assert_eq!(shown, ["0", "1.50", "123", "1,234", "1,234,567", "-1,234"]);
    }
}

//! What was measured, and how it is printed. Knows of no server.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::Result;

/// How long each of many operations took, in nanoseconds, to three digits.
#[derive(Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        // Three digits are within what the histogram can do.
        Self(Histogram::new(3).expect("a histogram of three digits"))
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.record(nanos).expect("it grows with what it is given");
    }

    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// In microseconds, as all figures are printed.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        micros(self.0.value_at_quantile(quantile))
    }

    /// Latency in microseconds, and the part of all that took at most as long.
    pub(crate) fn distribution(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.0.iter_quantiles(5).map(|step| (micros(step.value_iterated_to()), step.quantile()))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a year of nanoseconds fits into 52 bits")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// One series: all its operations, and how many of them a second in each of its slices.
#[derive(Clone)]
pub(crate) struct Series {
    pub(crate) latencies: Latencies,
    pub(crate) rates: Vec<f64>,
}

impl Series {
    pub(crate) fn new() -> Self {
        Self { latencies: Latencies::new(), rates: Vec::new() }
    }

    /// The median of its slices: one that something else slowed down says nothing.
    pub(crate) fn rate(&self) -> f64 {
        median(self.rates.iter().copied())
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What is printed of a series.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 1.0];

pub(crate) fn print_head() {
    println!(
        "{:<28}{:>12}{:>11}{:>11}{:>11}{:>11}   (latencies in µs)",
        "", "ops/s", "p50", "p90", "p99", "max"
    );
}

pub(crate) fn print_series(name: &str, series: &Series) {
    let figures = QUANTILES.map(|quantile| series.latencies.quantile(quantile));
    let columns: String = figures.iter().map(|figure| format!("{figure:>11.1}")).collect();
    println!("{name:<28}{:>12.0}{columns}", series.rate());
}

/// Every figure as a ratio to the baseline's; of rates, slice by slice, the median.
pub(crate) fn print_ratio(series: &Series, baseline: &Series) {
    let rate = median(series.rates.iter().zip(&baseline.rates).map(|(ours, bare)| ours / bare));
    let columns: String = QUANTILES
        .iter()
        .map(|at| format!("{:>10.2}x", series.latencies.quantile(*at) / baseline.latencies.quantile(*at)))
        .collect();
    println!("{:<28}{rate:>11.2}x{columns}", "  ratio");
}

/// The same with few and with many of something, and the ratio of the two.
pub(crate) fn print_compared(what: &str, few: (usize, &Latencies), many: (usize, &Latencies)) {
    println!("{what:<28}{:>11}{:>11}{:>11}{:>11}   (µs)", "p50", "p90", "p99", "max");
    for (count, latencies) in [few, many] {
        let columns: String =
            QUANTILES.iter().map(|at| format!("{:>11.1}", latencies.quantile(*at))).collect();
        println!("{:<28}{columns}", format!("  with {count}"));
    }
    let ratio = |at: &f64| format!("{:>10.2}x", many.1.quantile(*at) / few.1.quantile(*at));
    println!("{:<28}{}", "  ratio", QUANTILES.iter().map(ratio).collect::<String>());
}

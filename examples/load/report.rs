//! The measurements, and how they are printed.

use std::time::Duration;

use hdrhistogram::Histogram;

/// How long each of many operations took, in nanoseconds, to three digits.
#[derive(Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        // The histogram supports three digits.
        Self(Histogram::new(3).expect("a histogram of three digits"))
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.record(nanos).expect("it grows with what it is given");
    }

    /// Returns microseconds, the unit of all printed figures.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        micros(self.0.value_at_quantile(quantile))
    }

    /// Latencies in microseconds, each with the share of operations that took at most as long.
    pub(crate) fn distribution(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.0.iter_quantiles(5).map(|step| (micros(step.value_iterated_to()), step.quantile()))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a year of nanoseconds fits into 52 bits")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// One series: all its operations, and the figures of each of its slices.
#[derive(Clone)]
pub(crate) struct Series {
    pub(crate) latencies: Latencies,
    /// Operations per second.
    rates: Vec<f64>,
    /// Processor time for one operation, in microseconds: this side's, then the other's.
    costs: Vec<Vec<f64>>,
}

impl Series {
    pub(crate) fn new() -> Self {
        Self { latencies: Latencies::new(), rates: Vec::new(), costs: Vec::new() }
    }

    /// Returns the figures of this many operations in this many seconds, for which each process ran this
    /// long.
    pub(crate) fn add_slice(&mut self, count: f64, took: f64, ran: Vec<Duration>) {
        self.rates.push(count / took);
        self.costs.push(ran.into_iter().map(|ran| ran.as_secs_f64() * 1e6 / count).collect());
    }

    /// The median of its slices, so that one slowed down by other load does not count.
    pub(crate) fn rate(&self) -> f64 {
        median(self.rates.iter().copied())
    }

    /// The medians of both sides' costs; none for a side that runs elsewhere.
    fn cost(&self) -> [Option<f64>; 2] {
        [0, 1].map(|side| {
            let known: Option<Vec<f64>> = self.costs.iter().map(|cost| cost.get(side).copied()).collect();
            known.map(|known| median(known.into_iter()))
        })
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The printed figures of a series' latencies.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 1.0];

pub(crate) fn print_head() {
    println!(
        "{:<27}{:>9}{:>10}{:>10}{:>10}{:>11}{:>10}{:>8}",
        "", "", "latency", "", "", "", "cpu µs/op", ""
    );
    let columns = ["ops/s", "p50 µs", "p90", "p99", "max"];
    println!(
        "{:<27}{:>9}{:>10}{:>10}{:>10}{:>11}{:>10}{:>8}",
        "", columns[0], columns[1], columns[2], columns[3], columns[4], "client", "server"
    );
}

pub(crate) fn print_series(name: &str, series: &Series) {
    let [p50, p90, p99, max] = QUANTILES.map(|quantile| series.latencies.quantile(quantile));
    let [client, server] = series.cost().map(|cost| cost.map_or("?".to_owned(), |cost| format!("{cost:.1}")));
    let rate = series.rate();
    println!("{name:<27}{rate:>9.0}{p50:>10.1}{p90:>10.1}{p99:>10.1}{max:>11.1}{client:>10}{server:>8}");
}

/// Every figure as a ratio to the baseline's; for rates, the median of the slices' ratios.
pub(crate) fn print_ratio(series: &Series, baseline: &Series) {
    let rate = median(series.rates.iter().zip(&baseline.rates).map(|(ours, bare)| ours / bare));
    let [p50, p90, p99, max] =
        QUANTILES.map(|at| series.latencies.quantile(at) / baseline.latencies.quantile(at));
    let (ours, bare) = (series.cost(), baseline.cost());
    let [client, server] = [0, 1].map(|side| {
        ours[side].zip(bare[side]).map_or("?".to_owned(), |(ours, bare)| format!("{:.2}x", ours / bare))
    });
    println!(
        "{:<27}{rate:>8.2}x{p50:>9.2}x{p90:>9.2}x{p99:>9.2}x{max:>10.2}x{client:>10}{server:>8}",
        "  ratio"
    );
}

/// The same with few and with many, and the ratio of the two.
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

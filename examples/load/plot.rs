//! Plots what `run` measured: the distribution of latencies, and ops/s over workers.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Result;
use crate::report::Series;
use crate::run::Point;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(file: &Path, points: &[Point]) -> Result<()> {
    let area = SVGBackend::new(file, (1200, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(600);
    latencies(&left, points)?;
    rates(&right, points)?;
    Ok(area.present()?)
}

/// Every series with its name; the baseline's in a lighter colour.
fn series(points: &[Point]) -> impl Iterator<Item = (String, RGBAColor, &Series)> {
    points.iter().enumerate().flat_map(|(index, point)| {
        let colour = Palette99::pick(index);
        let ours = (format!("{} workers", point.workers), colour.to_rgba(), &point.ours);
        let bare = point.bare.as_ref().map(|(connections, bare)| {
            (format!("baseline, {connections} connections"), colour.mix(0.4), bare)
        });
        std::iter::once(ours).chain(bare)
    })
}

fn latencies(area: &Area<'_>, points: &[Point]) -> Result<()> {
    let ends =
        series(points).map(|(.., series)| (series.latencies.quantile(0.0), series.latencies.quantile(1.0)));
    let (least, most) =
        ends.fold((f64::MAX, 1.0), |(least, most), (from, to)| (from.min(least), to.max(most)));
    let mut chart = ChartBuilder::on(area)
        .caption("acquire + release", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d((least.max(0.1)..most * 1.1).log_scale(), 0.0..1.0)?;
    chart.configure_mesh().x_desc("µs, at most").y_desc("part of all").draw()?;
    for (name, colour, series) in series(points) {
        let line = LineSeries::new(series.latencies.distribution(), colour.stroke_width(2));
        chart.draw_series(line)?.label(name).legend(move |at| legend(at, colour));
    }
    Ok(chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK)
        .draw()?)
}

fn rates(area: &Area<'_>, points: &[Point]) -> Result<()> {
    let most = series(points).map(|(.., series)| series.rate()).fold(1.0, f64::max);
    let last = points.iter().map(|point| point.workers).max().unwrap_or(1);
    let mut chart = ChartBuilder::on(area)
        .caption("ops/s over workers", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(72)
        .build_cartesian_2d(0..last + 1, 0.0..most * 1.1)?;
    chart.configure_mesh().x_desc("workers").y_desc("ops/s").draw()?;
    let ours = points.iter().map(|point| (point.workers, point.ours.rate())).collect();
    let bare =
        points.iter().filter_map(|point| Some((point.workers, point.bare.as_ref()?.1.rate()))).collect();
    let lines: [(_, _, Vec<_>); 2] = [("client", BLUE.to_rgba(), ours), ("baseline", BLACK.mix(0.4), bare)];
    for (name, colour, line) in lines.into_iter().filter(|(.., line)| !line.is_empty()) {
        let line = LineSeries::new(line, colour.stroke_width(2)).point_size(4);
        chart.draw_series(line)?.label(name).legend(move |at| legend(at, colour));
    }
    Ok(chart.configure_series_labels().border_style(BLACK).draw()?)
}

fn legend((x, y): (i32, i32), colour: RGBAColor) -> PathElement<(i32, i32)> {
    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
}

//! The distribution of one tensor as a small cell of a grid.

use super::axis::Placed;
use super::shapes::{Align, BLACK, COLORS, Color, Drawing, GREY, PALE, Point, Text, shortened, text_width};
use super::{Area, Layout, NARROW};
use crate::report::figure::{Axis, Histogram, Scale};

/// Number of cells per row in the narrow layout.
pub const NARROW_COLUMNS: usize = 2;

/// Width and height of a cell.
pub fn size(layout: Layout) -> (f64, f64) {
    match layout {
        Layout::Wide => (250.0, 190.0),
        Layout::Narrow => (NARROW / NARROW_COLUMNS as f64, 150.0),
    }
}

/// Height of the legend above the grid.
pub fn legend_height(layout: Layout) -> f64 {
    if layout == Layout::Wide { 24.0 } else { 64.0 }
}

const FONT: f64 = 10.5;
const MEAN: Color = COLORS[4];
const SIGMA: Color = COLORS[1];

/// Draws the legend of the marks once for the whole grid, in a row or, in the narrow layout, one below the other.
pub fn legend(drawing: &mut Drawing, (left, top): Point, layout: Layout) {
    let (mut x, mut y) = (left + 6.0, top);
    for (mark, text) in ["values, in equal bins", "mean", "mean ± 3 sigma, within min and max"].into_iter().enumerate()
    {
        match mark {
            0 => drawing.rectangle((x + 4.0, y - 5.0), (x + 16.0, y + 5.0), COLORS[0]),
            1 => drawing.path(vec![(x, y), (x + 20.0, y)], 2.0, MEAN),
            _ => drawing.dashed(&[(x, y), (x + 20.0, y)], 2.0, SIGMA),
        }
        drawing.text(Text { align: Align::Left, ..Text::new((x + 26.0, y), text, 12.0, BLACK) });
        match layout {
            Layout::Wide => x += 50.0 + text_width(text, 12.0),
            Layout::Narrow => y += 20.0,
        }
    }
}

/// Draws the cell.
pub fn draw(drawing: &mut Drawing, area: Area, histogram: &Histogram) {
    let most = histogram.counts.iter().copied().fold(0.0, f64::max);
    let mut filled: Vec<f64> = histogram.counts.iter().copied().filter(|count| *count > 0.0).collect();
    filled.sort_by(f64::total_cmp);
    let usual = filled.get(filled.len() / 2).copied().unwrap_or(1.0);
    let is_log = most > 50.0 * usual;
    let mut counts = histogram.counts.clone();
    // On the logarithmic axis a count of 1 must not vanish at the bottom.
    counts.push(if is_log { 0.5 } else { 0.0 });
    let y_axis = Axis::new("", "1", if is_log { Scale::Log } else { Scale::Zero });
    let y = Placed::new(&y_axis, &counts, 4);
    let (lower, upper) = histogram.edges;

    let tick_width = y.ticks.iter().map(|(_, text)| text_width(text, FONT)).fold(0.0, f64::max);
    let (left, right) = (area.left + tick_width + 14.0, area.right - 14.0);
    let (top, bottom) = (area.top + 24.0, area.bottom - 28.0);
    let title = shortened(&histogram.title, 12.0, right - left);
    drawing.text(Text { bold: true, align: Align::Left, ..Text::new((left, area.top + 12.0), &title, 11.5, BLACK) });
    for (place, text) in &y.ticks {
        let at = bottom - place * (bottom - top);
        drawing.path(vec![(left, at), (right, at)], 1.0, PALE);
        drawing.text(Text { align: Align::Right, ..Text::new((left - 5.0, at), text, FONT, BLACK) });
    }
    let x = |value: f64| left + (value - lower) / (upper - lower) * (right - left);
    let width = (right - left) / histogram.counts.len().max(1) as f64;
    for (bin, count) in histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0.0) {
        let from = left + bin as f64 * width;
        let height = y.place(*count).unwrap_or(0.0) * (bottom - top);
        // A little overlap: without it the page shows through between two bars.
        drawing.rectangle((from, bottom - height), (from + width + 0.25, bottom), COLORS[0]);
        let edge = |bin: usize| lower + (upper - lower) * bin as f64 / histogram.counts.len() as f64;
        let text = format!("{}\n{count} values from {:.4e} to {:.4e}", histogram.title, edge(bin), edge(bin + 1));
        drawing.hint((from, top), (from + width, bottom), text);
    }
    let (below, above) = histogram.sigma3;
    for (value, is_mean) in [(below, false), (above, false), (histogram.mean, true)] {
        let line = [(x(value), top), (x(value), bottom)];
        match (value >= lower && value <= upper, is_mean) {
            (false, _) => {}
            (_, true) => drawing.path(line.to_vec(), 2.0, MEAN),
            (_, false) => drawing.dashed(&line, 1.6, SIGMA),
        }
    }
    drawing.path(vec![(left, bottom), (right, bottom)], 1.0, GREY);
    let ends = Placed::new(&Axis::new("", "1", Scale::Linear), &[lower, upper], 5).ticks;
    for (value, text) in ends.iter().filter_map(|(_, text)| Some((text.parse::<f64>().ok()?, text))) {
        if value >= lower && value <= upper {
            drawing.path(vec![(x(value), bottom), (x(value), bottom + 3.0)], 1.0, GREY);
            drawing.text(Text::new((x(value), bottom + 12.0), text, FONT, BLACK));
        }
    }
}

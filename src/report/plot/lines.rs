//! Series over two axes, with the legend right of the plot, where it covers nothing.

use super::Area;
use super::axis::Placed;
use super::shapes::{Align, BLACK, COLORS, Color, Drawing, GREY, PALE, Point, Text, shortened, text_width};
use crate::report::figure::{Lines, Series, Style};

const FONT: f64 = 12.0;
const LEGEND_LINE: f64 = 18.0;
const LEGEND_TEXT: f64 = 230.0;
const SAMPLE: f64 = 26.0;
/// Height kept below the plot for ticks and axis title.
const BELOW: f64 = 46.0;
/// Height kept above the plot, without and with a title.
const ABOVE: [f64; 2] = [8.0, 28.0];

/// Width and height of the panel.
pub fn size(lines: &Lines, columns: usize, with_legend: bool) -> (f64, f64) {
    let plot = if columns > 1 { 430.0 } else { 620.0 };
    let legend = LEGEND_LINE * legend(lines).len() as f64 + 40.0 + BELOW;
    (plot + if with_legend { legend_width(lines) } else { 0.0 }, legend.max(if columns > 1 { 340.0 } else { 380.0 }))
}

/// Draws the panel.
pub fn draw(drawing: &mut Drawing, area: Area, lines: &Lines, with_legend: bool) {
    let (x_values, y_values) = values(lines);
    let plot_width = area.right - area.left - if with_legend { legend_width(lines) } else { 0.0 };
    let top = area.top + ABOVE[usize::from(!lines.title.is_empty())];
    let bottom = area.bottom - BELOW;
    let x = Placed::new(&lines.x, &x_values, (plot_width / 65.0) as usize);
    let y = Placed::new(&lines.y, &y_values, ((bottom - top) / 40.0) as usize);
    let tick_width = y.ticks.iter().map(|(_, text)| text_width(text, FONT)).fold(0.0, f64::max);
    let left = area.left + tick_width + 34.0;
    let right = area.left + plot_width - 18.0;

    if !lines.title.is_empty() {
        let at = (left, area.top + 10.0);
        drawing.text(Text { align: Align::Left, bold: true, ..Text::new(at, &lines.title, FONT + 1.0, BLACK) });
    }
    for (place, text) in &y.ticks {
        let at = bottom - place * (bottom - top);
        drawing.path(vec![(left, at), (right, at)], 1.0, PALE);
        drawing.text(Text { align: Align::Right, ..Text::new((left - 7.0, at), text, FONT, BLACK) });
    }
    for (place, text) in &x.ticks {
        let at = left + place * (right - left);
        drawing.path(vec![(at, top), (at, bottom)], 1.0, PALE);
        drawing.path(vec![(at, bottom), (at, bottom + 4.0)], 1.0, GREY);
        drawing.text(Text::new((at, bottom + 14.0), text, FONT, BLACK));
    }
    drawing.path(vec![(left, top), (left, bottom), (right, bottom)], 1.0, GREY);
    drawing.text(Text::new(((left + right) / 2.0, bottom + 34.0), &x.title, FONT, BLACK));
    let upward = Text::new((area.left + 10.0, (top + bottom) / 2.0), &y.title, FONT, BLACK);
    drawing.text(Text { upward: true, ..upward });

    let at = |(px, py): (f64, f64)| -> Option<Point> {
        Some((left + x.place(px)? * (right - left), bottom - y.place(py)? * (bottom - top)))
    };
    // Ideal lines are drawn first, behind the measured ones.
    let (ideal, measured): (Vec<&Series>, Vec<&Series>) = lines.series.iter().partition(|s| s.style == Style::Ideal);
    for series in ideal.into_iter().chain(measured) {
        let points: Vec<Point> = series.points.iter().filter_map(|point| at(*point)).collect();
        let color = color(series);
        match series.style {
            Style::Ideal => drawing.dashed(&points, 1.5, color),
            Style::Points => {}
            _ if series.is_dashed => drawing.dashed(&points, 2.0, color),
            Style::Line | Style::Plain => drawing.path(points.clone(), 2.0, color),
        }
        // A single point makes no line, so it gets a marker.
        if matches!(series.style, Style::Line | Style::Points) || points.len() == 1 {
            points.iter().for_each(|point| drawing.marker(*point, series.file, color));
        }
    }
    if with_legend {
        draw_legend(drawing, (right + 22.0, top + 8.0), lines);
    }
}

/// Whether both plots have equal legends, so that one suffices.
pub fn same_legend(one: &Lines, other: &Lines) -> bool {
    let key = |lines: &Lines| -> Vec<(String, usize, usize, bool)> {
        legend(lines).into_iter().map(|s| (s.label.clone(), s.color, s.file, s.is_dashed)).collect()
    };
    key(one) == key(other)
}

/// All x and all y that the axes must show. An ideal line counts only as far as the measurements reach.
fn values(lines: &Lines) -> (Vec<f64>, Vec<f64>) {
    let of = |ideal: bool| {
        let series = lines.series.iter().filter(move |series| (series.style == Style::Ideal) == ideal);
        series.flat_map(|series| series.points.iter().copied())
    };
    let x: Vec<f64> = of(false).map(|(x, _)| x).collect();
    let reach = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let y = of(false).chain(of(true).filter(|(x, _)| *x <= reach * (1.0 + 1e-9))).map(|(_, y)| y).collect();
    (x, y)
}

fn color(series: &Series) -> Color {
    if series.style == Style::Ideal { GREY } else { COLORS[series.color % COLORS.len()] }
}

/// Series with a name, ideal lines last.
fn legend(lines: &Lines) -> Vec<&Series> {
    let mut named: Vec<&Series> = lines.series.iter().filter(|series| !series.label.is_empty()).collect();
    named.sort_by_key(|series| series.style == Style::Ideal);
    named
}

fn legend_width(lines: &Lines) -> f64 {
    let widths = legend(lines).into_iter().map(|series| text_width(&series.label, FONT).min(LEGEND_TEXT));
    widths
        .fold(None, |most: Option<f64>, width| Some(most.unwrap_or(0.0).max(width)))
        .map_or(0.0, |w| w + SAMPLE + 24.0)
}

fn draw_legend(drawing: &mut Drawing, (left, top): Point, lines: &Lines) {
    for (index, series) in legend(lines).into_iter().enumerate() {
        let y = top + index as f64 * LEGEND_LINE;
        let (from, to, color) = ((left, y), (left + SAMPLE, y), color(series));
        match series.style {
            Style::Ideal => drawing.dashed(&[from, to], 1.5, color),
            Style::Points => {}
            _ if series.is_dashed => drawing.dashed(&[from, to], 2.0, color),
            Style::Line | Style::Plain => drawing.path(vec![from, to], 2.0, color),
        }
        if matches!(series.style, Style::Line | Style::Points) {
            drawing.marker((left + SAMPLE / 2.0, y), series.file, color);
        }
        let text = shortened(&series.label, FONT, LEGEND_TEXT);
        drawing.text(Text { align: Align::Left, ..Text::new((left + SAMPLE + 7.0, y), &text, FONT, BLACK) });
    }
}

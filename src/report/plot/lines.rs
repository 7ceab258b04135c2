//! Series over two axes, with the legend right of the plot or, in the narrow layout, below it, where it covers nothing.

use super::axis::Placed;
use super::shapes::{Align, BLACK, COLORS, Color, Drawing, GREY, PALE, Point, Text, shortened, text_width};
use super::{Area, Layout, NARROW};
use crate::report::figure::{Lines, Series, Style};

const FONT: f64 = 12.0;
const LEGEND_LINE: f64 = 18.0;
const LEGEND_TEXT: f64 = 230.0;
const SAMPLE: f64 = 26.0;
/// Height kept below the plot for ticks and axis title.
const BELOW: f64 = 46.0;
/// Height kept above the plot, without and with a title.
const ABOVE: [f64; 2] = [8.0, 28.0];
/// Height of the plot in the narrow layout.
const NARROW_PLOT: f64 = 220.0;
/// Least width over which the pointer shows one set of values.
const STRIP: f64 = 3.0;

/// Width and height of the panel.
pub fn size(lines: &Lines, layout: Layout, columns: usize, with_legend: bool) -> (f64, f64) {
    let legend = LEGEND_LINE * legend(lines).len() as f64;
    match layout {
        Layout::Wide => {
            let plot = if columns > 1 { 430.0 } else { 620.0 };
            let height = (legend + 40.0 + BELOW).max(if columns > 1 { 340.0 } else { 380.0 });
            (plot + if with_legend { legend_width(lines) } else { 0.0 }, height)
        }
        Layout::Narrow => {
            let legend = if with_legend { legend + 16.0 } else { 12.0 };
            (NARROW, ABOVE[usize::from(!lines.title.is_empty())] + NARROW_PLOT + BELOW + legend)
        }
    }
}

/// Points of a line that have a marker each.
const MOST_MARKED: usize = 200;

/// Draws the panel.
pub fn draw(drawing: &mut Drawing, area: Area, lines: &Lines, layout: Layout, with_legend: bool) {
    let (x_values, y_values) = values(lines);
    let beside = if with_legend && layout == Layout::Wide { legend_width(lines) } else { 0.0 };
    let plot_width = area.right - area.left - beside;
    let top = area.top + ABOVE[usize::from(!lines.title.is_empty())];
    let bottom = if layout == Layout::Wide { area.bottom - BELOW } else { top + NARROW_PLOT };
    let x = Placed::new(&lines.x, &x_values, (plot_width / 65.0) as usize);
    let y = Placed::new(&lines.y, &y_values, ((bottom - top) / 40.0) as usize);
    let tick_width = y.ticks.iter().map(|(_, text)| text_width(text, FONT)).fold(0.0, f64::max);
    let left = area.left + tick_width + 34.0;
    let right = area.left + plot_width - 18.0;

    if !lines.title.is_empty() {
        let at = (left, area.top + 10.0);
        let title = shortened(&lines.title, FONT + 2.0, area.left + plot_width - left);
        drawing.text(Text { align: Align::Left, bold: true, ..Text::new(at, &title, FONT + 1.0, BLACK) });
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
        for (x, low, high) in &series.intervals {
            if let (Some(low), Some(high)) = (at((*x, *low)), at((*x, *high))) {
                drawing.whisker(low, high, color);
            }
        }
        match series.style {
            Style::Ideal => drawing.dashed(&points, 1.5, color),
            Style::Points => {}
            _ if series.is_dashed => drawing.dashed(&points, 2.0, color),
            Style::Line | Style::Plain => drawing.path(points.clone(), 2.0, color),
        }
        // A single point makes no line, so it gets a marker; the markers of very many would hide their line.
        let is_marked = matches!(series.style, Style::Line) && points.len() <= MOST_MARKED;
        if is_marked || series.style == Style::Points || points.len() == 1 {
            points.iter().for_each(|point| drawing.marker(*point, series.file, color));
        }
    }
    hints(drawing, Area { left, top, right, bottom }, lines, (&x, &y));
    if with_legend {
        let (at, width) = match layout {
            Layout::Wide => ((right + 22.0, top + 8.0), LEGEND_TEXT),
            Layout::Narrow => ((area.left + 8.0, bottom + BELOW + 10.0), NARROW - SAMPLE - 24.0),
        };
        draw_legend(drawing, at, lines, width);
    }
}

/// A point of a series on the plot.
struct Shown<'a> {
    series: &'a Series,
    at: f64,
    x: f64,
    y: f64,
}

/// Adds strips over the whole height that show the values of all series at their x, so that the pointer has to meet no marker.
/// Where points lie closer than a strip is wide, it shows the greatest one of each series.
fn hints(drawing: &mut Drawing, area: Area, lines: &Lines, (x_axis, y_axis): (&Placed, &Placed)) {
    let Area { left, top, right, bottom } = area;
    let measured = lines.series.iter().filter(|series| series.style != Style::Ideal);
    let mut points: Vec<Shown> = measured
        .flat_map(|series| series.points.iter().map(move |point| (series, *point)))
        .filter_map(|(series, (x, y))| {
            y_axis.place(y)?;
            Some(Shown { series, at: left + x_axis.place(x)? * (right - left), x, y })
        })
        .collect();
    points.sort_by(|one, other| one.at.total_cmp(&other.at));
    let mut groups: Vec<Vec<Shown>> = Vec::new();
    for point in points {
        match groups.last_mut().filter(|group| point.at - group[0].at < STRIP) {
            Some(group) => match group.iter_mut().find(|known| std::ptr::eq(known.series, point.series)) {
                Some(known) if known.y >= point.y => {}
                Some(known) => *known = point,
                None => group.push(point),
            },
            None => groups.push(vec![point]),
        }
    }
    let center = |group: &[Shown]| group.iter().map(|point| point.at).sum::<f64>() / group.len() as f64;
    let centers: Vec<f64> = groups.iter().map(|group| center(group)).collect();
    for (index, group) in groups.iter().enumerate() {
        let between = |other: Option<&f64>, end: f64| other.map_or(end, |other| (other + centers[index]) / 2.0);
        let from = between(index.checked_sub(1).and_then(|before| centers.get(before)), left);
        let to = between(centers.get(index + 1), right);
        let mut texts: Vec<String> = Vec::new();
        for point in group {
            let x = format!("{} {}", lines.x.label, x_axis.show(point.x));
            if !texts.contains(&x) {
                texts.push(x);
            }
            let name = if point.series.label.is_empty() { &lines.y.label } else { &point.series.label };
            let interval = point
                .series
                .interval(point.x)
                .map_or(String::new(), |(low, high)| format!(" ({} to {})", y_axis.show(low), y_axis.show(high)));
            texts.push(format!("{name}: {}{interval}", y_axis.show(point.y)));
        }
        drawing.hint((from, top), (to, bottom), texts.join("\n"));
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
    let y = of(false).chain(of(true).filter(|(x, _)| *x <= reach * (1.0 + 1e-9))).map(|(_, y)| y);
    let ends = lines.series.iter().flat_map(|series| &series.intervals).flat_map(|(_, low, high)| [*low, *high]);
    let y = y.chain(ends).collect();
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

fn draw_legend(drawing: &mut Drawing, (left, top): Point, lines: &Lines, width: f64) {
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
        let text = shortened(&series.label, FONT, width);
        drawing.text(Text { align: Align::Left, ..Text::new((left + SAMPLE + 7.0, y), &text, FONT, BLACK) });
    }
}

//! Horizontal bars of stacked parts, so that long case names need no rotation. The legend is a row above the bars.

use super::axis::Placed;
use super::shapes::{Align, BLACK, COLORS, Color, Drawing, GREY, Point, Text, shortened, text_width};
use super::{Area, Layout, NARROW};
use crate::report::figure::{Bar, Bars};

const FONT: f64 = 12.0;
const BAR: f64 = 18.0;
const GAP: f64 = 8.0;
const BELOW: f64 = 46.0;
/// Height of a row of the legend.
const LEGEND: f64 = 22.0;
const TITLE: f64 = 24.0;
/// Greatest width of a name beside its bar, and height of a name above it.
const LABEL: f64 = 260.0;
const LABEL_ABOVE: f64 = 17.0;
/// Width kept right of the longest bar for its sum as text.
const SUM: f64 = 84.0;

/// Greatest number of bars drawn, which bounds the height; of a thousand ranks the first ones tell enough.
const MOST: usize = 64;

/// Places that follow from the layout.
struct Plan {
    /// Distance of the plot from the panel's left edge.
    left: f64,
    /// Width of the plot.
    width: f64,
    /// Distance from one bar to the next.
    pitch: f64,
    /// Height above the first bar's row.
    above: f64,
}

fn plan(bars: &Bars, layout: Layout, columns: usize, with_legend: bool) -> Plan {
    let labels = bars.bars.iter().map(|bar| text_width(&bar.label, FONT).min(LABEL)).fold(0.0, f64::max);
    let (left, width, pitch) = match layout {
        Layout::Wide => (labels + 10.0, if columns > 1 { 330.0 } else { 560.0 }, BAR + GAP),
        Layout::Narrow => (6.0, NARROW - 6.0 - SUM, BAR + GAP + LABEL_ABOVE),
    };
    let rows = if with_legend { legend_rows(&bars.parts, width + SUM).len() } else { 0 };
    let above = TITLE * f64::from(!bars.title.is_empty()) + LEGEND * rows as f64 + 4.0 * f64::from(rows > 0);
    Plan { left, width, pitch, above }
}

/// Width and height of the panel.
pub fn size(bars: &Bars, layout: Layout, columns: usize, with_legend: bool) -> (f64, f64) {
    let Plan { left, width, pitch, above } = plan(bars, layout, columns, with_legend);
    (left + width + SUM, above + shown(bars).len() as f64 * pitch + GAP + BELOW)
}

/// Draws the panel.
pub fn draw(drawing: &mut Drawing, area: Area, bars: &Bars, layout: Layout, columns: usize, with_legend: bool) {
    let plan = plan(bars, layout, columns, with_legend);
    let (left, right) = (area.left + plan.left, area.left + plan.left + plan.width);
    if !bars.title.is_empty() {
        let title = shortened(&bars.title, FONT + 2.0, plan.width + SUM);
        let at = (left, area.top + 10.0);
        drawing.text(Text { align: Align::Left, bold: true, ..Text::new(at, &title, FONT + 1.0, BLACK) });
    }
    let top = area.top + plan.above;
    if with_legend {
        let from = area.top + TITLE * f64::from(!bars.title.is_empty());
        legend(drawing, (left, from + 8.0), &bars.parts, plan.width + SUM);
    }
    let bottom = top + shown(bars).len() as f64 * plan.pitch + GAP;
    let sum = |bar: &Bar| bar.values.iter().copied().filter(|value| *value > 0.0).sum::<f64>();
    let ends = shown(bars).iter().flat_map(|bar| [sum(bar), bar.interval.map_or(0.0, |(_, high)| high)]);
    let x = Placed::new(&bars.x, &ends.collect::<Vec<f64>>(), (plan.width / 80.0) as usize);

    x.draw_below(drawing, Area { left, top, right, bottom }, FONT);
    for (index, bar) in shown(bars).iter().enumerate() {
        let row = top + GAP + index as f64 * plan.pitch;
        let y = row + plan.pitch - BAR - GAP;
        let label = shortened(&bar.label, FONT, if layout == Layout::Wide { LABEL } else { plan.width + SUM });
        let (at, align) = match layout {
            Layout::Wide => ((left - 8.0, y + BAR / 2.0), Align::Right),
            Layout::Narrow => ((left + 3.0, y - LABEL_ABOVE / 2.0), Align::Left),
        };
        drawing.text(Text { align, ..Text::new(at, &label, FONT, BLACK) });
        let (mut from, mut reached) = (left, 0.0);
        for (part, value) in bars.parts.iter().zip(&bar.values).filter(|(_, value)| **value > 0.0) {
            reached += value;
            let to = left + x.place(reached).unwrap_or(1.0) * (right - left);
            drawing.rectangle((from, y), (to, y + BAR), color(part));
            drawing.hint((from, y), (to, y + BAR), format!("{}\n{part}: {}", bar.label, x.show(*value)));
            from = to;
        }
        if let Some((low, high)) = bar.interval {
            let ends = [low, high].map(|value| left + x.place(value.max(0.0)).unwrap_or(1.0) * (right - left));
            drawing.whisker((ends[0], y + BAR / 2.0), (ends[1], y + BAR / 2.0), BLACK);
            from = from.max(ends[1]);
        }
        if reached > 0.0 {
            let at = (from + 6.0, y + BAR / 2.0);
            drawing.text(Text { align: Align::Left, ..Text::new(at, &x.show(reached), FONT - 1.0, BLACK) });
        }
    }
    drawing.path(vec![(left, top), (left, bottom), (right, bottom)], 1.0, GREY);
}

fn shown(bars: &Bars) -> &[Bar] {
    &bars.bars[..bars.bars.len().min(MOST)]
}

/// The color of `part` in every plot: cold colors for compute, warm ones for communication.
pub(super) fn color(part: &str) -> Color {
    match part {
        "data" => (150, 150, 150),
        "forward" => COLORS[5],
        "backward" => COLORS[0],
        "comm_wait" => COLORS[4],
        "comm" => COLORS[1],
        "comm_exposed" => (160, 50, 0), // beside `comm` where a run in overlap mode is compared with one in profile mode
        "optimizer" => COLORS[2],
        "other" => (215, 215, 215),
        _ => COLORS[0],
    }
}

/// The legend's entries in rows of at most `width` pixels.
fn legend_rows(parts: &[String], width: f64) -> Vec<Vec<&str>> {
    let mut rows: Vec<Vec<&str>> = Vec::new();
    let mut used = f64::INFINITY;
    for part in parts {
        let needed = entry_width(part);
        if used + needed > width {
            rows.push(Vec::new());
            used = 0.0;
        }
        used += needed;
        rows.last_mut().expect("the first entry begins a row").push(part);
    }
    rows
}

fn entry_width(part: &str) -> f64 {
    18.0 + text_width(part, FONT) + 16.0
}

/// Height of the legend of `parts`.
pub(super) fn legend_height(parts: &[String], width: f64) -> f64 {
    LEGEND * legend_rows(parts, width).len() as f64 + 4.0
}

/// Draws the legend of `parts` in rows, the first one at `y`.
pub(super) fn legend(drawing: &mut Drawing, (left, y): Point, parts: &[String], width: f64) {
    for (row, entries) in legend_rows(parts, width).into_iter().enumerate() {
        let (mut x, y) = (left, y + row as f64 * LEGEND);
        for part in entries {
            drawing.rectangle((x, y - 6.0), (x + 12.0, y + 6.0), color(part));
            drawing.text(Text { align: Align::Left, ..Text::new((x + 18.0, y), part, FONT, BLACK) });
            x += entry_width(part);
        }
    }
}

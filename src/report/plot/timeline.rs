//! Spans of a step over time, rank below rank: what a rank computes in the upper half of its row, its collectives in the lower half.

use super::axis::Placed;
use super::bars::{color, legend, legend_height};
use super::shapes::{Align, BLACK, Drawing, GREY, Text, shortened, text_width};
use super::{Area, Layout, NARROW};
use crate::report::figure::{Rank, Timeline};
use crate::units::format_seconds;

const FONT: f64 = 12.0;
/// Heights of the two halves of a rank's row.
const COMPUTE: f64 = 18.0;
const COMM: f64 = 8.0;
const GAP: f64 = 8.0;
const ABOVE: f64 = 24.0;
const BELOW: f64 = 46.0;
const WIDTH: f64 = 720.0;
/// Greatest width of a rank's name beside its row.
const LABEL: f64 = 160.0;
/// Width kept right of the plot for half of the last tick's text.
const RIGHT: f64 = 18.0;

/// Greatest number of ranks drawn, which bounds the height.
const MOST: usize = 32;

/// Distance of the plot from the panel's left edge, and the panel's width.
fn widths(timeline: &Timeline, layout: Layout) -> (f64, f64) {
    let labels = timeline.ranks.iter().map(|rank| text_width(&rank.label, FONT).min(LABEL)).fold(0.0, f64::max);
    let left = labels + 10.0;
    (left, if layout == Layout::Wide { left + WIDTH } else { NARROW })
}

/// Width and height of the panel.
pub fn size(timeline: &Timeline, layout: Layout, with_legend: bool) -> (f64, f64) {
    let (left, width) = widths(timeline, layout);
    let rows = shown(timeline).len() as f64 * (COMPUTE + COMM + GAP);
    let legend = if with_legend { legend_height(&timeline.parts, width - left) } else { 0.0 };
    (width, ABOVE + legend + rows + GAP + BELOW)
}

/// Draws the panel.
pub fn draw(drawing: &mut Drawing, area: Area, timeline: &Timeline, layout: Layout, with_legend: bool) {
    let (label, width) = widths(timeline, layout);
    let (left, right) = (area.left + label, area.left + width - RIGHT);
    // Above the names of the ranks, where the narrow layout leaves more room.
    let title_left = if layout == Layout::Wide { left } else { area.left + 4.0 };
    let title = shortened(&timeline.title, FONT + 2.0, area.left + width - title_left);
    let at = (title_left, area.top + 10.0);
    drawing.text(Text { align: Align::Left, bold: true, ..Text::new(at, &title, FONT + 1.0, BLACK) });
    let mut top = area.top + ABOVE;
    if with_legend {
        legend(drawing, (left, top + 8.0), &timeline.parts, width - label);
        top += legend_height(&timeline.parts, width - label);
    }
    let ranks = shown(timeline);
    let bottom = top + ranks.len() as f64 * (COMPUTE + COMM + GAP) + GAP;
    let ends: Vec<f64> = ranks.iter().flat_map(|rank| rank.spans()).map(|span| span.1).collect();
    let x = Placed::new(&timeline.x, &ends, ((right - left) / 80.0) as usize);
    x.draw_below(drawing, Area { left, top, right, bottom }, FONT);
    let place = |seconds: f64| left + x.place(seconds.max(0.0)).unwrap_or(1.0) * (right - left);
    for (index, rank) in ranks.iter().enumerate() {
        let y = top + GAP + index as f64 * (COMPUTE + COMM + GAP);
        let label = shortened(&rank.label, FONT, LABEL);
        drawing.text(Text { align: Align::Right, ..Text::new((left - 8.0, y + COMPUTE / 2.0), &label, FONT, BLACK) });
        let lanes = [(&rank.compute, y, COMPUTE), (&rank.communication, y + COMPUTE, COMM)];
        for (spans, y, height) in lanes {
            for (from, to, part) in spans {
                let (upper, lower) = ((place(*from), y), (place(*to), y + height));
                drawing.rectangle(upper, lower, color(part));
                let (took, begin) = (format_seconds(to - from), format_seconds(*from));
                drawing.hint(upper, lower, format!("{}\n{part}: {took}, from {begin}", rank.label));
            }
        }
    }
    drawing.path(vec![(left, top), (left, bottom), (right, bottom)], 1.0, GREY);
}

fn shown(timeline: &Timeline) -> &[Rank] {
    &timeline.ranks[..timeline.ranks.len().min(MOST)]
}

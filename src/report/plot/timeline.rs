//! Spans of a step over time, rank below rank: what a rank computes in the upper half of its row, its collectives in the lower half.

use super::Area;
use super::axis::Placed;
use super::bars::{color, legend};
use super::shapes::{Align, BLACK, Drawing, GREY, Text, shortened, text_width};
use crate::report::figure::{Rank, Timeline};

const FONT: f64 = 12.0;
/// Heights of the two halves of a rank's row.
const COMPUTE: f64 = 18.0;
const COMM: f64 = 8.0;
const GAP: f64 = 8.0;
const ABOVE: f64 = 24.0;
const BELOW: f64 = 46.0;
const LEGEND: f64 = 26.0;
const WIDTH: f64 = 720.0;

/// Greatest number of ranks drawn, which bounds the height.
const MOST: usize = 32;

/// Width and height of the panel.
pub fn size(timeline: &Timeline, with_legend: bool) -> (f64, f64) {
    let rows = shown(timeline).len() as f64 * (COMPUTE + COMM + GAP);
    (label_width(timeline) + WIDTH, ABOVE + LEGEND * f64::from(with_legend) + rows + GAP + BELOW)
}

/// Draws the panel.
pub fn draw(drawing: &mut Drawing, area: Area, timeline: &Timeline, with_legend: bool) {
    let (left, right) = (area.left + label_width(timeline) + 10.0, area.right - 18.0);
    let at = (left, area.top + 10.0);
    drawing.text(Text { align: Align::Left, bold: true, ..Text::new(at, &timeline.title, FONT + 1.0, BLACK) });
    let mut top = area.top + ABOVE;
    if with_legend {
        legend(drawing, left, top + 8.0, &timeline.parts);
        top += LEGEND;
    }
    let ranks = shown(timeline);
    let bottom = top + ranks.len() as f64 * (COMPUTE + COMM + GAP) + GAP;
    let ends: Vec<f64> = ranks.iter().flat_map(|rank| rank.spans()).map(|span| span.1).collect();
    let x = Placed::new(&timeline.x, &ends, ((right - left) / 80.0) as usize);
    x.draw_below(drawing, Area { left, top, right, bottom }, FONT);
    let place = |seconds: f64| left + x.place(seconds.max(0.0)).unwrap_or(1.0) * (right - left);
    for (index, rank) in ranks.iter().enumerate() {
        let y = top + GAP + index as f64 * (COMPUTE + COMM + GAP);
        let label = shortened(&rank.label, FONT, 160.0);
        drawing.text(Text { align: Align::Right, ..Text::new((left - 8.0, y + COMPUTE / 2.0), &label, FONT, BLACK) });
        for (from, to, part) in &rank.compute {
            drawing.rectangle((place(*from), y), (place(*to), y + COMPUTE), color(part));
        }
        for (from, to, part) in &rank.communication {
            drawing.rectangle((place(*from), y + COMPUTE), (place(*to), y + COMPUTE + COMM), color(part));
        }
    }
    drawing.path(vec![(left, top), (left, bottom), (right, bottom)], 1.0, GREY);
}

fn shown(timeline: &Timeline) -> &[Rank] {
    &timeline.ranks[..timeline.ranks.len().min(MOST)]
}

fn label_width(timeline: &Timeline) -> f64 {
    timeline.ranks.iter().map(|rank| text_width(&rank.label, FONT).min(160.0)).fold(0.0, f64::max)
}

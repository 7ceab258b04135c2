//! Horizontal bars of stacked parts, so that long case names need no rotation. The legend is a row above the bars.

use super::Area;
use super::axis::Placed;
use super::shapes::{Align, BLACK, COLORS, Color, Drawing, GREY, Text, shortened, text_width};
use crate::report::figure::{Bar, Bars};
use crate::units::{format_bytes, format_seconds};

const FONT: f64 = 12.0;
const BAR: f64 = 18.0;
const GAP: f64 = 8.0;
const BELOW: f64 = 46.0;
const LEGEND: f64 = 26.0;
const LABEL: f64 = 260.0;
/// Width kept right of the longest bar for its sum as text.
const SUM: f64 = 74.0;

/// Greatest number of bars drawn, which bounds the height; of a thousand ranks the first ones tell enough.
const MOST: usize = 64;

/// Width and height of the panel.
pub fn size(bars: &Bars, columns: usize) -> (f64, f64) {
    let plot = if columns > 1 { 330.0 } else { 560.0 };
    let above = LEGEND * f64::from(bars.parts.len() > 1) + 24.0 * f64::from(!bars.title.is_empty());
    (label_width(bars) + plot + SUM, above + shown(bars).len() as f64 * (BAR + GAP) + GAP + BELOW)
}

/// Draws the panel.
pub fn draw(drawing: &mut Drawing, area: Area, bars: &Bars) {
    let (left, right) = (area.left + label_width(bars) + 10.0, area.right - SUM);
    let mut top = area.top;
    if !bars.title.is_empty() {
        let at = (left, top + 10.0);
        drawing.text(Text { align: Align::Left, bold: true, ..Text::new(at, &bars.title, FONT + 1.0, BLACK) });
        top += 24.0;
    }
    if bars.parts.len() > 1 {
        legend(drawing, left, top + 8.0, &bars.parts);
        top += LEGEND;
    }
    let bottom = top + shown(bars).len() as f64 * (BAR + GAP) + GAP;
    let sums: Vec<f64> = shown(bars).iter().map(|bar| bar.values.iter().copied().filter(|v| *v > 0.0).sum()).collect();
    let x = Placed::new(&bars.x, &sums, ((right - left) / 80.0) as usize);

    x.draw_below(drawing, Area { left, top, right, bottom }, FONT);
    for (index, (bar, sum)) in shown(bars).iter().zip(&sums).enumerate() {
        let y = top + GAP + index as f64 * (BAR + GAP);
        let label = shortened(&bar.label, FONT, LABEL);
        drawing.text(Text { align: Align::Right, ..Text::new((left - 8.0, y + BAR / 2.0), &label, FONT, BLACK) });
        let (mut from, mut reached) = (left, 0.0);
        for (part, value) in bars.parts.iter().zip(&bar.values).filter(|(_, value)| **value > 0.0) {
            reached += value;
            let to = left + x.place(reached).unwrap_or(1.0) * (right - left);
            drawing.rectangle((from, y), (to, y + BAR), color(part));
            from = to;
        }
        if *sum > 0.0 {
            let text = match bars.x.units.as_str() {
                "s" => format_seconds(*sum),
                "B" => format_bytes(*sum as u64),
                _ => format!("{sum:.3}"),
            };
            let at = (from + 6.0, y + BAR / 2.0);
            drawing.text(Text { align: Align::Left, ..Text::new(at, &text, FONT - 1.0, BLACK) });
        }
    }
    drawing.path(vec![(left, top), (left, bottom), (right, bottom)], 1.0, GREY);
}

fn shown(bars: &Bars) -> &[Bar] {
    &bars.bars[..bars.bars.len().min(MOST)]
}

fn label_width(bars: &Bars) -> f64 {
    bars.bars.iter().map(|bar| text_width(&bar.label, FONT).min(LABEL)).fold(0.0, f64::max)
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

/// Draws the legend of `parts` as a row.
pub(super) fn legend(drawing: &mut Drawing, left: f64, y: f64, parts: &[String]) {
    let mut x = left;
    for part in parts {
        drawing.rectangle((x, y - 6.0), (x + 12.0, y + 6.0), color(part));
        drawing.text(Text { align: Align::Left, ..Text::new((x + 18.0, y), part, FONT, BLACK) });
        x += 18.0 + text_width(part, FONT) + 18.0;
    }
}

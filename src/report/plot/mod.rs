//! Figures as SVG and PNG: laid out as shapes in CSS pixels, then drawn by plotters' two backends, so that both look alike.

mod axis;
mod bars;
mod histogram;
mod lines;
mod shapes;
mod timeline;

use std::fmt::Write;

use plotters::prelude::{BitMapBackend, SVGBackend};

use super::figure::{Figure, Panel};
use crate::table::printable;
use shapes::{Align, BLACK, Drawing, Manner, Text};

/// SVG grid units per CSS pixel: plotters' backends take whole pixels only.
const SVG_SCALE: u32 = 8;
/// PNG pixels per CSS pixel; each is the mean of `SUPERSAMPLING` squared drawn ones.
const PNG_SCALE: u32 = 2;
const SUPERSAMPLING: u32 = 2;

const MARGIN: f64 = 12.0;
const NARROW_MARGIN: f64 = 4.0;
const TITLE_HEIGHT: f64 = 30.0;

/// Arrangement of a figure's panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Panels side by side, legends and names beside the plots.
    Wide,
    /// Everything one below the other in [`NARROW`], in letters of the same size: for telephones.
    Narrow,
}

/// Width of the content of a narrow figure: a window of 400 pixels without margins and scroll bar.
const NARROW: f64 = 340.0;

/// A rectangle of the drawing, in CSS pixels.
#[derive(Debug, Clone, Copy)]
struct Area {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

/// Draws the figure as SVG text that needs no other file, with its title above the panels.
///
/// # Errors
/// plotters reports that a shape cannot be drawn.
pub fn svg(figure: &Figure) -> Result<String, String> {
    as_svg(figure, &draw(figure, Layout::Wide, true))
}

/// Draws the figure as SVG text for a page that shows the title itself.
///
/// # Errors
/// plotters reports that a shape cannot be drawn.
pub fn inline_svg(figure: &Figure, layout: Layout) -> Result<String, String> {
    as_svg(figure, &draw(figure, layout, false))
}

fn as_svg(figure: &Figure, drawing: &Drawing) -> Result<String, String> {
    let (width, height) = (drawing.width as u32, drawing.height as u32);
    let mut text = String::new();
    {
        let mut backend = SVGBackend::with_string(&mut text, (width * SVG_SCALE, height * SVG_SCALE));
        drawing.play(&mut backend, Manner { scale: f64::from(SVG_SCALE), drop: 0.09, is_bitmap: false })?;
    }
    // Labels cannot contain `<polyline `: their `<` is escaped.
    let text = text.replace("<polyline ", "<polyline stroke-linejoin=\"round\" ");
    // Invisible rectangles above all shapes.
    let mut hints = String::new();
    let escaped = |text: &str| {
        let lines: Vec<String> = text.lines().map(printable).collect();
        lines.join("\n").replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
    };
    for ((left, top), (right, bottom), hint) in &drawing.hints {
        let grid = |value: f64| (value * f64::from(SVG_SCALE)).round();
        let (x, y, width, height) = (grid(*left), grid(*top), grid(right - left), grid(bottom - top));
        let _ = writeln!(
            hints,
            "<rect class=\"hint\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"none\" pointer-events=\"all\">\
             <title>{}</title></rect>",
            escaped(hint)
        );
    }
    let end = text.rfind("</svg>").unwrap_or(text.len());
    let text = format!("{}{hints}{}", &text[..end], &text[end..]);
    let named = format!("<title>{}</title><desc>{}</desc>", escaped(&figure.title), escaped(&figure.describe()));
    let text = text.replacen('>', &format!(">\n{named}"), 1);
    let inner = format!("width=\"{}\" height=\"{}\"", width * SVG_SCALE, height * SVG_SCALE);
    Ok(text.replacen(&inner, &format!("width=\"{width}\" height=\"{height}\""), 1))
}

/// Draws the figure as a PNG.
///
/// # Errors
/// plotters reports that a shape cannot be drawn, or the image cannot be encoded.
pub fn png(figure: &Figure) -> Result<Vec<u8>, String> {
    let drawing = draw(figure, Layout::Wide, true);
    let scale = PNG_SCALE * SUPERSAMPLING;
    let (width, height) = (drawing.width as u32 * PNG_SCALE, drawing.height as u32 * PNG_SCALE);
    let (fine_width, fine_height) = (width * SUPERSAMPLING, height * SUPERSAMPLING);
    let mut fine = vec![0u8; fine_width as usize * fine_height as usize * 3];
    {
        let mut backend = BitMapBackend::with_buffer(&mut fine, (fine_width, fine_height));
        drawing.play(&mut backend, Manner { scale: f64::from(scale), drop: 0.26, is_bitmap: true })?;
    }
    let pixels = averaged(&fine, fine_width as usize, SUPERSAMPLING as usize);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer.write_image_data(&pixels).and_then(|()| writer.finish()).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Averages every `side` x `side` pixels to one.
fn averaged(fine: &[u8], fine_width: usize, side: usize) -> Vec<u8> {
    let (row_bytes, mut pixels) = (fine_width * 3, Vec::with_capacity(fine.len() / (side * side)));
    for rows in fine.chunks_exact(row_bytes * side) {
        for x in (0..row_bytes).step_by(3 * side) {
            for channel in 0..3 {
                let square =
                    (0..side * side).map(|i| u32::from(rows[(i / side) * row_bytes + x + 3 * (i % side) + channel]));
                pixels.push((square.sum::<u32>() / (side * side) as u32) as u8);
            }
        }
    }
    pixels
}

fn draw(figure: &Figure, layout: Layout, with_title: bool) -> Drawing {
    let side_by_side = figure.columns.clamp(1, figure.panels.len().max(1));
    let histograms = figure.panels.iter().any(|panel| matches!(panel, Panel::Histogram(_)));
    let columns = match layout {
        Layout::Wide => side_by_side,
        Layout::Narrow if histograms => side_by_side.min(histogram::NARROW_COLUMNS),
        Layout::Narrow => 1,
    };
    let size = |index: usize| {
        let legend = has_legend(figure, index, side_by_side);
        match &figure.panels[index] {
            Panel::Lines(lines) => lines::size(lines, layout, columns, legend),
            Panel::Bars(bars) => bars::size(bars, layout, columns, legend),
            Panel::Timeline(timeline) => timeline::size(timeline, layout, legend),
            Panel::Histogram(_) => histogram::size(layout),
        }
    };
    let sizes: Vec<(f64, f64)> = (0..figure.panels.len()).map(size).collect();
    let of_column = |column: usize| sizes.iter().skip(column).step_by(columns).map(|(width, _)| *width);
    let widths: Vec<f64> = (0..columns).map(|column| of_column(column).fold(0.0, f64::max)).collect();
    let heights: Vec<f64> =
        sizes.chunks(columns).map(|row| row.iter().map(|(_, height)| *height).fold(0.0, f64::max)).collect();
    let legend = if histograms { histogram::legend_height(layout) } else { 0.0 };
    let margin = if layout == Layout::Wide { MARGIN } else { NARROW_MARGIN };
    let title = if with_title { TITLE_HEIGHT } else { 0.0 };

    let least = if layout == Layout::Wide { 380.0 } else { NARROW };
    let width = widths.iter().sum::<f64>().max(least) + 2.0 * margin;
    let height = margin + title + legend + heights.iter().sum::<f64>() + margin;
    let mut drawing = Drawing::new(width.ceil(), height.ceil());
    if with_title {
        let text = shapes::shortened(&figure.title, 16.0, width - 2.0 * margin);
        drawing.text(Text { bold: true, align: Align::Left, ..Text::new((margin, margin + 9.0), &text, 16.0, BLACK) });
    }
    let mut top = margin + title;
    if histograms {
        histogram::legend(&mut drawing, (margin, top + 6.0), layout);
        top += legend;
    }
    for (row, height) in heights.iter().enumerate() {
        let mut left = margin;
        for (column, width) in widths.iter().enumerate() {
            let index = row * columns + column;
            let area = Area { left, top, right: left + width, bottom: top + height };
            let Some(panel) = figure.panels.get(index) else { continue };
            let legend = has_legend(figure, index, side_by_side);
            match panel {
                Panel::Lines(lines) => lines::draw(&mut drawing, area, lines, layout, legend),
                Panel::Bars(bars) => bars::draw(&mut drawing, area, bars, layout, columns, legend),
                Panel::Timeline(timeline) => timeline::draw(&mut drawing, area, timeline, layout, legend),
                Panel::Histogram(histogram) => histogram::draw(&mut drawing, area, histogram),
            }
            left += width;
        }
        top += height;
    }
    drawing
}

/// Whether a panel has a legend of its own: series that the next panel of the same row explains, and parts that the panel above
/// explains, are named once.
fn has_legend(figure: &Figure, index: usize, side_by_side: usize) -> bool {
    let before = index.checked_sub(1).and_then(|before| figure.panels.get(before));
    match (&figure.panels[index], before, figure.panels.get(index + 1)) {
        (Panel::Lines(own), _, Some(Panel::Lines(next))) => {
            (index + 1).is_multiple_of(side_by_side) || !lines::same_legend(own, next)
        }
        (Panel::Bars(own), Some(Panel::Bars(before)), _) => own.parts.len() > 1 && own.parts != before.parts,
        (Panel::Bars(own), ..) => own.parts.len() > 1,
        (Panel::Timeline(_), ..) => index == 0,
        _ => true,
    }
}

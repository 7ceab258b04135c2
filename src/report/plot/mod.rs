//! Figures as SVG and PNG: laid out as shapes in CSS pixels, then drawn by plotters' two backends, so that both look alike.

mod axis;
mod bars;
mod histogram;
mod lines;
mod shapes;
mod timeline;

use plotters::prelude::{BitMapBackend, SVGBackend};

use super::figure::{Figure, Panel};
use shapes::{Align, BLACK, Drawing, Manner, Text};

/// SVG grid units per CSS pixel: plotters' backends take whole pixels only.
const SVG_SCALE: u32 = 8;
/// PNG pixels per CSS pixel; each is the mean of `SUPERSAMPLING` squared drawn ones.
const PNG_SCALE: u32 = 2;
const SUPERSAMPLING: u32 = 2;

const MARGIN: f64 = 12.0;
const TITLE_HEIGHT: f64 = 30.0;

/// A rectangle of the drawing, in CSS pixels.
#[derive(Debug, Clone, Copy)]
struct Area {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

/// Draws the figure as SVG text that needs no other file.
///
/// # Errors
/// plotters reports that a shape cannot be drawn.
pub fn svg(figure: &Figure) -> Result<String, String> {
    let drawing = draw(figure);
    let (width, height) = (drawing.width as u32, drawing.height as u32);
    let mut text = String::new();
    {
        let mut backend = SVGBackend::with_string(&mut text, (width * SVG_SCALE, height * SVG_SCALE));
        drawing.play(&mut backend, Manner { scale: f64::from(SVG_SCALE), drop: 0.09, is_bitmap: false })?;
    }
    // Labels cannot contain `<polyline `: their `<` is escaped.
    let text = text.replace("<polyline ", "<polyline stroke-linejoin=\"round\" ");
    let inner = format!("width=\"{}\" height=\"{}\"", width * SVG_SCALE, height * SVG_SCALE);
    Ok(text.replacen(&inner, &format!("width=\"{width}\" height=\"{height}\""), 1))
}

/// Draws the figure as a PNG.
///
/// # Errors
/// plotters reports that a shape cannot be drawn, or the image cannot be encoded.
pub fn png(figure: &Figure) -> Result<Vec<u8>, String> {
    let drawing = draw(figure);
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

fn draw(figure: &Figure) -> Drawing {
    let columns = figure.columns.clamp(1, figure.panels.len().max(1));
    // Panels of one row that show the same series share one legend.
    let repeats = |index: usize| match (&figure.panels[index], figure.panels.get(index + 1)) {
        (Panel::Lines(own), Some(Panel::Lines(next))) => {
            !(index + 1).is_multiple_of(columns) && lines::same_legend(own, next)
        }
        _ => false,
    };
    let size = |index: usize| match &figure.panels[index] {
        Panel::Lines(lines) => lines::size(lines, columns, !repeats(index)),
        Panel::Bars(bars) => bars::size(bars, columns),
        Panel::Timeline(timeline) => timeline::size(timeline, index == 0),
        Panel::Histogram(_) => histogram::SIZE,
    };
    let sizes: Vec<(f64, f64)> = (0..figure.panels.len()).map(size).collect();
    let of_column = |column: usize| sizes.iter().skip(column).step_by(columns).map(|(width, _)| *width);
    let widths: Vec<f64> = (0..columns).map(|column| of_column(column).fold(0.0, f64::max)).collect();
    let heights: Vec<f64> =
        sizes.chunks(columns).map(|row| row.iter().map(|(_, height)| *height).fold(0.0, f64::max)).collect();
    let histograms = figure.panels.iter().any(|panel| matches!(panel, Panel::Histogram(_)));
    let legend = if histograms { 24.0 } else { 0.0 };

    let width = widths.iter().sum::<f64>().max(380.0) + 2.0 * MARGIN;
    let height = MARGIN + TITLE_HEIGHT + legend + heights.iter().sum::<f64>() + MARGIN;
    let mut drawing = Drawing::new(width.ceil(), height.ceil());
    let title = shapes::shortened(&figure.title, 16.0, width - 2.0 * MARGIN);
    drawing.text(Text { bold: true, align: Align::Left, ..Text::new((MARGIN, MARGIN + 9.0), &title, 16.0, BLACK) });
    let mut top = MARGIN + TITLE_HEIGHT;
    if histograms {
        histogram::legend(&mut drawing, (MARGIN, top + 6.0));
        top += legend;
    }
    for (row, height) in heights.iter().enumerate() {
        let mut left = MARGIN;
        for (column, width) in widths.iter().enumerate() {
            let index = row * columns + column;
            let area = Area { left, top, right: left + width, bottom: top + height };
            match figure.panels.get(index) {
                Some(Panel::Lines(lines)) => lines::draw(&mut drawing, area, lines, !repeats(index)),
                Some(Panel::Bars(bars)) => bars::draw(&mut drawing, area, bars),
                Some(Panel::Timeline(timeline)) => timeline::draw(&mut drawing, area, timeline, index == 0),
                Some(Panel::Histogram(histogram)) => histogram::draw(&mut drawing, area, histogram),
                None => {}
            }
            left += width;
        }
        top += height;
    }
    drawing
}

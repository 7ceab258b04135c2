//! A drawing as a list of shapes in CSS pixels, and its replay on a backend of plotters.

use std::sync::Once;

use plotters::prelude::{DrawingBackend, RGBColor, ShapeStyle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, FontDesc, FontFamily, FontStyle, FontTransform, TextStyle, register_font};

/// Red, green and blue, 0 to 255.
pub type Color = (u8, u8, u8);
/// Position (x, y) in CSS pixels from the upper left corner.
pub type Point = (f64, f64);

/// Color of text.
pub const BLACK: Color = (34, 34, 34);
/// Color of axes and ideal lines.
pub const GREY: Color = (120, 120, 120);
/// Color of the grid.
pub const PALE: Color = (226, 226, 226);
/// Colors of series: Okabe and Ito's, which color-blind readers can tell apart; yellow last, since it is weak on white.
pub const COLORS: [Color; crate::report::figure::COLORS] = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (60, 60, 60),
    (240, 228, 66),
];

/// Font family: a browser resolves the generic name, a PNG takes the font registered below under it.
const FONT: &str = "sans-serif";
/// Line height per em: plotters' font sizes are line heights.
const LINE: f64 = 1.24;

/// The end of a text that is put at its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Align {
    Left,
    Middle,
    Right,
}

/// A line of text, vertically centered at its point.
#[derive(Debug, Clone)]
pub struct Text {
    /// Position of the text.
    pub at: Point,
    /// Characters to show; control characters are replaced.
    pub text: String,
    /// Font size (one em), in CSS pixels.
    pub size: f64,
    /// Color of the characters.
    pub color: Color,
    /// Horizontal alignment at the position.
    pub align: Align,
    /// Bold instead of regular weight.
    pub bold: bool,
    /// Rotated to read from bottom to top.
    pub upward: bool,
}

impl Text {
    /// Regular text, centered at `at`.
    pub fn new(at: Point, text: &str, size: f64, color: Color) -> Text {
        Text { at, text: text.to_owned(), size, color, align: Align::Middle, bold: false, upward: false }
    }
}

enum Shape {
    Path { points: Vec<Point>, width: f64, color: Color },
    Area { points: Vec<Point>, color: Color },
    Rectangle { from: Point, to: Point, color: Color },
    Circle { center: Point, radius: f64, color: Color },
    Text(Text),
}

/// Differences between the backends.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Backend pixels per CSS pixel.
    pub scale: f64,
    /// Distance, in ems, by which a text is lowered so that its capitals and digits are centered.
    pub drop: f64,
    /// Whether a thick line is drawn segment by segment with round joints: plotters' bitmap backend frays it at spikes.
    pub is_bitmap: bool,
}

/// A list of shapes on white, later ones above earlier ones.
pub struct Drawing {
    /// Width in CSS pixels.
    pub width: f64,
    /// Height in CSS pixels.
    pub height: f64,
    /// Texts under the pointer: rectangle and text; later ones lie above earlier ones.
    pub hints: Vec<(Point, Point, String)>,
    shapes: Vec<Shape>,
}

impl Drawing {
    /// An empty drawing.
    pub fn new(width: f64, height: f64) -> Drawing {
        Drawing { width, height, hints: Vec::new(), shapes: Vec::new() }
    }

    /// Adds a line through all points.
    pub fn path(&mut self, points: Vec<Point>, width: f64, color: Color) {
        self.shapes.push(Shape::Path { points, width, color });
    }

    /// Adds a dashed line through all points.
    pub fn dashed(&mut self, points: &[Point], width: f64, color: Color) {
        const DASHES: [f64; 2] = [6.0, 4.0];
        let (mut piece, mut is_on, mut left) = (Vec::from_iter(points.first().copied()), true, DASHES[0]);
        for pair in points.windows(2) {
            let ((mut x, mut y), (to_x, to_y)) = (pair[0], pair[1]);
            loop {
                let rest = (to_x - x).hypot(to_y - y);
                if rest <= left {
                    left -= rest;
                    piece.push((to_x, to_y));
                    break;
                }
                (x, y) = (x + (to_x - x) * left / rest, y + (to_y - y) * left / rest);
                piece.push((x, y));
                let done = std::mem::replace(&mut piece, vec![(x, y)]);
                if is_on {
                    self.path(done, width, color);
                }
                (is_on, left) = (!is_on, DASHES[usize::from(is_on)]);
            }
        }
        if is_on {
            self.path(piece, width, color);
        }
    }

    /// Adds an error bar between two points of a horizontal or vertical line.
    pub fn whisker(&mut self, from: Point, to: Point, color: Color) {
        const CAP: f64 = 4.0;
        self.path(vec![from, to], 1.5, color);
        let is_vertical = (to.1 - from.1).abs() > (to.0 - from.0).abs() || from == to;
        for (x, y) in [from, to] {
            let (dx, dy) = if is_vertical { (CAP, 0.0) } else { (0.0, CAP) };
            self.path(vec![(x - dx, y - dy), (x + dx, y + dy)], 1.5, color);
        }
    }

    /// Adds a filled polygon.
    pub fn area(&mut self, points: Vec<Point>, color: Color) {
        self.shapes.push(Shape::Area { points, color });
    }

    /// Adds a text of one or more lines that an SVG shows while the pointer is in the rectangle, which is at least 3 pixels wide and high.
    pub fn hint(&mut self, from: Point, to: Point, text: String) {
        let least = |from: f64, to: f64| to.max(from + 3.0);
        self.hints.push((from, (least(from.0, to.0), least(from.1, to.1)), text));
    }

    /// Adds a filled rectangle.
    pub fn rectangle(&mut self, from: Point, to: Point, color: Color) {
        self.shapes.push(Shape::Rectangle { from, to, color });
    }

    /// Adds a marker; each `kind` has another form.
    pub fn marker(&mut self, (x, y): Point, kind: usize, color: Color) {
        match kind % 4 {
            0 => self.shapes.push(Shape::Circle { center: (x, y), radius: 4.0, color }),
            1 => self.rectangle((x - 3.6, y - 3.6), (x + 3.6, y + 3.6), color),
            2 => self.area(vec![(x, y - 5.2), (x + 4.8, y + 3.6), (x - 4.8, y + 3.6)], color),
            _ => self.area(vec![(x, y - 5.4), (x + 5.4, y), (x, y + 5.4), (x - 5.4, y)], color),
        }
    }

    /// Adds a line of text.
    pub fn text(&mut self, text: Text) {
        self.shapes.push(Shape::Text(text));
    }

    /// Draws all shapes on a backend.
    pub fn play<B: DrawingBackend>(&self, backend: &mut B, manner: Manner) -> Result<(), String> {
        let scale = manner.scale;
        register_fonts();
        let at = |(x, y): Point| ((x * scale).round() as i32, (y * scale).round() as i32);
        let paint = |(r, g, b): Color| RGBColor(r, g, b);
        let white = ShapeStyle::from(paint((255, 255, 255))).filled();
        backend.draw_rect((0, 0), at((self.width, self.height)), &white, true).map_err(|error| error.to_string())?;
        for shape in &self.shapes {
            let drawn = match shape {
                Shape::Path { points, width, color } => {
                    let mut points: Vec<_> = points.iter().map(|point| at(*point)).collect();
                    points.dedup(); // a step of no length has no direction to give a thick line
                    if points.len() < 2 {
                        continue;
                    }
                    let width = (width * scale).round().max(1.0) as u32;
                    let style = ShapeStyle::from(paint(*color)).stroke_width(width);
                    if !manner.is_bitmap {
                        backend.draw_path(points, &style)
                    } else {
                        points.windows(2).try_for_each(|pair| {
                            backend.draw_path(pair.to_vec(), &style)?;
                            backend.draw_circle(pair[1], width / 2, &style.filled(), true)
                        })
                    }
                }
                Shape::Area { points, color } => {
                    backend.fill_polygon(points.iter().map(|point| at(*point)), &paint(*color))
                }
                Shape::Rectangle { from, to, color } => {
                    // plotters' bitmap backend draws the lower right edge of a rectangle too, its SVG backend does not.
                    backend.draw_rect(at(*from), at(*to), &paint(*color).filled(), true)
                }
                Shape::Circle { center, radius, color } => {
                    backend.draw_circle(at(*center), (radius * scale).round() as u32, &paint(*color).filled(), true)
                }
                Shape::Text(text) => {
                    let h_pos = match text.align {
                        Align::Left => HPos::Left,
                        Align::Middle => HPos::Center,
                        Align::Right => HPos::Right,
                    };
                    let turn = if text.upward { FontTransform::Rotate270 } else { FontTransform::None };
                    let font = font(text.size * scale, text.bold).transform(turn);
                    let ((x, y), drop) = (text.at, manner.drop * text.size);
                    let (x, y) = if text.upward { (x + drop, y) } else { (x, y + drop) };
                    let style = TextStyle { pos: Pos::new(h_pos, VPos::Center), ..font.color(&paint(text.color)) };
                    backend.draw_text(&crate::table::printable(&text.text), &style, at((x, y)))
                }
            };
            drawn.map_err(|error| error.to_string())?;
        }
        backend.present().map_err(|error| error.to_string())
    }
}

fn font(size: f64, bold: bool) -> FontDesc<'static> {
    FontDesc::new(FontFamily::SansSerif, size * LINE, if bold { FontStyle::Bold } else { FontStyle::Normal })
}

/// Width of a text in CSS pixels in the PNG's font; a browser's is seldom wider.
pub fn text_width(text: &str, size: f64) -> f64 {
    register_fonts();
    font(size * 8.0, false)
        .layout_box(text)
        .map_or(0.6 * size * text.chars().count() as f64, |((left, _), (right, _))| f64::from(right - left) / 8.0)
}

/// The text, shortened to its ends with an ellipsis between them if it is wider than `width`.
pub fn shortened(text: &str, size: f64, width: f64) -> String {
    let characters: Vec<char> = text.chars().collect();
    let with = |kept: usize| -> String {
        let (head, tail) = (kept.div_ceil(2), kept / 2);
        characters[..head].iter().chain(&['…']).chain(&characters[characters.len() - tail..]).collect()
    };
    if text_width(text, size) <= width {
        return text.to_owned();
    }
    (0..characters.len()).rev().map(with).find(|text| text_width(text, size) <= width).unwrap_or_default()
}

fn register_fonts() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        for (style, bytes) in [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())] {
            register_font(FONT, style, bytes).ok().expect("DejaVu is a font");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_keep_both_ends() {
        assert_eq!(shortened("short", 12.0, 100.0), "short");
        let text = shortened("results/a-very-long-name-of-a-run-file-epoch-12.h5", 12.0, 120.0);
        assert!(text.starts_with("results") && text.ends_with(".h5") && text_width(&text, 12.0) <= 120.0, "{text}");
        assert_eq!(shortened("x", 12.0, 0.0), "");
    }
}

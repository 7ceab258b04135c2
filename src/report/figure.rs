//! Contents of a plot, before anything is drawn.

use crate::units::fitting_unit;

/// Number of colors for series.
pub const COLORS: usize = 8;

/// A grid of one or more panels with a title and a note.
#[derive(Debug, Clone)]
pub struct Figure {
    /// File name without extension.
    pub name: String,
    /// Title above the panels.
    pub title: String,
    /// Note below the figure in the HTML page; may be empty.
    pub note: String,
    /// Panels by rows: left to right, top to bottom.
    pub panels: Vec<Panel>,
    /// Number of panels per row.
    pub columns: usize,
}

/// One plot.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Panel {
    Lines(Lines),
    Bars(Bars),
    Histogram(Histogram),
    Timeline(Timeline),
}

/// Layout of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Linear from the least to the greatest value.
    Linear,
    /// Linear from zero.
    Zero,
    /// Logarithmic with a tick at each value of the data: 1, 2, 4 ranks.
    Values,
    /// Logarithmic, with ticks at 1, 2 and 5 times powers of ten.
    Log,
    /// Logarithmic where the values span more than a factor of 30, else linear from zero.
    Auto,
}

/// Name, unit and layout of an axis.
#[derive(Debug, Clone)]
pub struct Axis {
    /// Axis title without the unit.
    pub label: String,
    /// Unit of the values as in the run file; the axis shows a multiple that fits them.
    pub units: String,
    /// Linear or logarithmic layout.
    pub scale: Scale,
}

impl Axis {
    /// An axis with this title, unit and layout.
    pub fn new(label: &str, units: &str, scale: Scale) -> Axis {
        Axis { label: label.to_owned(), units: units.to_owned(), scale }
    }
}

/// Drawing style of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A line with a marker at each point.
    Line,
    /// A line alone.
    Plain,
    /// Markers alone.
    Points,
    /// A gray dashed line: the best that could be reached.
    Ideal,
}

/// Points of one curve, with its name and style.
#[derive(Debug, Clone)]
pub struct Series {
    /// Name in the legend; none is shown if it is empty.
    pub label: String,
    /// Line, markers or both.
    pub style: Style,
    /// Index of the color; series with equal colors belong together.
    pub color: usize,
    /// Index of the run file, which picks the marker.
    pub file: usize,
    /// Dashed instead of solid, where colors do not suffice: series beyond [`COLORS`] or, in a comparison, those of later files.
    pub is_dashed: bool,
    /// Points (x, y), all of them finite.
    pub points: Vec<(f64, f64)>,
    /// Known intervals of y, as (x, lower end, upper end), drawn as error bars.
    pub intervals: Vec<(f64, f64, f64)>,
}

impl Series {
    /// A series of the first file; sorts `points` by x and drops those that are not finite.
    pub fn new(label: impl Into<String>, style: Style, color: usize, points: Vec<(f64, f64)>) -> Series {
        let mut points: Vec<_> = points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Series { label: label.into(), style, color, file: 0, is_dashed: color >= COLORS, points, intervals: Vec::new() }
    }

    /// Adds error bars from `(x, lower end, upper end)`; drops those with an end that is not finite.
    pub fn with_intervals(mut self, intervals: Vec<(f64, f64, f64)>) -> Series {
        self.intervals = intervals;
        self.intervals.retain(|(x, low, high)| x.is_finite() && low.is_finite() && high.is_finite() && low <= high);
        self
    }

    /// The interval of y at `x`; `None` if it is not known.
    pub fn interval(&self, x: f64) -> Option<(f64, f64)> {
        self.intervals.iter().find(|(at, ..)| *at == x).map(|(_, low, high)| (*low, *high))
    }
}

/// A plot of series over two axes.
#[derive(Debug, Clone)]
pub struct Lines {
    /// Title above the panel; may be empty.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Series in the order of the legend.
    pub series: Vec<Series>,
}

/// One bar of stacked parts, drawn horizontally.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Name left of the bar.
    pub label: String,
    /// Values, one per part of [`Bars::parts`]; negative and non-finite ones are not drawn.
    pub values: Vec<f64>,
    /// Known interval of the sum, drawn as an error bar.
    pub interval: Option<(f64, f64)>,
}

/// A plot of horizontal bars.
#[derive(Debug, Clone)]
pub struct Bars {
    /// Title above the panel; may be empty.
    pub title: String,
    /// Axis along the bars.
    pub x: Axis,
    /// Names of the stacked parts. A single part needs no legend.
    pub parts: Vec<String>,
    /// Bars from top to bottom.
    pub bars: Vec<Bar>,
}

/// Spans of one step over time.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// Title above the panel.
    pub title: String,
    /// Time axis.
    pub x: Axis,
    /// Names of the parts, in the order of the legend.
    pub parts: Vec<String>,
    /// Ranks from top to bottom.
    pub ranks: Vec<Rank>,
}

/// The spans of one rank: begin, end and name of the part; of spans that overlap, the later ones are drawn over the earlier ones.
#[derive(Debug, Clone)]
pub struct Rank {
    /// Name left of the row.
    pub label: String,
    /// What it computes or waits for.
    pub compute: Vec<(f64, f64, String)>,
    /// Collectives of the rank.
    pub communication: Vec<(f64, f64, String)>,
}

impl Rank {
    /// A rank without spans.
    pub fn new(label: String) -> Rank {
        Rank { label, compute: Vec::new(), communication: Vec::new() }
    }

    /// All spans.
    pub fn spans(&self) -> impl Iterator<Item = &(f64, f64, String)> {
        self.compute.iter().chain(&self.communication)
    }
}

/// The distribution of one tensor.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// Name of the tensor.
    pub title: String,
    /// Lower edge of the first bin and upper edge of the last one.
    pub edges: (f64, f64),
    /// Numbers of values, one per bin.
    pub counts: Vec<f64>,
    /// Mean, drawn as a mark.
    pub mean: f64,
    /// Mean ± 3 standard deviations, cut at the extremes, drawn as marks.
    pub sigma3: (f64, f64),
}

impl Figure {
    /// A figure with the panels that show anything, at most two per row.
    pub fn new(name: &str, title: impl Into<String>, panels: Vec<Panel>) -> Figure {
        let panels: Vec<Panel> = panels.into_iter().filter(|panel| !panel.is_empty()).collect();
        let columns = panels.len().clamp(1, 2);
        Figure { name: name.to_owned(), title: title.into(), note: String::new(), panels, columns }
    }

    /// Sets the note.
    pub fn with_note(mut self, note: &str) -> Figure {
        self.note = note.to_owned();
        self
    }

    /// What the figure shows, in words: the note and the contents of each panel.
    pub fn describe(&self) -> String {
        let panels = self.panels.iter().map(Panel::describe);
        let texts = std::iter::once(self.note.clone()).chain(panels).filter(|text| !text.is_empty());
        texts.collect::<Vec<_>>().join(" ")
    }

    /// The figure without the panels that would show one dot per series, if any panel is left, and those in words.
    pub fn without_dots(&self) -> (Option<Figure>, Vec<String>) {
        let words = self.panels.iter().filter_map(Panel::dots).collect();
        let panels: Vec<Panel> = self.panels.iter().filter(|panel| panel.dots().is_none()).cloned().collect();
        let columns = self.columns.min(panels.len().max(1));
        ((!panels.is_empty()).then(|| Figure { panels, columns, ..self.clone() }), words)
    }

    /// Whether the figure has no panel.
    pub fn is_empty(&self) -> bool {
        self.panels.is_empty()
    }
}

impl Panel {
    /// Whether the panel has nothing to draw.
    pub fn is_empty(&self) -> bool {
        match self {
            Panel::Lines(lines) => {
                !lines.series.iter().any(|series| series.style != Style::Ideal && !series.points.is_empty())
            }
            Panel::Timeline(timeline) => timeline.ranks.iter().all(|rank| rank.spans().next().is_none()),
            Panel::Bars(bars) => !bars.bars.iter().flat_map(|bar| &bar.values).any(|value| *value > 0.0),
            Panel::Histogram(histogram) => {
                let (lower, upper) = histogram.edges;
                !(lower.is_finite() && upper.is_finite() && lower < upper && histogram.counts.iter().any(|c| *c > 0.0))
            }
        }
    }

    /// The values in words, if the panel has lines of one point each, all at the same place: no line can be seen.
    fn dots(&self) -> Option<String> {
        let Panel::Lines(lines) = self else { return None };
        let measured: Vec<&Series> =
            lines.series.iter().filter(|series| series.style != Style::Ideal && !series.points.is_empty()).collect();
        let (x, _) = measured.first()?.points[0];
        if !measured.iter().all(|series| matches!(series.points[..], [(at, _)] if at == x)) {
            return None;
        }
        let value = |series: &&Series| {
            let value = axis_value(&lines.y, series.points[0].1);
            if series.label.is_empty() { value } else { format!("{} {value}", series.label) }
        };
        let values: Vec<String> = measured.iter().map(value).collect();
        let title = if lines.title.is_empty() { &lines.y.label } else { &lines.title };
        let place = format!("{} {}", lines.x.label, axis_value(&lines.x, x));
        Some(format!("{title} at {place}, the only one measured: {}", values.join(", ")))
    }

    /// The contents in one sentence.
    fn describe(&self) -> String {
        let titled = |text: String| if self.title().is_empty() { text } else { format!("{}: {text}", self.title()) };
        titled(match self {
            Panel::Lines(lines) => {
                let names: Vec<&str> =
                    lines.series.iter().map(|s| s.label.as_str()).filter(|s| !s.is_empty()).collect();
                let of = if names.is_empty() { String::new() } else { format!(", {}", names.join(", ")) };
                format!("{} against {}{of}.", lines.y.label, lines.x.label)
            }
            Panel::Bars(bars) => {
                let names: Vec<&str> = bars.bars.iter().map(|bar| bar.label.as_str()).collect();
                format!("bars of {} by {}, for {}.", bars.x.label, bars.parts.join(", "), names.join(", "))
            }
            Panel::Timeline(timeline) => format!("spans over {}, {} ranks.", timeline.x.label, timeline.ranks.len()),
            Panel::Histogram(histogram) => format!("histogram of {} bins.", histogram.counts.len()),
        })
    }

    /// Title above the panel; panels with equal titles are joined when files are compared.
    pub fn title(&self) -> &str {
        match self {
            Panel::Lines(lines) => &lines.title,
            Panel::Bars(bars) => &bars.title,
            Panel::Timeline(timeline) => &timeline.title,
            Panel::Histogram(histogram) => &histogram.title,
        }
    }
}

/// A value of an axis with its unit: `1.25 ms`, `38.69 %`, `3`.
fn axis_value(axis: &Axis, value: f64) -> String {
    let (factor, unit) = fitting_unit(&axis.units, value.abs());
    let number = value * factor;
    let text = if number.fract() == 0.0 { number.to_string() } else { format!("{number:.*}", digits(number)) };
    if unit.is_empty() { text } else { format!("{text} {unit}") }
}

/// Decimals that show four digits of `number`.
fn digits(number: f64) -> usize {
    (3.0 - number.abs().log10().floor()).clamp(0.0, 6.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_of_one_dot_is_its_value_in_words() {
        let lines = |title: &str, points: &[f64]| {
            let points = points.iter().enumerate().map(|(x, y)| (x as f64, *y)).collect();
            let series =
                vec![Series::new("train", Style::Line, 0, points), Series::new("test", Style::Line, 1, vec![])];
            let (x, y) = (Axis::new("epoch", "1", Scale::Linear), Axis::new(title, "percent", Scale::Linear));
            Panel::Lines(Lines { title: title.into(), x, y, series })
        };
        let (left, words) = Figure::new("f", "f", vec![lines("a", &[38.6875]), lines("b", &[1.0, 2.0])]).without_dots();
        assert_eq!(words, ["a at epoch 0, the only one measured: train 38.69 %"]);
        assert_eq!(left.map(|figure| (figure.panels.len(), figure.columns)), Some((1, 1)));
        assert!(Figure::new("f", "f", vec![lines("a", &[0.5])]).without_dots().0.is_none());
    }
}

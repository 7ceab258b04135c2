//! What a plot shows, before anything is drawn.

/// So many colours a plot has.
pub const COLORS: usize = 8;

/// One or more panels in a grid.
#[derive(Debug, Clone)]
pub struct Figure {
    /// File name without extension.
    pub name: String,
    /// Above it.
    pub title: String,
    /// Below it in the page; may be empty.
    pub note: String,
    /// Left to right, top down.
    pub panels: Vec<Panel>,
    /// Panels side by side.
    pub columns: usize,
}

/// One plot.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Panel {
    Lines(Lines),
    Bars(Bars),
    Histogram(Histogram),
}

/// How an axis is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From the least to the greatest value.
    Linear,
    /// Linear from zero.
    Zero,
    /// Logarithmic with a tick at each value of the data: 1, 2, 4 ranks.
    Values,
    /// Logarithmic.
    Log,
    /// Logarithmic where the values span more than a factor of 30, else linear from zero.
    Auto,
}

/// An axis.
#[derive(Debug, Clone)]
pub struct Axis {
    /// Without unit.
    pub label: String,
    /// As in the run file; the axis shows a fitting one.
    pub units: String,
    /// Linear or not.
    pub scale: Scale,
}

impl Axis {
    /// Label, units, scale.
    pub fn new(label: &str, units: &str, scale: Scale) -> Axis {
        Axis { label: label.to_owned(), units: units.to_owned(), scale }
    }
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A line with a marker at each point.
    Line,
    /// A line alone.
    Plain,
    /// Markers alone.
    Points,
    /// Grey and dashed: what could be reached at best.
    Ideal,
}

/// Points under one name.
#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend.
    pub label: String,
    /// Line, markers or both.
    pub style: Style,
    /// Number of its colour; series of one colour belong together.
    pub color: usize,
    /// Number of its file: another marker.
    pub file: usize,
    /// Where there are more series than colours: those beyond, or, in a comparison, those of the other files.
    pub is_dashed: bool,
    /// (x, y); those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// Of the first file, sorted along x.
    pub fn new(label: impl Into<String>, style: Style, color: usize, points: Vec<(f64, f64)>) -> Series {
        let mut points: Vec<_> = points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Series { label: label.into(), style, color, file: 0, is_dashed: color >= COLORS, points }
    }
}

/// Series over two axes.
#[derive(Debug, Clone)]
pub struct Lines {
    /// Above the panel; may be empty.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// In the order of the legend.
    pub series: Vec<Series>,
}

/// One bar of stacked parts.
#[derive(Debug, Clone)]
pub struct Bar {
    /// On its left.
    pub label: String,
    /// One a part; what is not finite or negative is not drawn.
    pub values: Vec<f64>,
}

/// Horizontal bars.
#[derive(Debug, Clone)]
pub struct Bars {
    /// Above the panel; may be empty.
    pub title: String,
    /// Along the bars.
    pub x: Axis,
    /// What a bar consists of. A single part needs no legend.
    pub parts: Vec<String>,
    /// Top down.
    pub bars: Vec<Bar>,
}

/// The distribution of one tensor.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// The tensor.
    pub title: String,
    /// Lower edge of the first bin and upper edge of the last one.
    pub edges: (f64, f64),
    /// A bin each.
    pub counts: Vec<f64>,
    /// Marked.
    pub mean: f64,
    /// Marked: mean ± 3 standard deviations, cut at the extremes.
    pub sigma3: (f64, f64),
}

impl Figure {
    /// Panels side by side, two at most.
    pub fn new(name: &str, title: impl Into<String>, panels: Vec<Panel>) -> Figure {
        let panels: Vec<Panel> = panels.into_iter().filter(|panel| !panel.is_empty()).collect();
        let columns = panels.len().clamp(1, 2);
        Figure { name: name.to_owned(), title: title.into(), note: String::new(), panels, columns }
    }

    /// The same with a note.
    pub fn with_note(mut self, note: &str) -> Figure {
        self.note = note.to_owned();
        self
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.panels.is_empty()
    }
}

impl Panel {
    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        match self {
            Panel::Lines(lines) => {
                !lines.series.iter().any(|series| series.style != Style::Ideal && !series.points.is_empty())
            }
            Panel::Bars(bars) => !bars.bars.iter().flat_map(|bar| &bar.values).any(|value| *value > 0.0),
            Panel::Histogram(histogram) => {
                let (lower, upper) = histogram.edges;
                !(lower.is_finite() && upper.is_finite() && lower < upper && histogram.counts.iter().any(|c| *c > 0.0))
            }
        }
    }

    /// Above it; panels of several files that have the same are one.
    pub fn title(&self) -> &str {
        match self {
            Panel::Lines(lines) => &lines.title,
            Panel::Bars(bars) => &bars.title,
            Panel::Histogram(histogram) => &histogram.title,
        }
    }
}

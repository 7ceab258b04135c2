//! What a plot shows, before anything is drawn.

/// So many colours a plot has.
const COLORS: usize = 8;

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
    /// Of a comparison with more series than colours: colours then tell the series apart and dashes the files.
    pub is_dashed: bool,
    /// (x, y); those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// Of the first file, sorted along x.
    pub fn new(label: impl Into<String>, style: Style, color: usize, points: Vec<(f64, f64)>) -> Series {
        let mut points: Vec<_> = points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Series { label: label.into(), style, color, file: 0, is_dashed: false, points }
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

    fn title(&self) -> &str {
        match self {
            Panel::Lines(lines) => &lines.title,
            Panel::Bars(bars) => &bars.title,
            Panel::Histogram(histogram) => &histogram.title,
        }
    }
}

/// The same figure of several files, if files are `compared`: series and bars side by side in one; histograms stay
/// figures of their own.
pub fn join(parts: Vec<(&str, Figure)>, compared: bool) -> Vec<Figure> {
    if !compared {
        return parts.into_iter().map(|(_, figure)| figure).collect();
    }
    let mut joined: Vec<Figure> = Vec::new();
    let names: Vec<Figure> = parts.iter().map(|(_, figure)| figure.clone()).collect();
    for (file, (label, mut figure)) in parts.into_iter().enumerate() {
        if figure.panels.iter().any(|panel| matches!(panel, Panel::Histogram(_))) {
            figure.title = format!("{}: {label}", figure.title);
            figure.name = format!("{}-{}", figure.name, file + 1);
            joined.push(figure);
            continue;
        }
        figure.panels.iter_mut().for_each(|panel| mark(panel, label, file));
        match joined.first_mut() {
            Some(first) => figure.panels.into_iter().for_each(|panel| merge(first, panel)),
            None => joined.push(figure),
        }
    }
    if let Some(Figure { panels, .. }) = joined.first_mut() {
        for panel in panels {
            if let Panel::Lines(lines) = panel {
                share_colors(lines, &names);
            }
        }
    }
    joined
}

/// Where there are more series than colours, gives those of the same name in their own files the same colour.
fn share_colors(lines: &mut Lines, names: &[Figure]) {
    let measured = || lines.series.iter().filter(|series| series.style != Style::Ideal);
    if measured().map(|series| series.color + 1).max().unwrap_or(0) <= COLORS {
        return;
    }
    let mut known: Vec<String> = Vec::new();
    let mut offset = 0;
    for (file, figure) in names.iter().enumerate() {
        let same = figure.panels.iter().find(|panel| panel.title() == lines.title);
        let Some(Panel::Lines(own)) = same else { continue };
        let own: Vec<&Series> = own.series.iter().filter(|series| series.style != Style::Ideal).collect();
        let colors = own.iter().map(|series| series.color + 1).max().unwrap_or(0);
        let mut shared = vec![0; colors];
        for (color, shared) in shared.iter_mut().enumerate() {
            let label = own.iter().find(|series| series.color == color).map_or("", |series| series.label.as_str());
            *shared = known.iter().position(|name| name == label).unwrap_or_else(|| {
                known.push(label.to_owned());
                known.len() - 1
            });
        }
        for series in lines.series.iter_mut().filter(|s| s.style != Style::Ideal && s.file == file) {
            series.color = series.color.checked_sub(offset).and_then(|own| shared.get(own).copied()).unwrap_or(0);
            series.is_dashed = file > 0;
        }
        offset += colors;
    }
}

fn mark(panel: &mut Panel, label: &str, file: usize) {
    let with_file = |own: &str| if own.is_empty() { label.to_owned() } else { format!("{label}: {own}") };
    match panel {
        Panel::Lines(lines) => {
            for series in lines.series.iter_mut().filter(|series| series.style != Style::Ideal) {
                (series.label, series.file) = (with_file(&series.label), file);
            }
        }
        Panel::Bars(bars) => bars.bars.iter_mut().for_each(|bar| bar.label = with_file(&bar.label)),
        Panel::Histogram(_) => {}
    }
}

fn merge(figure: &mut Figure, panel: Panel) {
    let Some(place) = figure.panels.iter().position(|known| known.title() == panel.title()) else {
        figure.panels.push(panel);
        figure.columns = figure.panels.len().clamp(1, 2);
        return;
    };
    match (&mut figure.panels[place], panel) {
        (Panel::Lines(known), Panel::Lines(lines)) => {
            let ideal = |series: &Series| series.style == Style::Ideal;
            let offset = known.series.iter().filter(|s| !ideal(s)).map(|series| series.color + 1).max().unwrap_or(0);
            for mut series in lines.series {
                if !ideal(&series) {
                    series.color += offset;
                    known.series.push(series);
                } else if let Some(line) = known.series.iter_mut().find(|line| ideal(line)) {
                    // The ideal line of the file that reaches further.
                    let reach = |series: &Series| series.points.last().map_or(0.0, |(x, _)| *x);
                    if reach(&series) > reach(line) {
                        *line = series;
                    }
                }
            }
        }
        (Panel::Bars(known), Panel::Bars(bars)) => {
            for part in &bars.parts {
                if !known.parts.contains(part) {
                    known.parts.push(part.clone());
                }
            }
            let place = |part: &String| bars.parts.iter().position(|own| own == part);
            let places: Vec<Option<usize>> = known.parts.iter().map(place).collect();
            for bar in &bars.bars {
                let values = places.iter().map(|place| place.and_then(|p| bar.values.get(p).copied()).unwrap_or(0.0));
                known.bars.push(Bar { label: bar.label.clone(), values: values.collect() });
            }
        }
        (_, panel) => figure.panels.push(panel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_several_files_become_one_with_a_series_each() {
        let lines = |reach: f64| {
            let series = vec![
                Series::new("batch 8", Style::Line, 0, vec![(1.0, 1.0), (reach, f64::NAN), (2.0, 1.5)]),
                Series::new("ideal", Style::Ideal, 0, vec![(1.0, 1.0), (reach, reach)]),
            ];
            let axis = || Axis::new("ranks", "1", Scale::Linear);
            Figure::new("f", "f", vec![Panel::Lines(Lines { title: String::new(), x: axis(), y: axis(), series })])
        };
        let joined = join(vec![("one", lines(2.0)), ("two", lines(4.0))], true);
        assert_eq!(joined.len(), 1);
        let Panel::Lines(lines) = &joined[0].panels[0] else { panic!("lines") };
        let labels: Vec<&str> = lines.series.iter().map(|series| series.label.as_str()).collect();
        assert_eq!(labels, ["one: batch 8", "ideal", "two: batch 8"]);
        assert_eq!(lines.series[1].points[1], (4.0, 4.0));
        assert_eq!((lines.series[2].color, lines.series[2].file, lines.series[2].points.len()), (1, 1, 2));
    }

    #[test]
    fn with_more_series_than_colours_a_colour_is_a_series_and_a_dash_a_file() {
        let lines = |batches: &[i64]| {
            let labels = batches.iter().enumerate();
            let series = labels
                .map(|(color, batch)| Series::new(format!("batch {batch}"), Style::Line, color, vec![(1.0, 1.0)]));
            let axis = || Axis::new("ranks", "1", Scale::Linear);
            let panel = Lines { title: String::new(), x: axis(), y: axis(), series: series.collect() };
            Figure::new("f", "f", vec![Panel::Lines(panel)])
        };
        let joined = join(vec![("one", lines(&[1, 2, 4, 8, 16])), ("two", lines(&[2, 4, 8, 16, 32]))], true);
        let Panel::Lines(lines) = &joined[0].panels[0] else { panic!("lines") };
        let colors: Vec<(usize, bool)> = lines.series.iter().map(|series| (series.color, series.is_dashed)).collect();
        let expected =
            [0, 1, 2, 3, 4].map(|color| (color, false)).into_iter().chain([1, 2, 3, 4, 5].map(|color| (color, true)));
        assert_eq!(colors, expected.collect::<Vec<_>>());
    }
}

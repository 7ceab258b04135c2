//! Comparison of run files: the tables of several files joined with a column `file`, their plots with one series per file.

use super::figure::{Bar, COLORS, Figure, Lines, Panel, Series, Style};
use crate::table::{Cell, Heading, Sheet};

/// Joins the tables of several files into one, with the file in the first column if files are `compared`.
///
/// Columns are matched by name; cells of a column that a file lacks stay empty.
pub fn sheets(mut parts: Vec<(&str, Sheet)>, compared: bool) -> Sheet {
    if !compared && !parts.is_empty() {
        return parts.swap_remove(0).1;
    }
    let Some((_, first)) = parts.first() else { return Sheet::new("", "") };
    let columns = vec![Heading::new("file", "1", "run file")];
    let mut joined = Sheet { columns, rows: Vec::new(), keys: first.keys + 1, ..first.clone() };
    for (_, sheet) in &parts {
        for heading in &sheet.columns {
            if !joined.columns[1..].iter().any(|known| known.name == heading.name) {
                joined.columns.push(heading.clone());
            }
        }
    }
    joined.note = shared_note(&parts.iter().map(|(label, sheet)| (*label, sheet.note.as_str())).collect::<Vec<_>>());
    for (label, sheet) in &parts {
        let place = |name: &str| sheet.columns.iter().position(|heading| heading.name == name);
        let places: Vec<Option<usize>> = joined.columns[1..].iter().map(|heading| place(&heading.name)).collect();
        for row in &sheet.rows {
            let cells =
                places.iter().map(|place| place.and_then(|place| row.get(place).cloned()).unwrap_or(Cell::Empty));
            joined.rows.push(std::iter::once(Cell::from(*label)).chain(cells).collect());
        }
    }
    joined
}

/// The note that all files share, or every file's note after its label where they differ.
fn shared_note(notes: &[(&str, &str)]) -> String {
    match notes {
        [(_, first), rest @ ..] if rest.iter().all(|(_, note)| note == first) => (*first).to_owned(),
        _ => {
            let notes = notes.iter().filter(|(_, note)| !note.is_empty());
            notes.map(|(label, note)| format!("{label}: {note}")).collect::<Vec<_>>().join("; ")
        }
    }
}

/// Joins the figures of several files, if files are `compared`: series and bars of all files in one figure; histograms stay
/// one figure per file.
pub fn figures(parts: Vec<(&str, Figure)>, compared: bool) -> Vec<Figure> {
    if !compared {
        return parts.into_iter().map(|(_, figure)| figure).collect();
    }
    let mut joined: Vec<Figure> = Vec::new();
    let notes: Vec<(&str, &str)> = parts.iter().map(|(label, figure)| (*label, figure.note.as_str())).collect();
    let note = shared_note(&notes);
    let names: Vec<Figure> = parts.iter().map(|(_, figure)| figure.clone()).collect();
    for (file, (label, mut figure)) in parts.into_iter().enumerate() {
        if figure.panels.iter().any(|panel| matches!(panel, Panel::Histogram(_) | Panel::Timeline(_))) {
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
    if let Some(Figure { panels, note: shared, .. }) = joined.first_mut() {
        *shared = note;
        for panel in panels {
            if let Panel::Lines(lines) = panel {
                share_colors(lines, &names);
            }
        }
    }
    joined
}

/// Gives series with equal names in different files the same color if the plot has more series than colors.
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
        Panel::Timeline(timeline) => timeline.title = with_file(&timeline.title),
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
                    // Keeps the longer of the two ideal lines.
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
                known.bars.push(Bar { values: values.collect(), ..bar.clone() });
            }
        }
        (_, panel) => figure.panels.push(panel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::figure::{Axis, Scale};

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
        let joined = figures(vec![("one", lines(2.0)), ("two", lines(4.0))], true);
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
        let joined = figures(vec![("one", lines(&[1, 2, 4, 8, 16])), ("two", lines(&[2, 4, 8, 16, 32]))], true);
        let Panel::Lines(lines) = &joined[0].panels[0] else { panic!("lines") };
        let colors: Vec<(usize, bool)> = lines.series.iter().map(|series| (series.color, series.is_dashed)).collect();
        let expected =
            [0, 1, 2, 3, 4].map(|color| (color, false)).into_iter().chain([1, 2, 3, 4, 5].map(|color| (color, true)));
        assert_eq!(colors, expected.collect::<Vec<_>>());
    }

    #[test]
    fn tables_of_several_files_are_matched_by_column_name() {
        let sheet = |names: &[&str]| Sheet {
            columns: names.iter().map(|name| Heading::new(name, "1", "")).collect(),
            rows: vec![names.iter().map(|name| Cell::from(*name)).collect()],
            ..Sheet::new("t", "t")
        };
        let joined = sheets(vec![("one", sheet(&["a", "b"])), ("two", sheet(&["b", "c"]))], true);
        let names: Vec<&str> = joined.columns.iter().map(|heading| heading.name.as_str()).collect();
        assert_eq!(names, ["file", "a", "b", "c"]);
        assert_eq!(joined.rows[1], ["two".into(), Cell::Empty, "b".into(), "c".into()]);
        assert_eq!(sheets(vec![("one", sheet(&["a"]))], false).columns.len(), 1);
    }
}

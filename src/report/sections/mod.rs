//! Sections of the report, made from the tables of run files; one file per kind of measurement.

mod allreduce;
mod cases;
mod comm;
mod convolutions;
mod environment;
mod epochs;
mod gpus;
mod levels;
mod prediction;
mod quantization;
mod ranks;
mod reads;
mod sampling;
mod scaling;
mod scaling_plots;
mod slow;
mod steps;
mod study;
mod timeline;

pub use cases::Cases;
pub use environment::{details, peaks};
pub use steps::{groups, steps_as_spans};

use super::compare;
use super::source::Source;
use crate::error::Result;
use crate::report::section::Section;
use crate::table::Sheet;

/// Makes a section of one run file; `None` if the file has none of its tables.
type Make = fn(&Source) -> Result<Option<Section>>;

const SECTIONS: [Make; 15] = [
    scaling::section,
    prediction::section,
    allreduce::section,
    levels::section,
    study::section,
    epochs::section,
    ranks::section,
    sampling::section,
    steps::section,
    timeline::section,
    reads::section,
    comm::section,
    gpus::section,
    convolutions::section,
    quantization::section,
];

/// Makes the tables of slow ranks and hosts of one file.
///
/// # Errors
/// A table is damaged.
pub fn slow(source: &Source) -> Result<Vec<Sheet>> {
    steps::slow_sheets(source)
}

/// Makes all sections that the files have tables for; sections of the same kind are joined.
///
/// # Errors
/// A file has nothing to report, or one of its tables is damaged.
pub fn all(sources: &[Source]) -> Result<Vec<Section>> {
    let mut found = vec![false; sources.len()];
    let mut sections = vec![environment::section(sources)];
    for make in SECTIONS {
        let mut parts = Vec::new();
        for (source, found) in sources.iter().zip(&mut found) {
            if let Some(section) = make(source)? {
                *found = true;
                parts.push((source.label.as_str(), section));
            }
        }
        // With several files, even a section that only one of them has is labeled with that file.
        sections.extend(join(parts, sources.len() > 1));
    }
    match found.iter().position(|found| !found) {
        Some(index) => Err(sources[index].has_nothing()),
        None => {
            sections.retain(|section| !section.sheets.is_empty() || !section.figures.is_empty());
            Ok(sections)
        }
    }
}

fn join(parts: Vec<(&str, Section)>, compared: bool) -> Option<Section> {
    let title = parts.first()?.1.title.clone();
    let (mut sheets, mut figures) = (Vec::new(), Vec::new());
    for (label, section) in parts {
        section.sheets.into_iter().for_each(|sheet| group(&mut sheets, label, sheet, |sheet| &sheet.name));
        section.figures.into_iter().for_each(|figure| group(&mut figures, label, figure, |figure| &figure.name));
    }
    let sheets = sheets.into_iter().map(|group| compare::sheets(group, compared)).collect();
    let figures = figures.into_iter().flat_map(|group| compare::figures(group, compared)).collect();
    Some(Section { title, sheets, figures })
}

/// Adds `item` to the group of items with the same name, one group per table or figure over all files.
fn group<'a, T>(groups: &mut Vec<Vec<(&'a str, T)>>, label: &'a str, item: T, name: fn(&T) -> &str) {
    match groups.iter_mut().find(|group| name(&group[0].1) == name(&item)) {
        Some(group) => group.push((label, item)),
        None => groups.push(vec![(label, item)]),
    }
}

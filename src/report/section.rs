//! Tables and plots of one kind of measurement.

use super::figure::Figure;
use crate::table::Sheet;

/// Tables and plots of one kind of measurement.
#[derive(Debug, Clone)]
pub struct Section {
    /// Title for readers.
    pub title: String,
    /// Tables, in the order in which they are shown.
    pub sheets: Vec<Sheet>,
    /// Plots, in the order in which they are shown.
    pub figures: Vec<Figure>,
}

impl Section {
    /// A section with this title; tables and plots that show nothing are left out.
    pub fn new(title: &str, sheets: Vec<Sheet>, figures: Vec<Figure>) -> Section {
        let sheets = sheets.into_iter().filter(|sheet| !sheet.rows.is_empty() && !sheet.columns.is_empty()).collect();
        let figures = figures.into_iter().filter(|figure| !figure.is_empty()).collect();
        Section { title: title.to_owned(), sheets, figures }
    }
}

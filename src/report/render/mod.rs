//! Sheets and sections as CSV, JSON, Markdown and HTML. `table` formats text for a terminal.

mod csv;
mod html;
pub mod json;
mod markdown;

pub use self::csv::csv;
pub use html::html;
pub use markdown::{markdown, markdown_sheet};

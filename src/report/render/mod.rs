//! Sheets and sections as CSV, Markdown and HTML. Text for a terminal is made by `table`.

mod csv;
mod html;
mod markdown;

pub use self::csv::csv;
pub use html::html;
pub use markdown::{markdown, markdown_sheet};

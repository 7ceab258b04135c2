//! Sheets and sections as text: for a terminal, as CSV, Markdown and HTML.

mod csv;
mod html;
mod markdown;
mod terminal;

pub use self::csv::csv;
pub use html::html;
pub use markdown::{markdown, markdown_sheet};
pub use terminal::{terminal, terminal_sheet};

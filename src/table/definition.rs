//! Name, unit and meaning of one figure.

/// One figure of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Column in files and tables.
    pub name: &'static str,
    /// Unit in files, as in UDUNITS; `1` for a plain number.
    pub units: &'static str,
    /// What it is, or its formula in terms of other columns.
    pub text: &'static str,
    /// When there is no such figure: then it is NaN in files and "-" in tables. Empty: it always exists.
    pub absent: &'static str,
}

/// What stands in a `long_name` between text and reason.
const NAN: &str = "; NaN: ";

impl Definition {
    /// A figure that always exists.
    pub const fn new(name: &'static str, units: &'static str, text: &'static str) -> Definition {
        Definition { name, units, text, absent: "" }
    }

    /// The figure with the condition under which it does not exist.
    pub const fn unless(self, absent: &'static str) -> Definition {
        Definition { absent, ..self }
    }

    /// Text and, after `; NaN: `, the reason for which the figure may be missing.
    pub fn long_name(&self) -> String {
        self.of(self.text)
    }

    /// A `long_name` with more than the definition's own text, such as that of a part of the step before its mean's.
    fn of(&self, text: &str) -> String {
        if self.absent.is_empty() { text.to_owned() } else { format!("{text}{NAN}{}", self.absent) }
    }

    /// [`long_name`](Self::long_name) of this statistic of `part`.
    pub fn of_part(&self, part: &Definition) -> String {
        self.of(&format!("{}: {}", part.text, self.text))
    }
}

/// The reason that a `long_name` gives for a missing figure; `None` if it gives none.
pub fn reason(long_name: &str) -> Option<&str> {
    long_name.split_once(NAN).map(|(_, reason)| reason)
}

/// A `long_name` without the reason for missing figures.
pub fn text(long_name: &str) -> &str {
    long_name.split_once(NAN).map_or(long_name, |(text, _)| text)
}

//! Name, unit and meaning of one figure.

/// One figure of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Name of the column in files and tables.
    pub name: &'static str,
    /// Unit in files, as in UDUNITS; `1` for a plain number.
    pub units: &'static str,
    /// Meaning, or formula in terms of other columns.
    pub text: &'static str,
    /// Condition under which the figure does not exist (NaN in files, "-" in tables); empty if it always exists.
    pub absent: &'static str,
}

/// Separator between text and reason in a `long_name`.
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

    /// Appends the reason to `text`, which may hold more than the definition's own text.
    fn of(&self, text: &str) -> String {
        if self.absent.is_empty() { text.to_owned() } else { format!("{text}{NAN}{}", self.absent) }
    }

    /// [`long_name`](Self::long_name) of this statistic over a part of the step.
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

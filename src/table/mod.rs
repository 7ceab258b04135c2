//! Tables of figures: named columns with units, listed once for writing, reading, showing and documenting them.
//!
//! A [`Schema`] lists the columns of a program's row type. It turns rows into a [`Table`], the form that `store` writes and
//! reads, and a table back into rows. A [`Sheet`] is the form for people, shown in a terminal or written as CSV or Markdown.
//! Neither files nor ranks are known here.

mod definition;
mod frame;
mod schema;
mod sheet;
mod terminal;

pub use definition::{Definition, reason, text};
pub use frame::Frame;
pub use schema::Schema;
pub use sheet::{Cell, Heading, Sheet, Shown, printable};
pub use terminal::{terminal, terminal_width};

/// The values of a column, in row-major order if it has several dimensions.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the types are their own documentation
pub enum Values {
    F64(Vec<f64>),
    F32(Vec<f32>),
    I64(Vec<i64>),
    Text(Vec<String>),
}

impl Values {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Values::F64(values) => values.len(),
            Values::F32(values) => values.len(),
            Values::I64(values) => values.len(),
            Values::Text(values) => values.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values at `places`.
    ///
    /// # Panics
    /// A place is beyond the end.
    pub fn select(&self, places: &[usize]) -> Values {
        fn at<T: Clone>(values: &[T], places: &[usize]) -> Vec<T> {
            places.iter().map(|place| values[*place].clone()).collect()
        }
        match self {
            Values::F64(values) => Values::F64(at(values, places)),
            Values::F32(values) => Values::F32(at(values, places)),
            Values::I64(values) => Values::I64(at(values, places)),
            Values::Text(values) => Values::Text(at(values, places)),
        }
    }

    /// Every value as a number; `None` for text.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match self {
            Values::Text(_) => None,
            values => Some((0..values.len()).map(|place| values.number(place)).collect()),
        }
    }

    /// The number at `place`; NaN for text and beyond the end.
    pub fn number(&self, place: usize) -> f64 {
        match self {
            Values::F64(values) => values.get(place).copied().unwrap_or(f64::NAN),
            Values::F32(values) => values.get(place).map_or(f64::NAN, |value| f64::from(*value)),
            Values::I64(values) => values.get(place).map_or(f64::NAN, |value| *value as f64),
            Values::Text(_) => f64::NAN,
        }
    }

    /// The text at `place`; empty for numbers and beyond the end.
    pub fn text(&self, place: usize) -> &str {
        match self {
            Values::Text(texts) => texts.get(place).map_or("", String::as_str),
            _ => "",
        }
    }
}

/// One dataset of a table: `/epochs/train_loss`.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Name of the dataset.
    pub name: String,
    /// Unit in UDUNITS' spelling: `s`, `B`, `1/s`, `percent`, `1` for a plain number.
    pub units: String,
    /// Meaning in a few words.
    pub long_name: String,
    /// Name and extent of each axis; empty for one value per row along the table's own dimension.
    pub dimensions: Vec<(String, usize)>,
    /// One value per place of the dimensions.
    pub values: Values,
}

impl Column {
    /// A column with one value per row of its table.
    pub fn new(
        name: impl Into<String>,
        units: impl Into<String>,
        long_name: impl Into<String>,
        values: Values,
    ) -> Column {
        Column { name: name.into(), units: units.into(), long_name: long_name.into(), dimensions: Vec::new(), values }
    }

    /// Lays the values over other dimensions: `column.over(&[("layer", 4), ("bin", 64)])` for 256 values.
    pub fn over(mut self, dimensions: &[(&str, usize)]) -> Column {
        self.dimensions = dimensions.iter().map(|(name, extent)| ((*name).to_owned(), *extent)).collect();
        self
    }
}

/// A group of columns that share dimensions.
///
/// A column named as a dimension (`epoch` over `epoch`) is its coordinate; a dimension without one is numbered from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Path of the group, without the first slash.
    pub group: String,
    /// Dimension of all columns that name no other.
    pub dimension: String,
    /// Columns in the order of the file.
    pub columns: Vec<Column>,
    /// Attributes of the group.
    pub attributes: Vec<(String, Attribute)>,
}

impl Table {
    /// A table without attributes.
    pub fn new(group: impl Into<String>, dimension: impl Into<String>, columns: Vec<Column>) -> Table {
        Table { group: group.into(), dimension: dimension.into(), columns, attributes: Vec::new() }
    }

    /// The column called `name`.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Numbers of the column called `name`; empty if there is no such column or it holds text.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        self.column(name).and_then(|column| column.values.numbers()).unwrap_or_default()
    }

    /// Number of values of the longest column with one value per row.
    pub fn len(&self) -> usize {
        let plain = self.columns.iter().filter(|column| self.is_plain(column));
        plain.map(|column| column.values.len()).max().unwrap_or(0)
    }

    /// Whether the table has no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a column has one value per row of this table.
    pub fn is_plain(&self, column: &Column) -> bool {
        let is_axis = |other: &Column| other.dimensions.iter().any(|(axis, _)| *axis == column.name);
        match column.dimensions.as_slice() {
            // A coordinate of another axis has no dimensions either, but one value per place of its axis.
            [] => column.name == self.dimension || !self.columns.iter().any(is_axis),
            [(axis, _)] => *axis == self.dimension,
            _ => false,
        }
    }

    /// Appends the rows of another table with the same columns.
    ///
    /// # Panics
    /// The columns differ in name or type.
    pub fn append(&mut self, other: Table) {
        assert_eq!(self.columns.len(), other.columns.len(), "{}: tables of the same columns", self.group);
        for (own, more) in self.columns.iter_mut().zip(other.columns) {
            assert_eq!(own.name, more.name, "{}: tables of the same columns", self.group);
            match (&mut own.values, more.values) {
                (Values::F64(own), Values::F64(more)) => own.extend(more),
                (Values::F32(own), Values::F32(more)) => own.extend(more),
                (Values::I64(own), Values::I64(more)) => own.extend(more),
                (Values::Text(own), Values::Text(more)) => own.extend(more),
                _ => panic!("{}/{}: a column keeps its type", self.group, own.name),
            }
        }
    }
}

/// A small value attached to a group or dataset. There is no boolean: many readers of HDF5 cannot see one, so it is an integer,
/// 0 or 1.
///
/// Programs that copy a file make lists of one of single values, and single values of lists of one: a value is taken out by a
/// method, which reads both.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Text(String),
    Int(i64),
    Float(f64),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Texts(Vec<String>),
}

impl Attribute {
    /// The one integer that it is.
    pub fn integer(&self) -> Option<i64> {
        match self.integers()? {
            [value] => Some(*value),
            _ => None,
        }
    }

    /// The one number that it is, an integer included.
    pub fn number(&self) -> Option<f64> {
        match (self.floats(), self.integer()) {
            (Some([value]), _) => Some(*value),
            (_, integer) => integer.map(|value| value as f64),
        }
    }

    /// The one text that it is.
    pub fn text(&self) -> Option<&str> {
        match self.texts()? {
            [text] => Some(text),
            _ => None,
        }
    }

    /// The integers that it holds; `None` if it holds something else.
    pub fn integers(&self) -> Option<&[i64]> {
        match self {
            Attribute::Int(value) => Some(std::slice::from_ref(value)),
            Attribute::Ints(values) => Some(values),
            _ => None,
        }
    }

    /// The floating-point numbers that it holds; `None` if it holds something else.
    pub fn floats(&self) -> Option<&[f64]> {
        match self {
            Attribute::Float(value) => Some(std::slice::from_ref(value)),
            Attribute::Floats(values) => Some(values),
            _ => None,
        }
    }

    /// The texts that it holds; `None` if it holds something else.
    pub fn texts(&self) -> Option<&[String]> {
        match self {
            Attribute::Text(text) => Some(std::slice::from_ref(text)),
            Attribute::Texts(texts) => Some(texts),
            _ => None,
        }
    }
}

/// The attribute called `name`.
pub fn attribute<'a>(attributes: &'a [(String, Attribute)], name: &str) -> Option<&'a Attribute> {
    attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_value_and_a_list_of_one_are_the_same() {
        for five in [Attribute::Int(5), Attribute::Ints(vec![5])] {
            assert_eq!((five.integer(), five.integers(), five.number()), (Some(5), Some(&[5][..]), Some(5.0)));
            assert_eq!((five.floats(), five.text()), (None, None));
        }
        for half in [Attribute::Float(0.5), Attribute::Floats(vec![0.5])] {
            assert_eq!((half.number(), half.floats(), half.integer()), (Some(0.5), Some(&[0.5][..]), None));
        }
        for word in [Attribute::Text("a".into()), Attribute::Texts(vec!["a".into()])] {
            assert_eq!((word.text(), word.texts().map(<[_]>::len), word.number()), (Some("a"), Some(1), None));
        }
        for several in [Attribute::Ints(vec![1, 2]), Attribute::Floats(vec![]), Attribute::Texts(vec![])] {
            assert_eq!((several.integer(), several.number(), several.text()), (None, None, None));
        }
    }

    #[test]
    fn rows_of_two_tables_follow_one_another() {
        let table = |values| Table::new("spread", "row", vec![Column::new("step", "1", "step", Values::I64(values))]);
        let mut all = table(vec![1, 2]);
        all.append(table(vec![5]));
        assert_eq!((all.len(), all.numbers("step")), (3, vec![1.0, 2.0, 5.0]));
    }
}

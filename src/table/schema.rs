//! Columns of a table, listed once: name, unit and meaning of each, and how it is read from and written to a row.

use super::{Column, Heading, Table, Values};

/// Columns of a table whose rows are values of `R`, in the order of the file.
///
/// ```
/// use hpml::table::Schema;
///
/// #[derive(Default)]
/// struct Visit { rank: i64, seconds: f64 }
/// let schema = Schema::new("visits", "row")
///     .integer(("rank", "1", "MPI rank"), |row: &Visit| row.rank).put(|row, value| row.rank = value as i64)
///     .float(("seconds", "s", "time of the visit"), |row: &Visit| row.seconds).put(|row, value| row.seconds = value);
/// let table = schema.table(&[Visit { rank: 3, seconds: 0.5 }]);
/// assert_eq!(schema.read(&table)[0].seconds, 0.5);
/// ```
pub struct Schema<R> {
    group: &'static str,
    dimension: &'static str,
    columns: Vec<Spec<R>>,
}

struct Spec<R> {
    heading: Heading,
    get: Get<R>,
    put: Option<Put<R>>,
}

/// Takes the value of a column from a row.
enum Get<R> {
    F64(Box<dyn Fn(&R) -> f64>),
    F32(Box<dyn Fn(&R) -> f32>),
    I64(Box<dyn Fn(&R) -> i64>),
    Text(Box<dyn Fn(&R) -> String>),
}

/// Puts the value of a column into a row.
enum Put<R> {
    Number(Setter<R, f64>),
    Text(Setter<R, str>),
}

/// Sets a field of a row to a value.
type Setter<R, V> = Box<dyn Fn(&mut R, &V)>;

impl<R> Schema<R> {
    /// A table without columns in the group `group`, with `dimension` as the dimension of its rows.
    pub fn new(group: &'static str, dimension: &'static str) -> Schema<R> {
        Schema { group, dimension, columns: Vec::new() }
    }

    /// Adds a float64 column.
    pub fn float(self, heading: impl Into<Heading>, get: impl Fn(&R) -> f64 + 'static) -> Schema<R> {
        self.push(heading, Get::F64(Box::new(get)))
    }

    /// Adds a float32 column.
    pub fn single(self, heading: impl Into<Heading>, get: impl Fn(&R) -> f32 + 'static) -> Schema<R> {
        self.push(heading, Get::F32(Box::new(get)))
    }

    /// Adds a column of whole numbers.
    pub fn integer(self, heading: impl Into<Heading>, get: impl Fn(&R) -> i64 + 'static) -> Schema<R> {
        self.push(heading, Get::I64(Box::new(get)))
    }

    /// Adds a column of counts.
    pub fn count(self, heading: impl Into<Heading>, get: impl Fn(&R) -> usize + 'static) -> Schema<R> {
        self.integer(heading, move |row| get(row) as i64)
    }

    /// Adds a column of texts.
    pub fn text<T: Into<String>>(self, heading: impl Into<Heading>, get: impl Fn(&R) -> T + 'static) -> Schema<R> {
        self.push(heading, Get::Text(Box::new(move |row| get(row).into())))
    }

    /// Sets how [`read`](Self::read) puts a number of the column added last into a row.
    pub fn put(self, put: impl Fn(&mut R, f64) + 'static) -> Schema<R> {
        self.with_put(Put::Number(Box::new(move |row, value| put(row, *value))))
    }

    /// Sets how [`read`](Self::read) puts a text of the column added last into a row.
    pub fn put_text(self, put: impl Fn(&mut R, &str) + 'static) -> Schema<R> {
        self.with_put(Put::Text(Box::new(put)))
    }

    fn push(mut self, heading: impl Into<Heading>, get: Get<R>) -> Schema<R> {
        self.columns.push(Spec { heading: heading.into(), get, put: None });
        self
    }

    fn with_put(mut self, put: Put<R>) -> Schema<R> {
        self.columns.last_mut().expect("a column was added before").put = Some(put);
        self
    }

    /// Makes the table of `rows`.
    pub fn table<'a>(&self, rows: impl IntoIterator<Item = &'a R>) -> Table
    where
        R: 'a,
    {
        let mut values: Vec<Values> = self.columns.iter().map(|column| column.get.none()).collect();
        for row in rows {
            for (values, column) in values.iter_mut().zip(&self.columns) {
                match (values, &column.get) {
                    (Values::F64(values), Get::F64(get)) => values.push(get(row)),
                    (Values::F32(values), Get::F32(get)) => values.push(get(row)),
                    (Values::I64(values), Get::I64(get)) => values.push(get(row)),
                    (Values::Text(values), Get::Text(get)) => values.push(get(row)),
                    _ => unreachable!("the values were made for this column"),
                }
            }
        }
        let column = |(column, values): (&Spec<R>, Values)| {
            let Heading { name, units, long_name } = column.heading.clone();
            Column::new(name, units, long_name, values)
        };
        Table::new(self.group, self.dimension, self.columns.iter().zip(values).map(column).collect())
    }

    /// Reads the rows of a table made by [`table`](Self::table) of this or an earlier version; fields whose column is missing
    /// keep the value of `R::default()`.
    pub fn read(&self, table: &Table) -> Vec<R>
    where
        R: Default,
    {
        let mut rows: Vec<R> = std::iter::repeat_with(R::default).take(table.len()).collect();
        for column in &self.columns {
            let Some(put) = &column.put else { continue };
            let Some(found) = table.column(&column.heading.name) else {
                if let (Put::Number(put), Get::F64(_)) = (put, &column.get) {
                    rows.iter_mut().for_each(|row| put(row, &f64::NAN));
                }
                continue;
            };
            for (place, row) in rows.iter_mut().enumerate().take(found.values.len()) {
                match put {
                    Put::Number(put) => put(row, &found.values.number(place)),
                    Put::Text(put) => put(row, found.values.text(place)),
                }
            }
        }
        rows
    }

    /// Reads the rows of this schema's table among `tables`; empty if it is missing.
    pub fn find(&self, tables: &[Table]) -> Vec<R>
    where
        R: Default,
    {
        tables.iter().find(|table| table.group == self.group).map(|table| self.read(table)).unwrap_or_default()
    }
}

impl<R> Get<R> {
    fn none(&self) -> Values {
        match self {
            Get::F64(_) => Values::F64(Vec::new()),
            Get::F32(_) => Values::F32(Vec::new()),
            Get::I64(_) => Values::I64(Vec::new()),
            Get::Text(_) => Values::Text(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Default, PartialEq)]
    struct Row {
        step: i64,
        seconds: f64,
        kind: String,
    }

    fn schema() -> Schema<Row> {
        Schema::new("rows", "row")
            .integer(("step", "1", "step, from 0"), |row: &Row| row.step)
            .put(|row, value| row.step = value as i64)
            .float(("seconds", "s", "time"), |row: &Row| row.seconds)
            .put(|row, value| row.seconds = value)
            .text(("kind", "1", "kind"), |row: &Row| row.kind.clone())
            .put_text(|row, text| row.kind = text.to_owned())
            .float(("rate", "1/s", "1 / seconds"), |row: &Row| 1.0 / row.seconds)
    }

    #[test]
    fn rows_come_back_and_a_figure_that_an_older_table_lacks_is_nan() {
        let rows = [Row { step: 7, seconds: 0.25, kind: "a".into() }, Row { step: -1, ..Row::default() }];
        let mut table = schema().table(&rows);
        assert_eq!(table.numbers("rate"), [4.0, f64::INFINITY]);
        assert_eq!(schema().read(&table), rows);
        table.columns.retain(|column| column.name != "seconds");
        assert!(schema().read(&table).iter().all(|row| row.seconds.is_nan()));
        table.columns.retain(|column| column.name != "kind");
        assert_eq!(schema().read(&table)[0].kind, "");
        assert_eq!(schema().find(&[]), []);
    }
}

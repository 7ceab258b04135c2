//! One table as CSV (RFC 4180), with the column names of the run file, all digits and no units.

use crate::table::{Cell, Sheet};

/// Formats `sheet` as CSV. NaN is written as `NaN`, which pandas and R read; a cell without a value is empty.
pub fn csv(sheet: &Sheet) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = sheet.columns.iter().map(|heading| heading.name.as_str());
    let rows = sheet.rows.iter().map(|row| row.iter().map(Cell::full));
    let written =
        writer.write_record(header).and_then(|()| rows.into_iter().try_for_each(|row| writer.write_record(row)));
    written.expect("writing to memory, rows of one length");
    String::from_utf8(writer.into_inner().expect("writing to memory")).expect("made of texts")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Heading;

    #[test]
    fn every_digit_is_there_and_odd_texts_are_quoted() {
        let sheet = Sheet {
            columns: ["case", "f64", "f32", "n"].map(|name| Heading::new(name, "1", "")).to_vec(),
            rows: vec![
                vec!["a,\"b\"\nc".into(), Cell::Float(0.1 + 0.2), Cell::Single(0.1), Cell::Int(-3)],
                vec![Cell::Empty, Cell::Float(f64::NAN), Cell::Single(1e-9), Cell::Int(1 << 60)],
            ],
            ..Sheet::new("t", "t")
        };
        let expected =
            "case,f64,f32,n\n\"a,\"\"b\"\"\nc\",0.30000000000000004,0.1,-3\n,NaN,0.000000001,1152921504606846976\n";
        assert_eq!(csv(&sheet), expected);
        assert_eq!(csv(&Sheet::new("t", "t")).trim(), "\"\"");
    }
}

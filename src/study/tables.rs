//! Tables of several trainings joined into one, with variant and seed of the training in front of each row.

use crate::metrics::definitions::{SEED, VARIANT};
use crate::table::{Column, Table, Values};

/// Appends the rows of one training's tables to the tables of the same names in `all`.
pub fn append(all: &mut Vec<Table>, variant: &str, seed: u64, tables: Vec<Table>) {
    for mut table in tables {
        let rows = table.len();
        let of_training = [
            Column::new(VARIANT.name, VARIANT.units, VARIANT.text, Values::Text(vec![variant.to_owned(); rows])),
            Column::new(SEED.name, SEED.units, SEED.text, Values::I64(vec![seed as i64; rows])),
        ];
        table.columns.splice(0..0, of_training);
        match all.iter_mut().find(|known| known.group == table.group) {
            Some(known) => known.append(table),
            None => all.push(table),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_two_trainings_follow_one_another() {
        let one = |values| Table::new("spread", "row", vec![Column::new("step", "1", "step", Values::I64(values))]);
        let mut all = Vec::new();
        append(&mut all, "a", 3, vec![one(vec![1, 2])]);
        append(&mut all, "b", 4, vec![one(vec![5])]);
        let values = |name: &str| all[0].column(name).unwrap().values.clone();
        assert_eq!(values("step"), Values::I64(vec![1, 2, 5]));
        assert_eq!(values("seed"), Values::I64(vec![3, 3, 4]));
        assert_eq!(values("variant"), Values::Text(vec!["a".into(), "a".into(), "b".into()]));
    }
}

//! Tables in HDF5 groups, written and read: columns over dimensions, each dimension an HDF5 dimension scale.

use std::collections::BTreeMap;

use hdf5::{Dataset, Group};

use super::input::{Input, member_names};
use super::schema::{CONFIG, DIMENSION, DIMENSIONS, LONG_NAME, UNITS};
use super::values::{write_attribute, write_attributes, write_values};
use super::{Attribute, Column, Table, Values};
use crate::error::Result;
use crate::sys::{attach_dimension_scale, set_dimension_scale};

/// Writes a table into its group, which may exist (with attributes) but must not hold datasets of the same names.
pub(super) fn write(root: &Group, table: &Table) -> hdf5::Result<()> {
    let in_table = |error: hdf5::Error| hdf5::Error::from(format!("{}: {error}", table.group));
    let group = super::groups::group(root, &table.group)?;
    write_attribute(&group, DIMENSION, &Attribute::Text(table.dimension.clone()))?;
    write_attributes(&group, &table.attributes)?;

    let extents = extents(table).map_err(in_table)?;
    let mut columns: Vec<Column> = extents
        .iter()
        .filter(|(name, _)| table.column(name).is_none())
        .map(|(name, extent)| {
            Column::new(name, "1", format!("number of the {name}, from 0"), Values::I64((0..*extent as i64).collect()))
        })
        .collect();
    columns.extend(table.columns.iter().cloned());

    let mut datasets = BTreeMap::new();
    for column in &columns {
        let axes = axes(table, column);
        let shape: Vec<usize> = axes.iter().map(|name| extents[*name]).collect();
        let dataset = write_values(&group, &column.name, &shape, &column.values).map_err(in_table)?;
        write_attribute(&dataset, UNITS, &Attribute::Text(column.units.clone()))?;
        write_attribute(&dataset, LONG_NAME, &Attribute::Text(column.long_name.clone()))?;
        if !column.dimensions.is_empty() {
            let names = axes.iter().map(|name| (*name).to_owned()).collect();
            write_attribute(&dataset, DIMENSIONS, &Attribute::Texts(names))?;
        }
        if extents.contains_key(&column.name) {
            set_dimension_scale(&dataset, &column.name)?;
        }
        datasets.insert(column.name.as_str(), dataset);
    }
    for column in columns.iter().filter(|column| !extents.contains_key(&column.name)) {
        attach(&datasets, column, &axes(table, column))?;
    }
    Ok(())
}

fn attach(datasets: &BTreeMap<&str, Dataset>, column: &Column, axes: &[&str]) -> hdf5::Result<()> {
    for (axis, name) in axes.iter().enumerate() {
        attach_dimension_scale(&datasets[column.name.as_str()], &datasets[name], axis as u32)?;
    }
    Ok(())
}

/// Names of the axes of `column`; a coordinate has itself as its axis.
fn axes<'a>(table: &'a Table, column: &'a Column) -> Vec<&'a str> {
    let of_others = |other: &Column| other.dimensions.iter().any(|(name, _)| *name == column.name);
    if column.dimensions.is_empty() {
        let coordinate = table.columns.iter().any(of_others);
        return vec![if coordinate { &column.name } else { &table.dimension }];
    }
    column.dimensions.iter().map(|(name, _)| name.as_str()).collect()
}

/// Every dimension of the table with its extent, on which all columns must agree.
fn extents(table: &Table) -> hdf5::Result<BTreeMap<String, usize>> {
    let mut extents: BTreeMap<String, usize> = BTreeMap::new();
    for column in &table.columns {
        let axes = axes(table, column);
        let coordinate = axes.iter().any(|name| *name == column.name);
        if coordinate && axes.len() > 1 {
            return Err(format!("{}: a coordinate has one dimension", column.name).into());
        }
        for (axis, name) in axes.into_iter().enumerate() {
            let extent = column.dimensions.get(axis).map_or(column.values.len(), |(_, extent)| *extent);
            let known = *extents.entry(name.to_owned()).or_insert(extent);
            if known != extent {
                return Err(format!("{}: {extent} values along {name}, elsewhere {known}", column.name).into());
            }
        }
    }
    if extents.is_empty() {
        extents.insert(table.dimension.clone(), 0);
    }
    Ok(extents)
}

/// Reads a table that [`write()`] wrote.
pub(super) fn read(input: &Input, path: &str) -> Result<Table> {
    let group = input.group(path)?;
    let Some(dimension) = input.text(&group, DIMENSION) else {
        return Err(input.error(path, "not a table: no text in an attribute `dimension`"));
    };
    let mut columns = Vec::new();
    for name in member_names(&group) {
        let path = format!("{path}/{name}");
        let Ok(dataset) = group.dataset(&name) else { continue }; // a group below this one
        if input.is_bare_dimension(&dataset) {
            continue;
        }
        let values = input.values(&dataset, &path)?;
        let text = |attribute| input.text(&dataset, attribute).unwrap_or_default();
        let mut column = Column::new(name, text(UNITS), text(LONG_NAME), values);
        if let Some(names) = input.attribute(&dataset, DIMENSIONS).as_ref().and_then(Attribute::texts) {
            let shape = dataset.shape();
            if names.len() != shape.len() {
                return Err(input.error(&path, format!("shape {shape:?} for the dimensions {names:?}")));
            }
            column.dimensions = names.iter().cloned().zip(shape).collect();
        }
        columns.push(column);
    }
    let attributes = input.attributes(&group, &[DIMENSION]);
    Ok(Table { group: path.to_owned(), dimension, columns, attributes })
}

/// Paths of all tables of a file.
pub(super) fn names(input: &Input) -> Result<Vec<String>> {
    fn collect(input: &Input, group: &Group, path: &str, names: &mut Vec<String>, depth: usize) {
        for name in member_names(group).into_iter().filter(|name| name != CONFIG) {
            let Ok(child) = group.group(&name) else { continue };
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            if input.text(&child, DIMENSION).is_some() {
                names.push(path.clone());
            }
            // A depth limit, since links may form a ring.
            if depth < 4 {
                collect(input, &child, &path, names, depth + 1);
            }
        }
    }
    let mut names = Vec::new();
    collect(input, input.root(), "", &mut names, 0);
    Ok(names)
}

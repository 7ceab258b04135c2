//! Layout of a run file: the groups and their order.

use hdf5::Group;

use super::groups::{exists, group};
use super::schema::{CHECKPOINT, CONFIG, ENVIRONMENT, FORMAT_VERSION, TOML, TOML_AS_WRITTEN, VERSION, WARNINGS};
use super::values::{write_attribute, write_attributes};
use super::{Attribute, Checkpoint, Identity, Table, checkpoint, table};
use crate::config::Config;

/// Content that a run file has from the start.
#[derive(Clone)]
pub(super) struct Header {
    identity: Identity,
    /// Configuration as TOML.
    toml: String,
    /// Configuration as the user wrote it, if it is known.
    toml_as_written: Option<String>,
    /// Values of the configuration as (`section.key`, value).
    keys: Vec<(String, Attribute)>,
    environment: Vec<(String, Attribute)>,
    tables: Vec<Table>,
}

impl Header {
    pub(super) fn new(
        identity: Identity,
        config: &Config,
        environment: Vec<(String, Attribute)>,
        tables: Vec<Table>,
    ) -> Header {
        let keys = config.flattened().into_iter().map(|(key, value)| (key, attribute(&value))).collect();
        Header { identity, toml: config.to_toml(), toml_as_written: None, keys, environment, tables }
    }

    /// UUID of the run.
    pub(super) fn run_id(&self) -> &str {
        &self.identity.run_id
    }

    /// Replaces the warnings.
    pub(super) fn set_warnings(&mut self, warnings: Vec<String>) {
        self.environment.retain(|(name, _)| name != WARNINGS);
        self.environment.extend((!warnings.is_empty()).then(|| (WARNINGS.to_owned(), Attribute::Texts(warnings))));
    }

    /// Adds an attribute to the environment, in place of an earlier value.
    pub(super) fn add_to_environment(&mut self, name: &str, value: Attribute) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value));
    }

    /// Adds a table.
    pub(super) fn add_table(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Adds the configuration as the user wrote it.
    pub(super) fn set_written(&mut self, toml: &str) {
        self.toml_as_written = Some(toml.to_owned());
    }

    /// Writes the header into a new file.
    pub(super) fn write(&self, root: &Group) -> hdf5::Result<()> {
        write_attribute(root, VERSION, &Attribute::Int(FORMAT_VERSION))?;
        self.identity.write(root)?;
        let config = group(root, CONFIG)?;
        write_attribute(&config, TOML, &Attribute::Text(self.toml.clone()))?;
        if let Some(toml) = &self.toml_as_written {
            write_attribute(&config, TOML_AS_WRITTEN, &Attribute::Text(toml.clone()))?;
        }
        write_attributes(&config, &self.keys)?;
        write_attributes(&*group(root, ENVIRONMENT)?, &self.environment)?;
        self.tables.iter().try_for_each(|table| table::write(root, table))
    }
}

/// Writes tables and checkpoint. With `replace` each takes the place of an existing group of its name.
pub(super) fn write(
    root: &Group,
    replace: bool,
    tables: &[Table],
    checkpoint: Option<&Checkpoint>,
) -> hdf5::Result<()> {
    let names = tables.iter().map(|table| table.group.as_str()).chain(checkpoint.map(|_| CHECKPOINT));
    for name in names.filter(|name| replace && exists(root, name)) {
        root.unlink(name)?;
    }
    tables.iter().try_for_each(|table| table::write(root, table))?;
    checkpoint.map_or(Ok(()), |checkpoint| checkpoint::write(root, CHECKPOINT, checkpoint))
}

fn attribute(value: &toml::Value) -> Attribute {
    match value {
        toml::Value::String(text) => Attribute::Text(text.clone()),
        toml::Value::Integer(value) => Attribute::Int(*value),
        toml::Value::Float(value) => Attribute::Float(*value),
        toml::Value::Boolean(value) => Attribute::Int(i64::from(*value)),
        toml::Value::Array(values) if values.iter().all(toml::Value::is_integer) => {
            Attribute::Ints(values.iter().filter_map(toml::Value::as_integer).collect())
        }
        toml::Value::Array(values) if values.iter().all(toml::Value::is_float) => {
            Attribute::Floats(values.iter().filter_map(toml::Value::as_float).collect())
        }
        toml::Value::Array(values) if values.iter().all(toml::Value::is_str) => {
            Attribute::Texts(values.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect())
        }
        other => Attribute::Text(other.to_string()),
    }
}

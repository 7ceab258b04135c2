//! The run file: made at the start, replaced as a whole at every flush.

use std::fs;
use std::path::{Path, PathBuf};

use super::atomic::{Temporary, folder_of};
use super::input::Input;
use super::layout::{self, Header};
use super::output::check_found;
use super::{Attribute, Checkpoint, Table};
use crate::config::Config;
use crate::error::{Error, Result};

/// A run file that is being written, by one process.
///
/// The file of that name is at every moment the one that was there before or that of a finished flush; a flush killed
/// half-way leaves at most a hidden `.hpml-*.part` beside it. File locks are not needed for that (`main` turns
/// HDF5's off, since network file systems often have none): a file is never written to after it has its name.
pub struct RunFile {
    path: PathBuf,
    /// `None`: the file existed, and what is in it stays.
    header: Option<Header>,
    /// Whether a file of that name may be replaced: the user said so, or it is ours.
    replace: bool,
}

impl RunFile {
    /// Prepares a new run file: makes missing folders, and writes the file's beginning under another name, which is
    /// removed again. So an unwritable place is an error now and not after the first epoch, an earlier file stays until
    /// the first [`flush`](RunFile::flush) succeeds, and without one nothing of ours remains (but empty folders).
    ///
    /// Errors: [`Error::OutputExists`] without `force`; [`Error::Output`] with path and reason.
    pub fn create(
        path: &Path,
        force: bool,
        config: &Config,
        environment: Vec<(String, Attribute)>,
        tables: Vec<Table>,
    ) -> Result<RunFile> {
        let header = Header::new(config, environment, tables);
        let file = RunFile { path: resolved(path)?, header: Some(header), replace: force };
        file.check_target()?;
        let folder = folder_of(&file.path);
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(|error| file.cannot(format!("{}: {error}", folder.display())))?;
        }
        file.write(&[], None)?; // dropped: removed
        Ok(file)
    }

    /// Opens an existing run file, to add groups or to replace them by [`flush`](RunFile::flush).
    pub fn open(path: &Path) -> Result<RunFile> {
        let path = resolved(path)?;
        Input::open_run_file(&path)?;
        Ok(RunFile { path, header: None, replace: true })
    }

    /// Writes the whole file anew and puts it in the old one's place.
    ///
    /// Of a file that was [created](RunFile::create), what is not handed over is not in it, beyond configuration,
    /// environment and the tables given then. Of a file that was [opened](RunFile::open), groups that are not handed
    /// over stay as they are. On an error the file is what it was before.
    pub fn flush(&mut self, tables: &[Table], checkpoint: Option<&Checkpoint>) -> Result<()> {
        // Again, since another job may have finished its first epoch meanwhile.
        self.check_target()?;
        self.write(tables, checkpoint)?.rename()?;
        self.replace = true;
        Ok(())
    }

    /// What it holds from the start; `None` if it existed before.
    pub(super) fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Where it is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, tables: &[Table], checkpoint: Option<&Checkpoint>) -> Result<Temporary> {
        let from = self.header.is_none().then_some(self.path.as_path());
        Temporary::write(&self.path, from, |root| {
            self.header.as_ref().map_or(Ok(()), |header| header.write(root))?;
            layout::write(root, self.header.is_none(), tables, checkpoint)
        })
    }

    // Its links have been followed: one that is there now is not ours.
    fn check_target(&self) -> Result<()> {
        check_found(fs::symlink_metadata(&self.path), &self.path, self.replace)
    }

    fn cannot(&self, reason: String) -> Error {
        Error::Output { path: self.path.clone(), reason }
    }
}

/// The file that a symbolic link points to: a rename would replace the link itself.
fn resolved(path: &Path) -> Result<PathBuf> {
    if !path.is_symlink() {
        return Ok(path.to_owned());
    }
    let cannot =
        |error: std::io::Error| Error::Output { path: path.to_owned(), reason: format!("dangling link: {error}") };
    fs::canonicalize(path).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Column, Values, read_attributes, read_config, read_table, table_names};

    fn epochs(losses: &[f64]) -> Table {
        let numbers = (0..losses.len() as i64).collect();
        let columns = vec![
            Column::new("epoch", "1", "epoch, from 0", Values::I64(numbers)),
            Column::new("loss", "1", "mean loss", Values::F64(losses.to_vec())),
        ];
        Table::new("epochs", "epoch", columns)
    }

    fn create(path: &Path, force: bool) -> Result<RunFile> {
        let environment = vec![("cpu".to_owned(), Attribute::Text("Größe ∞".into()))];
        let hosts = Values::Text(vec!["node01".into(), "node02".into()]);
        let table = Table::new("environment", "rank", vec![Column::new("host", "1", "host name", hosts)]);
        RunFile::create(path, force, &Config::default(), environment, vec![table])
    }

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_remains_without_a_flush_and_the_last_flush_remains_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/run.h5");
        let mut file = create(&path, false).unwrap();
        assert_eq!(names_in(path.parent().unwrap()), [""; 0]);
        file.flush(&[epochs(&[2.0])], None).unwrap();
        file.flush(&[epochs(&[2.0, 1.0])], None).unwrap();
        assert_eq!(names_in(path.parent().unwrap()), ["run.h5"]);
        let table = read_table(&path, "epochs").unwrap();
        assert_eq!(table, epochs(&[2.0, 1.0]));
        assert_eq!(read_config(&path).unwrap(), Config::default());
        let environment = read_attributes(&path, "environment").unwrap();
        assert!(environment.contains(&("cpu".into(), Attribute::Text("Größe ∞".into()))));
        assert_eq!(read_table(&path, "environment").unwrap().column("rank").unwrap().values, Values::I64(vec![0, 1]));
    }

    #[test]
    fn an_existing_file_is_refused_without_force_and_untouched_until_the_first_flush_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(create(&path, false), Err(Error::OutputExists { .. })));
        let mut file = create(&path, true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let mut wrong = epochs(&[1.0]);
        wrong.columns[1].values = Values::F64(vec![1.0, 2.0]);
        let message = file.flush(&[wrong], None).unwrap_err().to_string();
        assert!(message.contains("loss: 2 values along epoch, elsewhere 1"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(names_in(folder.path()), ["run.h5"]);
        file.flush(&[], None).unwrap();
        assert_eq!(table_names(&path).unwrap(), ["environment"]);
    }

    #[test]
    fn a_file_that_another_job_finished_meanwhile_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let mut file = create(&path, false).unwrap();
        fs::write(&path, "another's").unwrap();
        assert!(matches!(file.flush(&[], None), Err(Error::OutputExists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"another's");
    }

    #[test]
    fn places_that_cannot_be_written_are_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let below_a_file = folder.path().join("file/run.h5");
        for (path, reason) in [
            (below_a_file.as_path(), "file: File exists"),
            (Path::new("/proc/run.h5"), "No such file"),
            (Path::new("/proc/none/run.h5"), "No such file"),
            (Path::new("/dev/full"), "not a regular file"),
            (folder.path(), "it is a folder"),
        ] {
            let message = create(path, true).err().expect("this cannot be written").to_string();
            assert!(message.contains(&path.display().to_string()) && message.contains(reason), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
        assert_eq!(names_in(folder.path()), ["file"]);
    }

    #[test]
    fn a_link_is_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("run.h5"), folder.path().join("link.h5"));
        create(&path, false).unwrap().flush(&[], None).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        create(&link, true).unwrap().flush(&[epochs(&[1.0])], None).unwrap();
        assert!(link.is_symlink());
        assert_eq!(read_table(&path, "epochs").unwrap(), epochs(&[1.0]));
    }

    #[test]
    fn groups_are_added_to_and_replaced_in_an_existing_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        create(&path, false).unwrap().flush(&[epochs(&[3.0])], Some(&Checkpoint::default())).unwrap();
        let histogram = |count: i64| {
            let counts = Column::new("count", "1", "weights in the bin", Values::I64(vec![count; 6]));
            let layers = Column::new("layer", "1", "name", Values::Text(vec!["conv1".into(), "fc3".into()]));
            let edges = Column::new("edge", "1", "lower edge", Values::F32(vec![0.0, 0.5, 1.0])).over(&[("bin", 3)]);
            let columns = vec![layers, counts.over(&[("layer", 2), ("bin", 3)]), edges];
            Table::new("histograms/epoch_0", "layer", columns)
        };
        for count in [1, 2] {
            RunFile::open(&path).unwrap().flush(&[histogram(count)], None).unwrap();
            assert_eq!(read_table(&path, "epochs").unwrap(), epochs(&[3.0]));
            let table = read_table(&path, "histograms/epoch_0").unwrap();
            assert_eq!(table.column("count"), histogram(count).column("count"));
            assert_eq!(table.column("edge"), histogram(count).column("edge"));
        }
        assert_eq!(table_names(&path).unwrap(), ["environment", "epochs", "histograms/epoch_0"]);
        assert_eq!(names_in(folder.path()), ["run.h5"]);
        assert!(RunFile::open(&folder.path().join("none.h5")).is_err());
    }
}

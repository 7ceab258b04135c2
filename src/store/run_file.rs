//! The run file: a job claims its name at the start and replaces its content as a whole at every flush.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::atomic::Temporary;
use super::identity::write_status;
use super::input::Input;
use super::layout::{self, Header};
use super::write::check_found;
use super::{Attribute, Checkpoint, Claim, Identity, Owner, Table};
use crate::config::Config;
use crate::error::Result;

/// A run file that one process is writing.
///
/// At every moment the name belongs either to the earlier file or to the state of a finished flush; a flush killed half-way
/// leaves at most a hidden `.hpml-*.part` beside it. This needs no file locks (`main` turns HDF5's off, since network file
/// systems often have none): a file is never written to once it has its name, and no other job writes to the name while its
/// [`Owner`] lives.
pub struct RunFile {
    owner: Arc<Owner>,
    content: Content,
    /// The file that a flush may replace: the user allowed it, or this process wrote it.
    replaceable: Option<FileKey>,
}

/// Content that every flush starts with.
enum Content {
    /// A header, for a file that this process makes.
    New(Header),
    /// The existing file.
    Existing,
}

/// Identity of a file, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileKey {
    device: u64,
    inode: u64,
}

impl FileKey {
    fn of(found: &Metadata) -> FileKey {
        FileKey { device: found.dev(), inode: found.ino() }
    }
}

impl RunFile {
    /// Claims `path` and prepares a new run file there. For a process that no other rank waits for meanwhile.
    ///
    /// # Errors
    /// [`crate::error::Error::OutputOwned`] if a living job writes there, or an error of [`create_owned`](Self::create_owned).
    pub fn create(
        path: &Path,
        force: bool,
        identity: Identity,
        config: &Config,
        environment: Vec<(String, Attribute)>,
        tables: Vec<Table>,
    ) -> Result<RunFile> {
        RunFile::create_owned(Claim::new(path, force)?.wait()?, force, identity, config, environment, tables)
    }

    /// Prepares a new run file at the path that `owner` owns: writes the file's header under another name and removes it again.
    /// An unwritable path is thus an error now and not after the first epoch. An earlier file stays until the first
    /// [`flush`](RunFile::flush) succeeds; without a flush nothing remains of this one but empty folders.
    ///
    /// # Errors
    /// [`crate::error::Error::OutputExists`] if a file exists and `replace` is false, [`crate::error::Error::Output`] if the
    /// path cannot be written.
    pub fn create_owned(
        owner: Owner,
        replace: bool,
        identity: Identity,
        config: &Config,
        environment: Vec<(String, Attribute)>,
        tables: Vec<Table>,
    ) -> Result<RunFile> {
        let found = fs::symlink_metadata(owner.target());
        let replaceable = found.as_ref().ok().map(FileKey::of);
        check_found(found, owner.target(), replace)?;
        let content = Content::New(Header::new(identity, config, environment, tables));
        let file = RunFile { owner: Arc::new(owner), content, replaceable };
        file.write(&[], None, false)?; // dropped: removed
        Ok(file)
    }

    /// Claims an existing run file and opens it, to add or replace groups by [`flush`](RunFile::flush).
    ///
    /// # Errors
    /// [`crate::error::Error::OutputOwned`] if a living job writes it, or an error of [`open_owned`](Self::open_owned).
    pub fn open(path: &Path) -> Result<RunFile> {
        Input::open_run_file(path)?; // checked first: no owner's mark is left beside a file of another kind
        RunFile::open_owned(Claim::new(path, false)?.wait()?)
    }

    /// Opens the existing run file that `owner` owns, to add or replace groups.
    ///
    /// # Errors
    /// The file cannot be read or is not a run file.
    pub fn open_owned(owner: Owner) -> Result<RunFile> {
        Input::open_run_file(owner.target())?;
        let replaceable = fs::symlink_metadata(owner.target()).ok().as_ref().map(FileKey::of);
        Ok(RunFile { owner: Arc::new(owner), content: Content::Existing, replaceable })
    }

    /// Writes the whole file anew and replaces the old one by it.
    ///
    /// A file that was [created](RunFile::create) then holds its configuration, environment and first tables, and of the rest
    /// only the arguments. A file that was [opened](RunFile::open) keeps the groups that the arguments do not replace. On an
    /// error the old file stays as it was.
    ///
    /// # Errors
    /// [`crate::error::Error::OutputLost`] if another job has taken the name over, [`crate::error::Error::OutputExists`] if
    /// another program has put a file there, [`crate::error::Error::Output`] if it cannot be written.
    pub fn flush(&mut self, tables: &[Table], checkpoint: Option<&Checkpoint>) -> Result<()> {
        self.put(tables, checkpoint, false)
    }

    /// Writes the file like [`flush`](Self::flush) and marks it as finished.
    ///
    /// # Errors
    /// An error of [`flush`](Self::flush).
    pub fn finish(&mut self, tables: &[Table], checkpoint: Option<&Checkpoint>) -> Result<()> {
        self.put(tables, checkpoint, true)
    }

    /// Replaces `tables` in the file as it was last flushed, and keeps the rest: weights, warnings, status.
    ///
    /// # Errors
    /// An error of [`flush`](Self::flush).
    pub fn update(&mut self, tables: &[Table]) -> Result<()> {
        let from = Some(self.path());
        let file = Temporary::write(self.path(), from, |root| layout::write(root, true, tables, None))?;
        self.replace_by(file)
    }

    fn put(&mut self, tables: &[Table], checkpoint: Option<&Checkpoint>, is_finished: bool) -> Result<()> {
        let file = self.write(tables, checkpoint, is_finished)?;
        self.replace_by(file)
    }

    /// Gives `file` the run file's name.
    fn replace_by(&mut self, file: Temporary) -> Result<()> {
        // Checked after the writing, which takes longest: another job or file may have taken the name meanwhile.
        self.owner.check()?;
        let found = fs::symlink_metadata(self.path());
        let ours = found.as_ref().ok().map(FileKey::of) == self.replaceable;
        let exists = found.is_ok();
        check_found(found, self.path(), ours)?;
        let key = fs::symlink_metadata(file.path()).ok().as_ref().map(FileKey::of);
        file.rename(exists)?;
        self.replaceable = key;
        Ok(())
    }

    /// Sets the warnings of the run, stored in `/environment` from the next [`flush`](RunFile::flush) on. An
    /// [opened](RunFile::open) file keeps its warnings.
    pub fn set_warnings(&mut self, warnings: Vec<String>) {
        if let Content::New(header) = &mut self.content {
            header.set_warnings(warnings);
        }
    }

    /// Adds an attribute to `/environment` from the next [`flush`](RunFile::flush) on. An [opened](RunFile::open) file keeps its
    /// attributes.
    pub fn add_to_environment(&mut self, name: &str, value: Attribute) {
        if let Content::New(header) = &mut self.content {
            header.add_to_environment(name, value);
        }
    }

    /// Adds a table to those that every [`flush`](RunFile::flush) from the next one on begins with. An [opened](RunFile::open) file
    /// keeps its tables.
    pub fn add_table(&mut self, table: Table) {
        if let Content::New(header) = &mut self.content {
            header.add_table(table);
        }
    }

    /// Adds the configuration as the user wrote it, before it was fitted to ranks and data, to `/config` from the next
    /// [`flush`](RunFile::flush) on: as TOML in the attribute `toml_as_written`, beside `toml`, the configuration as used. An
    /// [opened](RunFile::open) file keeps its configuration.
    pub fn set_written(&mut self, toml: &str) {
        if let Content::New(header) = &mut self.content {
            header.set_written(toml);
        }
    }

    /// Header of a created file; `None` for an opened one.
    pub(super) fn header(&self) -> Option<&Header> {
        match &self.content {
            Content::New(header) => Some(header),
            Content::Existing => None,
        }
    }

    /// Owner of the name.
    pub(super) fn owner(&self) -> Arc<Owner> {
        self.owner.clone()
    }

    /// Path of the run file.
    pub fn path(&self) -> &Path {
        self.owner.target()
    }

    fn write(&self, tables: &[Table], checkpoint: Option<&Checkpoint>, is_finished: bool) -> Result<Temporary> {
        let from = self.header().is_none().then(|| self.path());
        Temporary::write(self.path(), from, |root| {
            self.header().map_or(Ok(()), |header| header.write(root))?;
            layout::write(root, self.header().is_none(), tables, checkpoint)?;
            // Groups added to an existing file leave its status as it is.
            if is_finished || self.header().is_some() { write_status(root, is_finished) } else { Ok(()) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::store::{
        Column, FileKind, Values, read_attributes, read_config, read_identity, read_table, table_names,
    };

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
        RunFile::create(path, force, Identity::new(FileKind::Training), &Config::default(), environment, vec![table])
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
        assert_eq!(names_in(path.parent().unwrap()), [".hpml-run.h5.owner"]);
        drop(file);
        assert_eq!(names_in(path.parent().unwrap()), [""; 0]);
        file = create(&path, false).unwrap();
        file.flush(&[epochs(&[2.0])], None).unwrap();
        assert!(read_identity(&path).unwrap().is_unfinished);
        file.finish(&[epochs(&[2.0, 1.0])], None).unwrap();
        drop(file);
        assert_eq!(names_in(path.parent().unwrap()), ["run.h5"]);
        let identity = read_identity(&path).unwrap();
        assert_eq!((identity.kind, identity.is_unfinished), (Some(FileKind::Training), false));
        RunFile::open(&path).unwrap().flush(&[], None).unwrap();
        assert_eq!(read_identity(&path).unwrap(), identity);
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
        file.flush(&[], None).unwrap();
        assert_eq!(table_names(&path).unwrap(), ["environment"]);
        drop(file);
        assert_eq!(names_in(folder.path()), ["run.h5"]);
    }

    #[test]
    fn a_file_that_another_job_finished_meanwhile_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let mut file = create(&path, false).unwrap();
        for _ in 0..2 {
            fs::write(folder.path().join("new"), "another's").unwrap();
            fs::rename(folder.path().join("new"), &path).unwrap();
            assert!(matches!(file.flush(&[], None), Err(Error::OutputExists { .. })));
            assert_eq!(fs::read(&path).unwrap(), b"another's");
            fs::remove_file(&path).unwrap();
            file.flush(&[], None).unwrap();
        }
    }

    #[test]
    fn a_job_whose_place_was_taken_writes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let mut first = create(&path, false).unwrap();
        first.flush(&[epochs(&[1.0])], None).unwrap();
        assert!(matches!(create(&path, false), Err(Error::OutputOwned { .. })));
        let mut second = create(&path, true).unwrap();
        second.flush(&[epochs(&[2.0])], None).unwrap();
        assert!(matches!(first.flush(&[epochs(&[3.0])], None), Err(Error::OutputLost { .. })));
        assert_eq!(read_table(&path, "epochs").unwrap(), epochs(&[2.0]));
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

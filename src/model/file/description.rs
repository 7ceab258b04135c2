//! The description that scripts/export.py writes into a model file's archive.

use serde::Deserialize;

use crate::data::Form;

/// Name of the description in the archive.
pub(super) const FILE: &str = "hpml.toml";
/// Most operations per sample that are believed: the greatest integer that a run file's float64 columns hold exactly.
const MOST: u64 = 1 << 53;
/// Version of the description's form that is read here.
const FORMAT: u32 = 1;

/// What a model file takes and gives, where it came from, and how to check it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Description {
    format: u32,
    /// Version of PyTorch that wrote the file, for example `2.11.0+cu130`.
    pub torch: String,
    /// Kind of processor that it was written on, for example `x86_64`.
    pub machine: String,
    /// Shape of an image, or the length of a sequence.
    pub input: Vec<usize>,
    /// Number format of the input: float32 for images, int64 for tokens.
    pub dtype: String,
    /// Classes, or the vocabulary.
    pub classes: usize,
    /// Multiplications and additions per sample: of the forward pass, and of forward and backward pass; `None` of a file that an
    /// earlier scripts/export.py wrote, or of a model that PyTorch could not count.
    #[serde(default)]
    operations: Option<[u64; 2]>,
    /// Names of the `state_dict`.
    pub state: Vec<String>,
    /// Losses that PyTorch found on a batch made of integers.
    pub check: Check,
}

/// Losses of the model in PyTorch, and how they were made.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Check {
    /// Seed of libtorch's generator before the steps.
    pub seed: u64,
    /// Samples of the batch.
    pub samples: usize,
    /// Learning rate of the steps.
    pub lr: f64,
    /// Whether numbers are drawn in training, by dropout for example.
    pub random: bool,
    /// Mean loss in eval mode before the steps.
    pub eval_loss: f64,
    /// Mean loss before each of the steps in training mode.
    pub losses: Vec<f64>,
    /// Greatest relative difference that rounding explains.
    pub bound: f64,
}

impl Description {
    /// Reads a description.
    ///
    /// # Errors
    /// Returns why it cannot be read.
    pub fn parse(text: &str) -> Result<Description, String> {
        let unreadable = |error: &str| {
            format!("its {FILE} cannot be read: {error}: export it again with this hpml's scripts/export.py")
        };
        let description: Description = toml::from_str(text).map_err(|error| unreadable(error.message()))?;
        if let Some([forward, training]) =
            description.operations.filter(|[forward, training]| training < forward || *training > MOST)
        {
            let expected = format!("the second no less than the first, and at most {MOST}");
            return Err(unreadable(&format!("operations = [{forward}, {training}], expected {expected}")));
        }
        match (description.format, &description.input[..], &description.dtype[..]) {
            (FORMAT, [_, _, _], "float32") | (FORMAT, [_], "int64") => Ok(description),
            (FORMAT, input, dtype) => Err(unreadable(&format!("input {input:?} of {dtype}"))),
            (format, ..) => Err(unreadable(&format!("format {format}, expected {FORMAT}"))),
        }
    }

    /// Multiplications and additions per sample of this `form`: of the forward pass, and of forward and backward pass.
    ///
    /// # Errors
    /// Returns why they are not known, with the mend.
    pub fn operations(&self, form: Form) -> Result<[u64; 2], String> {
        match (self.form(), form) {
            (Form::Tokens { length: own, .. }, Form::Tokens { length, .. }) if own != length => {
                Err(format!("its operations are those of {own} tokens: export it again with --tokens {length}"))
            }
            _ => self
                .operations
                .ok_or_else(|| "has no count of operations: export it again with scripts/export.py".into()),
        }
    }

    /// Form of the samples that the model was exported for.
    pub fn form(&self) -> Form {
        match self.input[..] {
            [channels, height, width] => Form::Images { shape: [channels, height, width], classes: self.classes },
            _ => Form::Tokens { length: self.input[0], vocabulary: self.classes },
        }
    }

    /// Reason why samples of this `form` do not fit the model, with the mend; `None` if they do. Sequences may have another
    /// length: trying out shows whether the model takes it.
    pub fn misfit(&self, form: Form) -> Option<String> {
        let fits = match (self.form(), form) {
            (Form::Tokens { vocabulary, .. }, Form::Tokens { vocabulary: other, .. }) => vocabulary == other,
            (own, form) => own == form,
        };
        let option = match form {
            Form::Images { shape: [channels, height, width], .. } => format!("--input {channels} {height} {width}"),
            Form::Tokens { length, .. } => format!("--tokens {length}"),
        };
        (!fits).then(|| {
            format!(
                "was exported for {}, and the data are {form}: export it with {option} and as many classes, or choose other data \
                 (data.classes says how many there are)",
                self.form()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "format = 1\ntorch = \"2.11.0\"\nmachine = \"x86_64\"\ninput = [3, 32, 32]\ndtype = \"float32\"\nclasses = 10\n\
        state = [\"fc.weight\"]\ncheck.seed = 0\ncheck.samples = 4\ncheck.lr = 0.01\ncheck.random = false\ncheck.eval_loss = 2.3\n\
        check.losses = [2.3, 2.2, 2.1]\ncheck.bound = 1e-4\n";

    #[test]
    fn samples_of_another_shape_or_number_of_classes_are_named_with_the_option_that_fits() {
        let description = Description::parse(TEXT).unwrap();
        let images = |side, classes| Form::Images { shape: [3, side, side], classes };
        assert_eq!(description.misfit(images(32, 10)), None);
        for (form, named) in [
            (images(64, 10), "--input 3 64 64"),
            (images(32, 100), "100 classes"),
            (Form::Tokens { length: 8, vocabulary: 10 }, "--tokens 8"),
        ] {
            let message = description.misfit(form).unwrap();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn a_description_that_is_none_is_refused_by_what_is_wrong() {
        for (from, to, named) in [
            ("format = 1", "format = 2", "format 2"),
            ("float32", "int8", "int8"),
            ("classes = 10\n", "", "classes"),
            ("[3, 32, 32]", "[32, 32]", "[32, 32]"),
            ("format = 1", "format = ", "hpml.toml"),
            ("format = 1", "format = 1\noperations = [-6, -18]", "-6"),
            ("format = 1", "format = 1\noperations = [6]", "length 1"),
            ("format = 1", "format = 1\noperations = [6, 5]", "[6, 5]"),
            ("format = 1", "format = 1\noperations = [6, 9223372036854775807]", "9223372036854775807"),
        ] {
            let message = Description::parse(&TEXT.replace(from, to)).unwrap_err();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn operations_are_those_of_sequences_as_long_as_the_exported_ones() {
        let images = Form::Images { shape: [3, 32, 32], classes: 10 };
        let counted = TEXT.replace("format = 1", "format = 1\noperations = [6, 17]");
        assert_eq!(Description::parse(&counted).unwrap().operations(images), Ok([6, 17]));
        let message = Description::parse(TEXT).unwrap().operations(images).unwrap_err();
        assert!(message.contains("export it again with scripts/export.py"), "{message}");
        let tokens = counted.replace("[3, 32, 32]", "[64]").replace("float32", "int64");
        let of = |length| Description::parse(&tokens).unwrap().operations(Form::Tokens { length, vocabulary: 10 });
        assert!(of(64) == Ok([6, 17]) && of(8).unwrap_err().contains("--tokens 8"), "{:?}", of(8));
    }
}

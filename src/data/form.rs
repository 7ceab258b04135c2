//! Form of the samples of a data set, by which networks are built.

/// Form of a data set's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Images `[channels, height, width]`, each of one of `classes` classes.
    Images {
        /// Channels, height and width.
        shape: [usize; 3],
        /// Number of classes.
        classes: usize,
    },
    /// Sequences of token ids; the target at each place is the next token.
    Tokens {
        /// Tokens per sequence.
        length: usize,
        /// Number of different token ids.
        vocabulary: usize,
    },
}

impl Form {
    /// Form of CIFAR-10 and of the embedded set: `[3, 32, 32]`, 10 classes.
    pub const CIFAR10: Form = Form::Images { shape: [3, 32, 32], classes: 10 };

    /// Number of values that a network gives per target: classes, or the size of the vocabulary.
    pub fn outputs(self) -> usize {
        match self {
            Form::Images { classes, .. } => classes,
            Form::Tokens { vocabulary, .. } => vocabulary,
        }
    }

    /// Targets per sample: 1, or the length of a sequence.
    pub fn targets(self) -> usize {
        match self {
            Form::Images { .. } => 1,
            Form::Tokens { length, .. } => length,
        }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Form::Images { shape: [channels, height, width], classes } => {
                write!(out, "images {channels} x {height} x {width}, {classes} classes")
            }
            Form::Tokens { length, vocabulary } => write!(out, "sequences of {length} tokens, vocabulary {vocabulary}"),
        }
    }
}

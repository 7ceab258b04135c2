//! What a data set's samples are: images of a shape and a number of classes, or sequences of tokens.

/// Form of a data set's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Images `[channels, height, width]`, each of one of `classes` classes.
    Images { shape: [usize; 3], classes: usize },
    /// Sequences of `length` token ids below `vocabulary`; the target at each place is the next token.
    Tokens { length: usize, vocabulary: usize },
}

/// What is wrong with a file of a flake, in one line with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct FlakeFileError {
    /// The file, as the caller named it.
    pub file: String,
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

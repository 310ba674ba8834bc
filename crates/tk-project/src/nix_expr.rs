//! A Nix expression as a tree, of what generated files need.

/// A Nix expression.
///
/// Whatever comes from elsewhere goes into [`String`](NixExpr::String), [`Path`](NixExpr::Path), names and
/// comments, which are escaped. [`Code`](NixExpr::Code) is text of this program: its type takes nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NixExpr {
    /// A string: `''…''` where it has several lines that this form can carry, else `"…"`.
    String(String),
    /// An integer.
    Integer(i64),
    /// `true` or `false`.
    Bool(bool),
    /// The value `null`.
    Null,
    /// A path below the folder of the file, of names joined by `/`; empty is the folder itself.
    Path(String),
    /// An attribute of an attribute …, `pkgs.python3Packages.requests`.
    Select(Box<NixExpr>, Vec<String>),
    /// `[ … ]`.
    List(Vec<NixExpr>),
    /// `{ … }`.
    Attrs(Vec<NixBinding>),
    /// A function and its arguments.
    Call(Box<NixExpr>, Vec<NixExpr>),
    /// `list ++ list`.
    Concat(Box<NixExpr>, Box<NixExpr>),
    /// A function: what stands before its colon, and its body.
    Function(&'static str, Box<NixExpr>),
    /// A function of a set: the names that it takes.
    SetFunction(Vec<String>, Box<NixExpr>),
    /// `let … in …`.
    Let(Vec<NixBinding>, Box<NixExpr>),
    /// Code of this program.
    Code(&'static str),
    /// An expression that stands there because of something: an index, which comes back with its lines.
    Because(usize, Box<NixExpr>),
    /// An expression with comments above it.
    Commented(Vec<String>, Box<NixExpr>),
}

/// What stands in a set or after `let`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NixBinding {
    /// `a.b = value;`.
    Set {
        /// The names, at least one.
        path: Vec<String>,
        /// The value that the names get.
        value: NixExpr,
        /// Lines of comment above it.
        comment: Vec<String>,
        /// What it stands there for; see [`NixExpr::Because`].
        because: Option<usize>,
    },
    /// `inherit …;`, as code of this program.
    Code(&'static str),
    /// An empty line.
    Blank,
}

impl NixBinding {
    /// `name = value;`, where dots in `name` join names.
    pub fn set(name: &'static str, value: NixExpr) -> Self {
        NixBinding::of_path(name.split('.').map(str::to_owned).collect(), value)
    }

    /// `name = value;`, where `name` may be anything.
    pub fn named(name: impl Into<String>, value: NixExpr) -> Self {
        NixBinding::of_path(vec![name.into()], value)
    }

    fn of_path(path: Vec<String>, value: NixExpr) -> Self {
        NixBinding::Set {
            path,
            value,
            comment: Vec::new(),
            because: None,
        }
    }

    /// The same with the index of a reason.
    pub fn because(mut self, reason: usize) -> Self {
        if let NixBinding::Set { because, .. } = &mut self {
            *because = Some(reason);
        }
        self
    }

    /// The same below a line of comment.
    pub fn commented(mut self, line: impl Into<String>) -> Self {
        if let NixBinding::Set { comment, .. } = &mut self {
            comment.push(line.into());
        }
        self
    }
}

impl NixExpr {
    /// Returns a string with any content.
    pub fn string(text: impl Into<String>) -> Self {
        NixExpr::String(text.into())
    }

    /// The attribute `path` of `of`, where dots in `path` join names.
    pub fn select(of: &'static str, path: &str) -> Self {
        let path = path.split('.').map(str::to_owned).collect();
        NixExpr::Select(Box::new(NixExpr::Code(of)), path)
    }

    /// Returns the call of `function` with one argument.
    pub fn call(function: NixExpr, argument: NixExpr) -> Self {
        NixExpr::Call(Box::new(function), vec![argument])
    }

    /// The expression with the index of a reason.
    pub fn because(self, reason: usize) -> Self {
        NixExpr::Because(reason, Box::new(self))
    }
}

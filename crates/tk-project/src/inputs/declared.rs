use super::{
    literal::{LiteralFault, LiteralValue, NixLiteral},
    parse_reference, reference_from_attrs,
};
use crate::{
    lock::{AttrValue, FlakeFileError, InputAttrs, InputPath},
    nix_literal::LiteralNode,
};
use std::collections::BTreeMap;

/// The inputs of a flake, as its flake.nix has them.
///
/// Nix itself takes only literals there, so that nothing has to be run to read them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclaredInputs {
    /// The inputs that flake.nix declares, by name.
    pub inputs: BTreeMap<String, DeclaredInput>,
    /// What `inputs.self` asks for: how the flake itself is to be fetched.
    pub own: InputAttrs,
}

/// One input as flake.nix declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredInput {
    /// What it is; nothing where only its own inputs are changed, and then its name is looked up in registries.
    pub reference: Option<InputAttrs>,
    /// The input that it follows, named from this flake; empty: nothing at all.
    pub follows: Option<InputPath>,
    /// Whether it is a flake.
    pub is_flake: bool,
    /// Its own inputs that are to be others.
    pub overrides: BTreeMap<String, DeclaredInput>,
}

impl Default for DeclaredInput {
    fn default() -> Self {
        DeclaredInput {
            reference: None,
            follows: None,
            is_flake: true,
            overrides: BTreeMap::new(),
        }
    }
}

impl DeclaredInputs {
    /// Reads the text of a flake.nix; `file` is what errors call it. `dir` is its folder in its source.
    ///
    /// # Errors
    /// If Nix would refuse it: what is no set, no text where one must be, put together out of parts, or of an unknown
    /// kind.
    pub fn parse(file: &str, text: &str, dir: &str) -> Result<DeclaredInputs, FlakeFileError> {
        let whole = LiteralNode::parse(file, text)?;
        let read = NixLiteral::of(whole).and_then(|value| flake(value, dir));
        read.map_err(|(line, what)| FlakeFileError {
            file: file.to_owned(),
            line,
            what,
        })
    }
}

fn flake(value: NixLiteral, dir: &str) -> Result<DeclaredInputs, LiteralFault> {
    let line = value.line;
    let mut attrs = set(value, "a flake")?;
    let mut out = DeclaredInputs::default();
    if let Some(inputs) = attrs.remove("inputs") {
        for (name, value) in set(inputs, "inputs")? {
            if name == "self" {
                for (name, value) in set(value, "inputs.self")? {
                    if !matches!(name.as_str(), "submodules" | "lfs") {
                        return Err((value.line, format!("inputs.self has no attribute '{name}'")));
                    }
                    out.own.set(&name, attr(&name, value)?);
                }
                continue;
            }
            let input = input(value, dir)?;
            out.inputs.insert(name, input);
        }
    }
    let Some(outputs) = attrs.remove("outputs") else {
        return Err((line, "it is no flake: it has no outputs".into()));
    };
    let LiteralValue::Function(arguments) = outputs.value else {
        return Err((outputs.line, "its outputs are not a function".into()));
    };
    for name in arguments.into_iter().filter(|name| name != "self") {
        let reference = parse_reference(&name, true).map_err(|what| (outputs.line, what))?;
        out.inputs.entry(name).or_insert_with(|| DeclaredInput {
            reference: Some(reference),
            ..DeclaredInput::default()
        });
    }
    attrs.retain(|name, _| !matches!(name.as_str(), "description" | "nixConfig"));
    match attrs.into_iter().next() {
        Some((name, value)) => Err((value.line, format!("a flake has no attribute '{name}'"))),
        None => Ok(out),
    }
}

fn input(value: NixLiteral, dir: &str) -> Result<DeclaredInput, LiteralFault> {
    let line = value.line;
    let mut out = DeclaredInput::default();
    let (mut attrs, mut url) = (InputAttrs::default(), None);
    for (name, value) in set(value, "an input")? {
        let line = value.line;
        match name.as_str() {
            "url" => {
                let text = match value.value {
                    LiteralValue::Text(text) => text,
                    LiteralValue::Path(path) => {
                        format!("path:{}", below(dir, &path).map_err(|e| (line, e))?)
                    }
                    other => return Err(unfit(line, "url", "a text", &other)),
                };
                url = Some((line, text));
            }
            "flake" => match value.value {
                LiteralValue::Flag(flag) => out.is_flake = flag,
                other => return Err(unfit(line, "flake", "true or false", &other)),
            },
            "inputs" => {
                for (name, value) in set(value, "inputs")? {
                    if name == "self" {
                        return Err((value.line, "an input's 'self' cannot be set".into()));
                    }
                    out.overrides.insert(name, input(value, dir)?);
                }
            }
            "follows" => match value.value {
                LiteralValue::Text(text) => {
                    out.follows = Some(InputPath::parse(&text).map_err(|what| (line, what))?);
                }
                other => return Err(unfit(line, "follows", "a text", &other)),
            },
            name => attrs.set(name, attr(name, value)?),
        }
    }
    if attrs.has("type") {
        if let Some((_, url)) = url {
            attrs.set_text("url", url);
        }
        out.reference = Some(reference_from_attrs(attrs).map_err(|what| (line, what))?);
    } else if let Some((name, _)) = attrs.iter().next() {
        return Err((
            line,
            format!("an input without a type has no attribute '{name}'"),
        ));
    } else if let Some((line, url)) = url {
        out.reference = Some(parse_reference(&url, out.is_flake).map_err(|what| (line, what))?);
    }
    if out.reference.is_some() && out.follows.is_some() {
        return Err((
            line,
            "an input is something and follows something else".into(),
        ));
    }
    Ok(out)
}

fn attr(name: &str, value: NixLiteral) -> Result<AttrValue, LiteralFault> {
    Ok(match value.value {
        LiteralValue::Text(text) => AttrValue::Text(text),
        LiteralValue::Flag(flag) => AttrValue::Flag(flag),
        LiteralValue::Number(number) => AttrValue::Number(number),
        other => {
            return Err(unfit(
                value.line,
                name,
                "a text, a number or a boolean",
                &other,
            ));
        }
    })
}

fn set(value: NixLiteral, what: &str) -> Result<BTreeMap<String, NixLiteral>, LiteralFault> {
    match value.value {
        LiteralValue::Set(set) => Ok(set),
        other => Err(unfit(value.line, what, "a set of attributes", &other)),
    }
}

fn unfit(line: usize, what: &str, wanted: &str, found: &LiteralValue) -> LiteralFault {
    let found = match found {
        LiteralValue::Set(_) => "a set of attributes",
        LiteralValue::Text(_) => "a text",
        LiteralValue::Flag(_) => "a boolean",
        LiteralValue::Number(_) => "a number",
        LiteralValue::Path(_) => "a path",
        LiteralValue::Function(_) => "a function",
        LiteralValue::Other(found) => found.as_str(),
    };
    (
        line,
        format!("{what} must be {wanted}, literally, and is {found}"),
    )
}

/// The path literal `path` of a file in `dir`, from there. As `CanonPath::makeRelative`.
fn below(dir: &str, path: &str) -> Result<String, String> {
    let target = names_from(dir, path).ok_or(format!("{path} leads out of the flake"))?;
    let own = names_from("", dir).ok_or(format!("{dir} leads out of the flake"))?;
    let mut pairs = own.iter().zip(&target);
    let same = pairs
        .position(|(a, b)| a != b)
        .unwrap_or(own.len().min(target.len()));
    let up = std::iter::repeat_n("..", own.len() - same);
    let names: Vec<_> = up.chain(target[same..].iter().copied()).collect();
    Ok(if names.is_empty() {
        ".".into()
    } else {
        names.join("/")
    })
}

/// The names on the way to `path`, which is meant from `folder`; `None` where it leads out of the root.
pub(crate) fn names_from<'a>(folder: &'a str, path: &'a str) -> Option<Vec<&'a str>> {
    let mut names = Vec::new();
    for name in folder.split('/').chain(path.split('/')) {
        match name {
            "" | "." => (),
            ".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names)
}

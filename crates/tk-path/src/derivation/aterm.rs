//! The file format of derivations, a subset of ATerms.
//!
//! ```text
//! file     = "Derive(" body | "DrvWithVersion(" string "," body      the version is "xp-dyn-drv"
//! body     = outputs "," drvs "," srcs "," platform "," builder "," args "," env ")"
//! outputs  = list of "(" name "," path "," method "," hash ")"        see output.rs
//! drvs     = list of "(" path "," node ")"
//! node     = list of output names
//!          | "(" list of output names "," list of "(" output name "," node ")" ")"
//! srcs     = list of paths
//! args     = list of strings
//! env      = list of "(" name "," value ")"
//! list     = "[" [ item { "," item } ] "]"
//! string   = '"' bytes '"'
//! ```
//! Written: sorted by bytes, apart from args; `\"`, `\\`, `\n`, `\r` and `\t` escaped in builder, args and env, all
//! other bytes and all other strings raw; `DrvWithVersion` only if a node has the second form.
//!
//! Read as Nix does: any order; of repeated entries the first output and the last variable and input derivation stay;
//! a comma may be missing between items and stand before the first; `\x` is `x` for other bytes; what follows the last
//! `)` is not looked at. Paths must be canonical. A node that names nothing is an error, as is the second form of a
//! node below `Derive(`, and more than [`MAX_DEPTH`] nodes in each other.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bstr::ByteSlice;
use memchr::{memchr, memchr2};

use super::{
    Derivation, DerivationError, DerivationErrorKind as Kind, DerivationInputs, DerivationOutput,
    InputOutputs, Inputs,
};
use crate::derived_path::MAX_DEPTH;
use crate::{Algorithm, ContentAddress, Hash, Method, OutputName, References, StoreDir, StorePath};

impl Derivation {
    /// Reads the file of the derivation `name`, which is the name of its path without `.drv`.
    ///
    /// What is read may break rules that derivations in a store keep, see [`Derivation::check_outputs`]; only that a
    /// fixed output has the path of its content address is checked here already. Reading takes memory in proportion
    /// to the file.
    pub fn parse_aterm(
        dir: &StoreDir,
        name: &str,
        file: &[u8],
    ) -> Result<Derivation, DerivationError> {
        let mut parser = AtermParser {
            dir,
            name,
            file,
            at: 0,
            dynamic: false,
            unescaped: Vec::new(),
        };
        parser
            .derivation()
            .map_err(|kind| DerivationError::new(name, kind))
    }
}

impl<I: DerivationInputs> Derivation<I> {
    /// The file, byte for byte as Nix writes it.
    pub fn to_aterm(&self, dir: &StoreDir) -> Result<Vec<u8>, DerivationError> {
        print(self, dir, None, false)
    }

    /// The path of the file: of a text that refers to all inputs.
    pub fn path(&self, dir: &StoreDir) -> Result<StorePath, DerivationError> {
        let hash = Hash::digest(Algorithm::Sha256, &self.to_aterm(dir)?);
        let mut others = self.inputs.srcs().clone();
        others.extend(self.inputs.drvs().keys().cloned());
        let references = References {
            others,
            itself: false,
        };
        let ca = ContentAddress {
            method: Method::Text,
            hash,
        };
        dir.path_of_content(&format!("{}.drv", self.name), &ca, &references)
            .map_err(|error| self.error(error))
    }
}

/// Input derivations by the hashes that stand for them, in hex.
pub(super) type HashedInputs<'a> = BTreeMap<String, BTreeSet<&'a OutputName>>;

/// The file; with `inputs` in place of the input derivations, and with `masked` without output paths, also in the
/// variables that are named like outputs.
pub(super) fn print<I: DerivationInputs>(
    drv: &Derivation<I>,
    dir: &StoreDir,
    inputs: Option<&HashedInputs<'_>>,
    masked: bool,
) -> Result<Vec<u8>, DerivationError> {
    if drv.platform.find_byteset(b"\"\\").is_some() {
        return Err(drv.error(Kind::Platform(drv.platform.clone())));
    }
    let drvs = drv.inputs.drvs();
    let dynamic = drvs.values().any(|node| !node.dynamic.is_empty());
    let mut printer = Printer(if dynamic {
        b"DrvWithVersion(\"xp-dyn-drv\"".to_vec()
    } else {
        b"Derive(".to_vec()
    });
    printer.outputs(drv, dir, masked)?;
    match inputs {
        None => printer.list(drvs, |p, (path, node)| p.input(dir.path(path), node)),
        Some(inputs) => printer.list(inputs, |p, (hash, outputs)| {
            p.group(|p| {
                p.raw(hash);
                p.list(outputs, |p, name| p.raw(name.as_str()));
            });
        }),
    }
    printer.list(drv.inputs.srcs(), |p, path| p.raw(dir.path(path)));
    printer.raw(&drv.platform);
    printer.string(&drv.builder);
    printer.list(&drv.args, |p, arg| p.string(arg));
    printer.list(&drv.env, |p, (name, value)| {
        let hidden = masked && is_output(drv, name);
        p.group(|p| {
            p.string(name);
            p.string(if hidden { b"" } else { value });
        });
    });
    printer.0.push(b')');
    Ok(printer.0)
}

fn is_output<I>(drv: &Derivation<I>, name: &[u8]) -> bool {
    name.to_str()
        .is_ok_and(|name| drv.outputs.contains_key(name))
}

struct Printer(Vec<u8>);

impl Printer {
    fn outputs<I>(
        &mut self,
        drv: &Derivation<I>,
        dir: &StoreDir,
        masked: bool,
    ) -> Result<(), DerivationError> {
        let mut texts = Vec::with_capacity(drv.outputs.len());
        for (name, output) in &drv.outputs {
            let mut strings = output
                .to_strings(dir, &drv.name, name)
                .map_err(|error| drv.error((name.clone(), error)))?;
            if masked {
                strings[0].clear();
            }
            texts.push((name, strings));
        }
        self.list(texts, |p, (name, strings)| {
            p.group(|p| {
                p.raw(name.as_str());
                strings.iter().for_each(|string| p.raw(string));
            });
        });
        Ok(())
    }

    fn input(&mut self, what: impl AsRef<[u8]>, node: &InputOutputs) {
        self.group(|p| {
            p.raw(what);
            let names = |p: &mut Self| p.list(&node.outputs, |p, name| p.raw(name.as_str()));
            if node.dynamic.is_empty() {
                return names(p);
            }
            p.group(|p| {
                names(p);
                p.list(&node.dynamic, |p, (name, node)| {
                    p.input(name.as_str(), node)
                });
            });
        });
    }

    fn list<T>(&mut self, items: impl IntoIterator<Item = T>, mut item: impl FnMut(&mut Self, T)) {
        self.begin(b'[');
        items.into_iter().for_each(|value| item(self, value));
        self.0.push(b']');
    }

    fn group(&mut self, fields: impl FnOnce(&mut Self)) {
        self.begin(b'(');
        fields(self);
        self.0.push(b')');
    }

    fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.begin(b'"');
        self.0.extend_from_slice(bytes.as_ref());
        self.0.push(b'"');
    }

    fn string(&mut self, mut bytes: &[u8]) {
        self.begin(b'"');
        let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'\n' | b'\r' | b'\t');
        while let Some(at) = bytes.iter().position(special) {
            self.0.extend_from_slice(&bytes[..at]);
            let letter = match bytes[at] {
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                other => other,
            };
            self.0.extend_from_slice(&[b'\\', letter]);
            bytes = &bytes[at + 1..];
        }
        self.0.extend_from_slice(bytes);
        self.0.push(b'"');
    }

    /// A comma, unless this is the first in its brackets, and `open`. Strings end in a quote, whatever is in them, so
    /// an opening bracket at the end is one.
    fn begin(&mut self, open: u8) {
        if !matches!(self.0.last(), Some(b'(' | b'[')) {
            self.0.push(b',');
        }
        self.0.push(open);
    }
}

struct AtermParser<'a> {
    dir: &'a StoreDir,
    name: &'a str,
    file: &'a [u8],
    at: usize,
    /// Whether nodes may have the second form.
    dynamic: bool,
    /// The last string that had escapes, without them; kept for its memory.
    unescaped: Vec<u8>,
}

impl<'a> AtermParser<'a> {
    fn derivation(&mut self) -> Result<Derivation, Kind> {
        super::check_name(self.name)?;
        self.head()?;
        let outputs = self.list("[", Self::output)?;
        let drvs = self.list(",[", Self::input_drv)?;
        let srcs = self.list(",[", Self::path)?;
        self.expect(",")?;
        let platform = self.string()?.into_owned().into();
        self.expect(",")?;
        let builder = self.string()?.into_owned().into();
        let args = self.list(",[", |p| Ok(p.string()?.into_owned().into()))?;
        let env = self.list(",[", Self::variable)?;
        self.expect(")")?;
        Ok(Derivation {
            name: self.name.to_owned(),
            // Backwards, because collecting keeps the last of those with one name.
            outputs: outputs.into_iter().rev().collect(),
            inputs: Inputs {
                srcs: srcs.into_iter().collect(),
                drvs: drvs.into_iter().collect(),
            },
            platform,
            builder,
            args,
            env: env.into_iter().collect(),
        })
    }

    fn head(&mut self) -> Result<(), Kind> {
        if self.file.is_empty() {
            return Err(Kind::Empty);
        }
        if self.file.starts_with(b"DrvWithVersion(") {
            self.expect("DrvWithVersion(")?;
            let version = self.string()?;
            if &*version != b"xp-dyn-drv" {
                return Err(Kind::Version(version.into_owned().into()));
            }
            self.dynamic = true;
            return self.expect(",");
        }
        self.expect("Derive(")
    }

    fn output(&mut self) -> Result<(OutputName, DerivationOutput), Kind> {
        self.expect("(")?;
        let name = self.output_name()?;
        let mut strings = [const { Cow::Borrowed("") }; 3];
        for string in &mut strings {
            self.expect(",")?;
            *string = self.text()?;
        }
        self.expect(")")?;
        let strings = strings.each_ref().map(|text| &**text);
        match DerivationOutput::from_strings(self.dir, self.name, &name, strings) {
            Ok(output) => Ok((name, output)),
            Err(error) => Err(Kind::Output(name, error)),
        }
    }

    fn input_drv(&mut self) -> Result<(StorePath, InputOutputs), Kind> {
        self.expect("(")?;
        let path = self.path()?;
        self.expect(",")?;
        let node = self.node(path.as_str(), MAX_DEPTH)?;
        self.expect(")")?;
        Ok((path, node))
    }

    /// `whose` names it in an error.
    fn node(&mut self, whose: &str, depth: usize) -> Result<InputOutputs, Kind> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(Kind::Depth);
        };
        let full = self.dynamic && self.peek() == Some(b'(');
        if full {
            self.expect("(")?;
        }
        let mut node = InputOutputs {
            outputs: self.output_names()?,
            dynamic: BTreeMap::new(),
        };
        if full {
            let inner = self.list(",[", |p| p.inner_node(depth))?;
            node.dynamic = inner.into_iter().collect();
            self.expect(")")?;
        }
        if node.outputs.is_empty() && node.dynamic.is_empty() {
            Err(Kind::NoInputOutputs(whose.to_owned()))
        } else {
            Ok(node)
        }
    }

    fn output_names(&mut self) -> Result<BTreeSet<OutputName>, Kind> {
        const USUAL: &[u8] = b"[\"out\"]";
        if self.rest().starts_with(USUAL) {
            self.at += USUAL.len();
            let mut only = BTreeSet::new();
            only.insert(OutputName::out());
            return Ok(only);
        }
        Ok(self.list("[", Self::output_name)?.into_iter().collect())
    }

    fn inner_node(&mut self, depth: usize) -> Result<(OutputName, InputOutputs), Kind> {
        self.expect("(")?;
        let name = self.output_name()?;
        self.expect(",")?;
        let node = self.node(name.as_str(), depth)?;
        self.expect(")")?;
        Ok((name, node))
    }

    fn variable(&mut self) -> Result<(bstr::BString, bstr::BString), Kind> {
        self.expect("(")?;
        let name = self.string()?.into_owned();
        self.expect(",")?;
        let value = self.string()?.into_owned();
        self.expect(")")?;
        Ok((name.into(), value.into()))
    }

    /// `open`, then `item` until the closing bracket; as loose about commas as Nix is.
    fn list<T>(
        &mut self,
        open: &'static str,
        mut item: impl FnMut(&mut Self) -> Result<T, Kind>,
    ) -> Result<Vec<T>, Kind> {
        self.expect(open)?;
        let mut items = Vec::new();
        loop {
            match self.peek() {
                Some(b']') => {
                    self.at += 1;
                    return Ok(items);
                }
                Some(b',') => self.at += 1,
                _ => {}
            }
            items.push(item(self)?);
        }
    }

    fn path(&mut self) -> Result<StorePath, Kind> {
        if let Some(path) = self.usual_path() {
            return Ok(path);
        }
        let text = self.text()?;
        Ok(self.dir.parse_canonical(&text)?)
    }

    /// A path without escapes; `None`, and nothing is read, where one has to look closer.
    fn usual_path(&mut self) -> Option<StorePath> {
        let inside = self.rest().strip_prefix(b"\"")?;
        let inside = inside.strip_prefix(self.dir.as_str().as_bytes())?;
        let inside = inside.strip_prefix(b"/")?;
        let end = memchr(b'"', inside)?;
        let path = StorePath::parse(std::str::from_utf8(&inside[..end]).ok()?).ok()?;
        self.at = self.file.len() - inside.len() + end + 1;
        Some(path)
    }

    fn output_name(&mut self) -> Result<OutputName, Kind> {
        let text = self.text()?;
        Ok(OutputName::parse(&text)?)
    }

    fn text(&mut self) -> Result<Cow<'a, str>, Kind> {
        let at = self.at;
        let text = match self.string()? {
            Cow::Borrowed(bytes) => bytes.to_str().ok().map(Cow::Borrowed),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
        };
        text.ok_or_else(|| Kind::NotUtf8(format!("the string at byte {at} of its file")))
    }

    fn string(&mut self) -> Result<Cow<'a, [u8]>, Kind> {
        let start = self.at;
        self.expect("\"")?;
        let rest = self.rest();
        match special(rest) {
            Some(end) if rest[end] == b'"' => {
                self.at += end + 1;
                Ok(Cow::Borrowed(&rest[..end]))
            }
            Some(_) if self.unescape() => Ok(Cow::Owned(self.unescaped.clone())),
            _ => Err(Kind::Unterminated(start)),
        }
    }

    /// The rest of a string, which has escapes. False when it has no end.
    fn unescape(&mut self) -> bool {
        self.unescaped.clear();
        loop {
            let rest = self.rest();
            let Some(end) = special(rest) else {
                return false;
            };
            self.unescaped.extend_from_slice(&rest[..end]);
            self.at += end + 1;
            if rest[end] == b'"' {
                return true;
            }
            let Some(letter) = self.peek() else {
                return false;
            };
            self.at += 1;
            self.unescaped.push(match letter {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            });
        }
    }

    fn rest(&self) -> &'a [u8] {
        &self.file[self.at..]
    }

    fn peek(&self) -> Option<u8> {
        self.file.get(self.at).copied()
    }

    fn expect(&mut self, expected: &'static str) -> Result<(), Kind> {
        if self.rest().starts_with(expected.as_bytes()) {
            self.at += expected.len();
            return Ok(());
        }
        let at = self.at;
        Err(Kind::Syntax { at, expected })
    }
}

/// Where the first quote or backslash is. Most strings are shorter than what a vectorised search costs to begin, so
/// that eight bytes at a time are looked at first.
fn special(bytes: &[u8]) -> Option<usize> {
    const WORD: usize = size_of::<u64>();
    const NEAR: usize = 4 * WORD;
    for (at, word) in bytes.chunks_exact(WORD).take(NEAR / WORD).enumerate() {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        let found = zeros(word ^ every(b'"')) | zeros(word ^ every(b'\\'));
        if found != 0 {
            return Some(at * WORD + found.trailing_zeros() as usize / 8);
        }
    }
    let near = NEAR.min(bytes.len() / WORD * WORD);
    Some(near + memchr2(b'"', b'\\', &bytes[near..])?)
}

/// The highest bit of each byte that is zero; bits above the lowest of these may be set for other bytes too.
const fn zeros(word: u64) -> u64 {
    word.wrapping_sub(every(1)) & !word & every(0x80)
}

const fn every(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Result<Derivation, DerivationError> {
        Derivation::parse_aterm(&StoreDir::default(), "x", text)
    }

    fn reprint(text: &[u8]) -> Vec<u8> {
        let drv = parse(text).unwrap_or_else(|e| panic!("{}: {e}", text.as_bstr()));
        drv.to_aterm(&StoreDir::default()).expect("printable")
    }

    #[test]
    fn canonical_files() {
        for text in [
            r#"Derive([],[],[],"","",[],[])"#,
            r#"Derive([("dev","S-a","",""),("out","S-b","","")],[("S-d.drv",["dev","out"])],["S-a","S-b"],"p","b",["z","","a"],[("a","\"\\\n\r\tü"),("b","")])"#,
            r#"DrvWithVersion("xp-dyn-drv",[("out","","","")],[("S-c.drv",["x"]),("S-d.drv",([],[("a",([],[("b",["c"])])),("e",["f","g"])]))],[],"p","b",[],[])"#,
        ] {
            let text = text.replace('S', S);
            assert_eq!(reprint(text.as_bytes()).as_bstr(), text.as_bytes());
        }
        let raw = b"Derive([],[],[],\"p\xff\",\"b\xfe\",[\"\x00\"],[(\"\xc3\",\"\xe9\")])";
        assert_eq!(reprint(raw).as_bstr(), raw.as_bstr());
    }

    /// What Nix takes too, and what it becomes.
    #[test]
    fn lenient() {
        let canonical = r#"Derive([("out","S-b","","")],[("S-d.drv",["a","b"])],["S-a","S-b"],"p","b",[],[("a","2"),("b","1")])"#;
        for text in [
            &format!("{canonical} and more )"),
            // Any order; the first output, the last variable and derivation; sets merged.
            r#"Derive([("out","S-b","",""),("out","S-c","","")],[("S-d.drv",["c"]),("S-d.drv",["b","a","b"])],["S-b","S-a","S-b"],"p","b",[],[("b","1"),("a","1"),("a","2")])"#,
            // Commas, and escapes that need not be.
            r#"Derive([,("out","S-b","","")],[,("S-d.drv",["a""b"])],["S-a""S-b"],"\p","b",[],[("\a","\2")("b","1")])"#,
            // A hash without an algorithm means nothing.
            &canonical.replace(r#"-b","","")"#, r#"-b","","zz")"#),
        ] {
            let (text, canonical) = (text.replace('S', S), canonical.replace('S', S));
            assert_eq!(
                reprint(text.as_bytes()).as_bstr(),
                canonical.as_bytes(),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses() {
        for (text, says) in [
            ("", "its file is empty"),
            ("D", "byte 0 of its file: Derive( is expected"),
            ("Derive", "byte 0 of its file: Derive( is expected"),
            (
                r#"DrvWithVersion("x",[],[],[],"","",[],[])"#,
                "unknown version \"x\"",
            ),
            (
                r#"Derive([],[],[],"p","b",[],[]"#,
                "byte 29 of its file: ) is expected",
            ),
            (
                r#"Derive([],[],[],"p","b",["#,
                "byte 25 of its file: \" is expected",
            ),
            (
                r#"Derive([],[],[],"p","b",["a",])"#,
                "byte 29 of its file: \" is expected",
            ),
            (
                r#"Derive([],[],[],"p","b",[,,"a"],[])"#,
                "byte 26 of its file: \" is expected",
            ),
            (
                r#"Derive([],[],[],"p","b",["a],[])"#,
                "the string at byte 25 of its file does not end",
            ),
            (
                r#"Derive([],[],[],"p","b\"#,
                "the string at byte 20 of its file does not end",
            ),
            (
                r#"Derive([],[],[],"p","b\n"#,
                "the string at byte 20 of its file does not end",
            ),
            (
                r#"Derive([],[],["/nix/store/x"],"p","b",[],[])"#,
                "not a store path",
            ),
            (
                r#"Derive([],[],["S-a/"],"p","b",[],[])"#,
                "not a store path",
            ),
            (
                r#"Derive([],[("S-d.drv",[])],[],"p","b",[],[])"#,
                "no output is named of its input",
            ),
            (
                r#"Derive([],[("S-d.drv",(["a"],[("a",["b"])]))],[],"p","b",[],[])"#,
                "[ is expected",
            ),
            (
                r#"Derive([("a/b","","","")],[],[],"p","b",[],[])"#,
                "\"a/b\" is not an output name",
            ),
            (
                r#"Derive([("out","","x","")],[],[],"p","b",[],[])"#,
                "output out: \"x\" is not a content address",
            ),
            (
                r#"Derive([("out","",""],[],[],"p","b",[],[])"#,
                "byte 20 of its file: , is expected",
            ),
        ] {
            let text = text.replace('S', S);
            let error = parse(text.as_bytes()).expect_err(&text).to_string();
            assert!(
                error.starts_with("derivation \"x\": ") && error.contains(says),
                "{error} / {says}"
            );
        }
        let error = parse(b"Derive([],[],[\"\xff\"],\"\",\"\",[],[])").expect_err("raw path");
        assert_eq!(
            error.kind(),
            &Kind::NotUtf8("the string at byte 14 of its file".into())
        );
        for name in ["", ".", "a/b", &"a".repeat(212)] {
            let file = b"Derive([],[],[],\"\",\"\",[],[])";
            assert!(Derivation::parse_aterm(&StoreDir::default(), name, file).is_err());
        }
    }

    #[test]
    fn depth() {
        let file = |depth: usize| {
            let (open, close) = ("([],[(\"a\",".repeat(depth), ")])".repeat(depth));
            let node = format!("(\"{S}-d.drv\",{open}[\"a\"]{close})");
            format!("DrvWithVersion(\"xp-dyn-drv\",[],[{node}],[],\"\",\"\",[],[])")
        };
        let text = file(MAX_DEPTH - 1);
        assert_eq!(reprint(text.as_bytes()).as_bstr(), text.as_bytes());
        for depth in [MAX_DEPTH, 1 << 18] {
            let error = parse(file(depth).as_bytes()).expect_err("too deep");
            assert_eq!(error.kind(), &Kind::Depth);
        }
    }

    #[test]
    fn platforms_that_no_file_can_hold() {
        let mut drv = parse(br#"Derive([],[],[],"p","b",[],[])"#).expect("derivation");
        for platform in ["a\"b", "a\\b"] {
            drv.platform = platform.into();
            let error = drv.to_aterm(&StoreDir::default()).expect_err(platform);
            assert_eq!(error.kind(), &Kind::Platform(platform.into()));
        }
    }

    proptest! {
        #[test]
        fn the_first_special_byte(bytes in prop::collection::vec(prop::sample::select(b"ab#!]\xa2\xdc\"\\".as_slice()), 0..80)) {
            let one_by_one = bytes.iter().position(|byte| b"\"\\".contains(byte));
            prop_assert_eq!(special(&bytes), one_by_one);
            let without: Vec<_> = bytes.iter().copied().filter(|byte| !b"\"\\".contains(byte)).collect();
            prop_assert_eq!(special(&without), None);
            let last = [&without[..], b"\\"].concat();
            prop_assert_eq!(special(&last), Some(without.len()));
        }

        #[test]
        fn round_trip(drv in crate::derivation::arbitrary::derivation()) {
            let dir = StoreDir::default();
            let text = drv.to_aterm(&dir).expect("printable");
            for end in (0..text.len()).step_by(7) {
                prop_assert!(Derivation::parse_aterm(&dir, &drv.name, &text[..end]).is_err());
            }
            prop_assert_eq!(Derivation::parse_aterm(&dir, &drv.name, &text), Ok(drv));
        }

        #[test]
        fn never_panics(bytes: Vec<u8>, at in 0usize..200, byte: u8) {
            let _ = parse(&bytes);
            let mut text = r#"DrvWithVersion("xp-dyn-drv",[("out","S-b","","")],[("S-d.drv",(["a"],[("b",["c"])]))],["S-a"],"p","b",["\n"],[("a","b")])"#
                .replace('S', S)
                .into_bytes();
            let at = at % text.len();
            text[at] = byte;
            if let Ok(drv) = parse(&text)
                && let Ok(printed) = drv.to_aterm(&StoreDir::default())
            {
                prop_assert_eq!(parse(&printed), Ok(drv));
            }
            let _ = parse(&text[..at]);
        }
    }

    const S: &str = "/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9";
}

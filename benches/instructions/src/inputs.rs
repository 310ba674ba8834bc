//! What the codecs work on: the same bytes on every machine, and about as large as the real things.

use tk_nar::Encoder;
use tk_narinfo::{Compression, NarInfo, PathInfo, SIGNATURE_BYTES, Signature};
use tk_path::{
    Algorithm, Derivation, DerivationOutput, Hash, HashPart, InputOutputs, Inputs, NarHash,
    OutputName, StorePath, nix32,
};

/// `folders` folders with 50 files of 0 to 3 kB each: headers weigh as in a tree of sources.
pub fn nar(folders: usize) -> Vec<u8> {
    let contents = vec![b'x'; 3000];
    let mut out = Encoder::new(Vec::new());
    let mut tree = || {
        out.directory()?;
        for folder in 0..folders {
            out.entry(format!("folder-{folder:03}").as_bytes())?;
            out.directory()?;
            for file in 0..50 {
                out.entry(format!("file-{file:02}").as_bytes())?;
                let size = (folder * 50 + file) * 31 % contents.len();
                out.file(file % 7 == 0, &contents[..size])?;
            }
            out.leave()?;
        }
        out.leave()
    };
    tree().expect("the tree is valid");
    out.finish().expect("the tree is whole")
}

/// The `n`-th path.
pub fn path(n: u32) -> StorePath {
    let name = format!("some-library-1.{n}.0");
    StorePath::from_digest(&candidate(n).digest(), &name).expect("a valid name")
}

/// The `n`-th path, which has thirty references and a signature, like a program.
pub fn path_info(n: u32) -> PathInfo {
    let hash = Hash::digest(Algorithm::Sha256, &n.to_le_bytes());
    let hash = NarHash::try_from(hash).expect("it is SHA-256");
    let signature = Signature::new("cache.example.org-1", [n as u8; SIGNATURE_BYTES]);
    let deriver = StorePath::from_digest(&candidate(!n).digest(), "some-library.drv");
    PathInfo {
        deriver: deriver.ok(),
        references: (n..n + 30).map(path).collect(),
        registration_time: 1_700_000_000 + u64::from(n),
        signatures: [signature].into(),
        ..PathInfo::new(path(n), hash, 226_560 + u64::from(n))
    }
}

/// The narinfo of a path like [`path_info`]'s: about 2 kB.
pub fn narinfo(n: u32) -> NarInfo {
    let info = path_info(n);
    let file = Hash::digest(Algorithm::Sha256, b"a file");
    let url = NarInfo::url_for(&file, Compression::Xz);
    NarInfo {
        file_hash: Some(file),
        file_size: Some(50_364),
        ..NarInfo::new(info, url, Compression::Xz)
    }
}

/// A derivation with two outputs, forty inputs and fifty variables, one of them a script: about 10 kB.
pub fn derivation() -> Derivation {
    let output = |name: &str| name.parse::<OutputName>().expect("a valid name");
    let out = |name: &str, n| (output(name), DerivationOutput::InputAddressed(path(n)));
    let drv = |n| StorePath::from_digest(&candidate(n).digest(), &format!("input-{n}.drv"));
    let inputs = (100..140).map(|n| {
        let outputs = InputOutputs {
            outputs: [output("out")].into(),
            ..InputOutputs::default()
        };
        (drv(n).expect("a valid name"), outputs)
    });
    let variable = |n: u32| {
        let value = format!("/nix/store/{}/lib -I\"{n}\"", path(n));
        (format!("variable{n}").into(), value.into())
    };
    let script =
        "set -e\nfor f in \"$src\"/*; do\n\tinstall -D \"$f\" \"$out/share\"\ndone\n".repeat(20);
    Derivation {
        name: "program-1.0".into(),
        outputs: [out("out", 1), out("dev", 2)].into(),
        inputs: Inputs {
            drvs: inputs.collect(),
            srcs: (200..210).map(path).collect(),
        },
        platform: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec!["-e".into(), "/builder.sh".into()],
        env: (0..49)
            .map(variable)
            .chain([("script".into(), script.into())])
            .collect(),
    }
}

/// The `n`-th of many hash parts that have nothing in common.
pub fn candidate(n: u32) -> HashPart {
    let mut digest = [0x5a; 20];
    digest[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_le_bytes());
    HashPart::from_digest(&digest)
}

/// Bytes like those of compressed files.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// Nothing but nix32 digits: the worst that a scanner can meet.
pub fn digits(size: usize) -> Vec<u8> {
    let digit = |byte: u8| nix32::ALPHABET[usize::from(byte % 32)];
    noise(size).into_iter().map(digit).collect()
}

/// `count` paths, each with the NAR [`small_nar`] and up to ten of those before it as references: the last one's closure is
/// all of them.
pub fn closure(count: u32) -> Vec<PathInfo> {
    let nar = small_nar();
    let hash = NarHash::try_from(Hash::digest(Algorithm::Sha256, &nar)).expect("it is SHA-256");
    let info = |n: u32| PathInfo {
        references: (n.saturating_sub(10)..n).map(path).collect(),
        ..PathInfo::new(path(n), hash, nar.len() as u64)
    };
    (0..count).map(info).collect()
}

/// One file with a few bytes in it.
pub fn small_nar() -> Vec<u8> {
    let mut out = Encoder::new(Vec::new());
    out.file(false, SMALL_FILE).expect("it is valid");
    out.finish().expect("it is whole")
}

/// What is in the file of [`small_nar`].
pub const SMALL_FILE: &[u8] = b"small\n";

use super::*;
use proptest::prelude::*;
use std::io::{BufRead, BufReader, Read};
pub(super) use tk_store::conformance::file_nar as small_nar;

const ALL: [Compression; 6] = [
    Compression::None,
    Compression::Zstd,
    Compression::Xz,
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Br,
];

/// All but `none`, which has no end mark.
const MARKED: [Compression; 5] = [ALL[1], ALL[2], ALL[3], ALL[4], ALL[5]];

fn threads(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn quick(compression: Compression, threads: usize) -> Compressor {
    let level = (compression != Compression::None).then_some(1);
    Compressor::new(compression, level, self::threads(threads)).unwrap()
}

fn encode(compressor: &Compressor, input: &[u8], piece: usize, size: Option<u64>) -> Vec<u8> {
    let mut encoder = compressor.encoder(Vec::new(), size).unwrap();
    for piece in input.chunks(piece) {
        encoder.write_all(piece).unwrap();
    }
    encoder.finish().unwrap()
}

pub(super) fn decode(compression: Compression, input: impl BufRead + Send) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder(compression, input).unwrap().read_to_end(&mut out)?;
    Ok(out)
}

/// Bytes that compress by about a half.
pub(super) fn sample(n: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if state >> 31 == 0 {
            b'a'
        } else {
            (state >> 16) as u8
        }
    };
    (0..n).map(|_| next()).collect()
}

pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

/// Gives one byte a read.
pub(super) struct Short<'a>(pub(super) &'a [u8]);

impl Read for Short<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.0.len().min(out.len()).min(1);
        self.0.read(&mut out[..n])
    }
}

#[test]
fn what_is_encoded_comes_back() {
    for compression in ALL {
        for size in [0, 1, 70_000, 5_000_000] {
            let input = sample(size);
            for (threads, hint) in [(1, None), (2, Some(size as u64)), (3, Some(17))] {
                let packed = encode(&quick(compression, threads), &input, 65_521, hint);
                let got = decode(compression, &packed[..]).unwrap();
                assert!(
                    got == input,
                    "{compression}, {size} bytes, {threads} threads"
                );
            }
        }
        let packed = encode(&quick(compression, 2), &sample(20_000), 1, None);
        let got = decode(compression, BufReader::with_capacity(1, Short(&packed))).unwrap();
        assert!(got == sample(20_000), "{compression}, byte by byte");
    }
}

#[test]
fn default_levels_are_those_of_nix() {
    // What libarchive and the Brotli library do when they are told nothing.
    let input = sample(200_000);
    for (compression, level) in [
        (Compression::Zstd, 3),
        (Compression::Xz, 6),
        (Compression::Gzip, 6),
        (Compression::Bzip2, 9),
        (Compression::Br, 11),
    ] {
        let default = Compressor::new(compression, None, threads(1)).unwrap();
        let explicit = Compressor::new(compression, Some(level), threads(1)).unwrap();
        let default = encode(&default, &input, 4096, None);
        assert!(
            default == encode(&explicit, &input, 4096, None),
            "{compression}"
        );
    }
}

#[test]
fn levels_out_of_range_are_refused() {
    for (compression, low, high) in [
        (Compression::Zstd, -7, 22),
        (Compression::Xz, 0, 9),
        (Compression::Gzip, 0, 9),
        (Compression::Bzip2, 1, 9),
        (Compression::Br, 0, 11),
    ] {
        for level in [low - 1, high + 1, i32::MIN, i32::MAX] {
            let error = Compressor::new(compression, Some(level), threads(1)).unwrap_err();
            let says =
                format!("{compression} has no compression level {level}; choose {low} to {high}");
            assert_eq!(error.to_string(), says);
        }
        for level in [low, high] {
            Compressor::new(compression, Some(level), threads(1)).unwrap();
        }
    }
    // As Nix: where there are no levels they are not looked at.
    Compressor::new(Compression::None, Some(99), threads(1)).unwrap();
}

#[test]
fn other_compressions_are_named() {
    for compression in Compression::ALL {
        let written = ALL.contains(&compression);
        let made = Compressor::new(compression, None, threads(1));
        assert_eq!(made.is_ok(), written, "{compression}");
        let read = decoder(compression, &b""[..]).err();
        let also_read = [
            Compression::Compress,
            Compression::Lz4,
            Compression::Lzip,
            Compression::Lzma,
        ]
        .contains(&compression);
        assert_eq!(read.is_none(), written || also_read, "{compression}");
        if let Some(error) = read {
            assert!(
                error
                    .to_string()
                    .contains(&format!("compression {compression} is not"))
            );
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    for compression in MARKED {
        let packed = encode(&quick(compression, 1), &sample(3_000), 1 << 20, None);
        for cut in 0..packed.len() {
            let error = decode(compression, &packed[..cut]).unwrap_err();
            let kind = error.kind();
            assert_eq!(
                kind,
                io::ErrorKind::UnexpectedEof,
                "{compression} cut at {cut}: {error}"
            );
        }
    }
}

/// Nix reads, and refuses, the same (zeros by fours are padding to xz, so there are others here): libarchive stops behind the last member of some formats.
#[test]
fn bytes_behind_the_end() {
    let content = sample(3_000);
    let mut all = Vec::new();
    for compression in MARKED {
        all.push((
            compression,
            encode(&quick(compression, 1), &content, 1 << 20, None),
        ));
    }
    all.push((Compression::Lzip, hex(LZIP)));
    all.push((Compression::Lzma, hex(LZMA)));
    for (compression, packed) in all {
        let content = decode(compression, &packed[..]).unwrap();
        let strict = matches!(compression, Compression::Zstd | Compression::Xz);
        for rest in [
            &b"x"[..],
            b"garbage behind the end",
            &[0; 3],
            &[0; 510],
            &[0],
        ] {
            let longer = [&packed[..], rest].concat();
            let short = BufReader::with_capacity(1, Short(&longer));
            for got in [decode(compression, &longer[..]), decode(compression, short)] {
                match got {
                    Ok(got) => assert!(got == content && !strict, "{compression}, {rest:?}"),
                    Err(error) => assert!(strict, "{compression}, {rest:?}: {error}"),
                }
            }
        }
        // Half a member is one, but where there is only one.
        let half = [&packed[..], &packed[..packed.len() / 2]].concat();
        let only_one = matches!(compression, Compression::Br | Compression::Lzma);
        assert_eq!(
            decode(compression, &half[..]).is_ok(),
            only_one,
            "{compression}"
        );
    }
}

/// `hi` and a line end, as lzip and `xz --format=lzma` pack it.
const LZIP: &str = "4c5a4950010c00341a3d502bdffffff80200007a7a6fed03000000000000002700000000000000";
const LZMA: &str = "5d00008000ffffffffffffffff00341a3d502bdffffff8020000";

#[test]
fn nars_that_are_packed_several_times() {
    let nar = small_nar(b"hi");
    let unpack = |compression, packed: &[u8]| {
        let mut out = Vec::new();
        let read = nar_decoder(compression, BufReader::with_capacity(1, Short(packed)));
        read?.read_to_end(&mut out).map(|_| out)
    };
    for compression in ALL {
        let compressor = quick(compression, 1);
        let mut packed = nar.to_vec();
        for layers in 1..=5 {
            packed = encode(&compressor, &packed, 1 << 20, None);
            let got = unpack(compression, &packed);
            // No library counts the layers of brotli, and the fifth is one too many.
            let all = compression != Compression::Br && layers < 5 || layers == 1;
            let all = all || compression == Compression::None;
            assert_eq!(
                got.is_ok_and(|got| got == nar),
                all,
                "{compression}, {layers} layers"
            );
        }
        // Cut off within the inner layer.
        let inner = encode(&compressor, &nar, 1 << 20, None);
        let outer = encode(&compressor, &inner[..inner.len() - 1], 1 << 20, None);
        if !matches!(compression, Compression::None | Compression::Br) {
            assert!(unpack(compression, &outer).is_err(), "{compression}");
        }
    }
    // Another way of packing below is content, as the narinfo says.
    let gzip = encode(&quick(Compression::Gzip, 1), &nar, 1 << 20, None);
    let zstd = encode(&quick(Compression::Zstd, 1), &gzip, 1 << 20, None);
    assert_eq!(unpack(Compression::Zstd, &zstd).unwrap(), gzip);
}

#[cfg(feature = "http")]
#[test]
fn deflate_with_and_without_its_header() {
    let content = sample(70_000);
    let level = flate2::Compression::fast();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), level);
    zlib.write_all(&content).unwrap();
    let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), level);
    raw.write_all(&content).unwrap();
    for packed in [zlib.finish().unwrap(), raw.finish().unwrap()] {
        let inflate = |packed: &[u8]| {
            let mut out = Vec::new();
            let input = BufReader::with_capacity(7, Short(packed));
            deflate_decoder(input).read_to_end(&mut out).map(|_| out)
        };
        assert!(inflate(&packed).unwrap() == content);
        assert!(inflate(&[&packed[..], b"more"].concat()).unwrap() == content);
        for cut in [0, 1, 2, packed.len() / 2, packed.len() - 1] {
            let error = inflate(&packed[..cut]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }
    let mut garbage = Vec::new();
    assert!(
        deflate_decoder(&b"\xff\xff\xff\xff"[..])
            .read_to_end(&mut garbage)
            .is_err()
    );
}

#[test]
fn frames_follow_each_other() {
    let (a, b) = (sample(3_000), sample(70_000));
    for compression in [
        Compression::Zstd,
        Compression::Xz,
        Compression::Gzip,
        Compression::Bzip2,
    ] {
        let compressor = quick(compression, 1);
        let first = encode(&compressor, &a, 100, None);
        let second = encode(&compressor, &b, 100, None);
        let both = decode(compression, &[first, second].concat()[..]).unwrap();
        assert!(both == [&a[..], &b].concat(), "{compression}");
    }
    // A frame of another program's data is passed over, wherever it is.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'a', b'b', b'c'];
    let packed = encode(&quick(Compression::Zstd, 1), &a, 100, None);
    let around = [&skippable[..], &packed, &skippable, &packed, &skippable].concat();
    assert!(decode(Compression::Zstd, &around[..]).unwrap() == [&a[..], &a].concat());
}

#[test]
fn zstd_is_cut_into_frames() {
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let frame = zstd_frame(1);
    for (size, frames) in [(0, 1), (1, 1), (frame, 1), (frame + 1, 2), (3 * frame, 3)] {
        let packed = encode(&quick(Compression::Zstd, 2), &sample(size), 1 << 16, None);
        let found = packed.windows(4).filter(|w| *w == magic).count();
        assert_eq!(found, frames, "{size} bytes");
    }
}

#[test]
fn many_encoders_share_the_workers() {
    let compressor = quick(Compression::Zstd, 2);
    let input = sample(9 << 20);
    let want = encode(&compressor, &input, 1 << 16, None);
    std::thread::scope(|scope| {
        for piece in [1 << 12, 100_003, 1 << 20, 5 << 20, 9 << 20, 77_777] {
            let (compressor, input, want) = (&compressor, &input, &want);
            scope.spawn(move || assert!(encode(compressor, input, piece, None) == *want));
        }
    });
}

#[test]
fn a_failing_output_is_told() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let n = bytes.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for compression in ALL {
        let compressor = quick(compression, 2);
        for size in [1_000, 5 << 20] {
            let input = sample(size);
            let enough = encode(&compressor, &input, 1 << 16, None).len();
            for room in [0, 10, enough / 2, enough - 1] {
                let mut encoder = compressor.encoder(Full(room), None).unwrap();
                let written = encoder.write_all(&input);
                let error = written
                    .and_then(|()| encoder.finish().map(drop))
                    .unwrap_err();
                let kind = error.kind();
                assert_eq!(
                    kind,
                    io::ErrorKind::StorageFull,
                    "{compression}, {room} of {enough}"
                );
            }
        }
        // What was under way when an encoder failed is not in the way of the next.
        assert_eq!(
            decode(compression, &encode(&compressor, b"next", 1, None)[..]).unwrap(),
            b"next"
        );
    }
}

#[test]
fn xz_memory_is_planned() {
    let xz = |level| Compressor::new(Compression::Xz, Some(level), threads(2)).unwrap();
    for (level, size, most) in [
        // It is the workers', whatever the number of encoders.
        (6, Some(4 << 30), 2 << 20),
        (6, None, 2 << 20),
        (9, Some(1000), 2 << 20),
        // Hardly more than a power of two.
        (9, Some((2 << 20) + 9), 44 << 20),
        (9, Some(4 << 30), 700 << 20),
        (9, None, 700 << 20),
    ] {
        let memory = xz(level).memory(size);
        assert!(
            memory > 0 && memory <= most,
            "{size:?}, level {level}: {memory} bytes"
        );
    }
}

#[test]
fn xz_is_cut_into_streams() {
    let magic = [0xfd, b'7', b'z', b'X', b'Z', 0];
    let stream = 4 << 20;
    for (size, streams) in [(0, 1), (1, 1), (stream, 1), (stream + 1, 2)] {
        let input = sample(size);
        let packed = encode(&quick(Compression::Xz, 2), &input, 1 << 16, None);
        let found = packed.windows(6).filter(|w| *w == magic).count();
        assert_eq!(found, streams, "{size} bytes");
        // Whoever packs it, and whatever is known: one name stands for one content.
        for (threads, known) in [(1, Some(size as u64)), (3, Some(17))] {
            let again = encode(&quick(Compression::Xz, threads), &input, 1 << 20, known);
            assert!(again == packed, "{size} bytes, {threads} threads");
        }
        let encoding = |known| quick(Compression::Xz, 1).encoding(known);
        assert_eq!(encoding(None), encoding(Some(size as u64)));
    }
}

#[test]
fn xz_loses_nothing_by_knowing_the_size() {
    let xz = Compressor::new(Compression::Xz, Some(7), threads(1)).unwrap();
    for size in [0, 1, 4_095, 4_097, 70_000, 300_001] {
        let half = sample(size / 2);
        // The second half is found at the greatest distance.
        let input = [&half[..], &half].concat();
        let unknown = encode(&xz, &input, 4096, None).len();
        let known = encode(&xz, &input, 4096, Some(input.len() as u64)).len();
        assert!(known <= unknown + 16, "{size}: {known}, {unknown}");
    }
}

#[test]
fn windows_beyond_the_limit_are_refused() {
    // A frame header that asks for 2 GiB, with one empty last block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    assert!(decode(Compression::Zstd, &frame[..]).is_err());
    let small = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00, 0x01, 0x00, 0x00];
    assert_eq!(decode(Compression::Zstd, &small[..]).unwrap(), b"");
    // An .lzma header: properties, dictionary of 2 GiB, size unknown; then nothing.
    let mut lzma = vec![0x5d, 0, 0, 0, 0x80];
    lzma.extend([0xff; 8]);
    lzma.extend([0; 32]);
    let error = decode(Compression::Lzma, &lzma[..]).unwrap_err();
    assert_ne!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
}

#[test]
fn a_bomb_is_pulled_not_pushed() {
    for compression in MARKED {
        let bomb = encode(&quick(compression, 1), &vec![0; 64 << 20], 1 << 20, None);
        assert!(bomb.len() < 1 << 20, "{compression}");
        let mut start = [1; 1000];
        let mut decoder = decoder(compression, &bomb[..]).unwrap();
        decoder.read_exact(&mut start).unwrap();
        assert_eq!(start, [0; 1000], "{compression}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_pieces_come_back(
        bytes in proptest::collection::vec(any::<u8>(), 0..50_000),
        pieces in proptest::collection::vec(1usize..9_000, 1..8),
        which in 0..ALL.len(),
    ) {
        let compressor = quick(ALL[which], 2);
        let mut encoder = compressor.encoder(Vec::new(), None).unwrap();
        let mut rest = &bytes[..];
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(rest.len().min(*piece));
            encoder.write_all(now).unwrap();
            rest = later;
        }
        let packed = encoder.finish().unwrap();
        let input = BufReader::with_capacity(pieces[0], &packed[..]);
        prop_assert_eq!(decode(ALL[which], input).unwrap(), bytes);
    }

    #[test]
    fn any_input_is_an_answer(
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
        which in 0..Compression::ALL.len(),
        flip in any::<proptest::sample::Index>(),
    ) {
        let compression = Compression::ALL[which];
        if let Ok(decoder) = decoder(compression, &bytes[..]) {
            let _ = decoder.take(1 << 20).read_to_end(&mut Vec::new());
        }
        if ALL.contains(&compression) && compression != Compression::None {
            let mut packed = encode(&quick(compression, 1), &bytes, 100, None);
            let at = flip.index(packed.len());
            packed[at] ^= 0x10;
            let _ = decoder(compression, &packed[..]).unwrap().take(1 << 20).read_to_end(&mut Vec::new());
        }
    }
}

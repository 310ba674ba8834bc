//! Derived paths and outputs specs that are accepted are printed, in both forms and as JSON, as what means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_path::{
    DerivedPath, ExtendedOutputsSpec, OutputsSpec, Placeholder, SingleDerivedPath, StoreDir,
};

fuzz_target!(|text: &str| {
    let dir = StoreDir::default();
    let parsed = [
        DerivedPath::parse(&dir, text),
        DerivedPath::parse_legacy(&dir, text),
    ];
    for path in parsed.into_iter().flatten() {
        let modern = path.display(&dir).to_string();
        assert_eq!(DerivedPath::parse(&dir, &modern).as_ref(), Ok(&path));
        let legacy = path.display_legacy(&dir).to_string();
        assert_eq!(DerivedPath::parse_legacy(&dir, &legacy).as_ref(), Ok(&path));
        assert_eq!(DerivedPath::from_json(&path.to_json()), Ok(path));
    }
    if let Ok(path) = SingleDerivedPath::parse(&dir, text) {
        assert_eq!(
            SingleDerivedPath::from_json(&path.to_json()).as_ref(),
            Ok(&path)
        );
        if let SingleDerivedPath::Built { drv, output } = &path {
            let text = Placeholder::built(drv, output).to_string();
            assert_eq!(text.len(), Placeholder::LEN);
        }
        let modern = DerivedPath::from(path).display(&dir).to_string();
        assert!(DerivedPath::parse(&dir, &modern).is_ok(), "{modern}");
    }
    if let Ok(spec) = text.parse::<OutputsSpec>() {
        assert_eq!(spec.to_string().parse().as_ref(), Ok(&spec));
        assert_eq!(OutputsSpec::from_json(&spec.to_json()), Ok(spec));
    }
    if let Ok((prefix, spec)) = ExtendedOutputsSpec::parse(text) {
        let whole = format!("{prefix}{spec}");
        assert_eq!(ExtendedOutputsSpec::parse(&whole), Ok((prefix, spec)));
    }
    if let Ok(value) = serde_json::from_str(text) {
        let _ = DerivedPath::from_json(&value).map(|path| path.to_json());
        let _ = SingleDerivedPath::from_json(&value).map(|path| path.to_json());
        let _ = OutputsSpec::from_json(&value).map(|spec| spec.to_json());
    }
});

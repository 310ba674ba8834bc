//! What crates need of nixpkgs: C libraries and programs that build them.
//!
//! The names of nixpkgs are those of release 26.05. Where a crate brings the code of its library along unless
//! it finds it (`libz-sys`), the library of nixpkgs is still given to it: it is the one that gets security
//! updates.

/// What a crate needs.
pub struct CrateNeeds {
    /// The attributes of nixpkgs that go into `buildInputs`.
    pub libraries: &'static [&'static str],
    /// The attributes of nixpkgs that go into `nativeBuildInputs`.
    pub tools: &'static [&'static str],
}

/// What `name` needs; `None` where nobody knows.
pub fn crate_needs(name: &str) -> Option<CrateNeeds> {
    let (_, libraries, tools) = CRATES.iter().find(|(crate_name, ..)| *crate_name == name)?;
    Some(CrateNeeds { libraries, tools })
}

/// Whether a crate that is named like one for a C library needs none of nixpkgs: it is for another system,
/// or brings all of its code along.
pub fn needs_nothing(name: &str) -> bool {
    const NOTHING: &[&str] = &[
        "android-activity-sys",
        "aws-lc-fips-sys",
        "aws-lc-sys",
        "bindgen-sys",
        "core-foundation-sys",
        "coreaudio-sys",
        "cpufeatures-sys",
        "dispatch-sys",
        "fsevent-sys",
        "iana-time-zone-sys",
        "inotify-sys",
        "jni-sys",
        "js-sys",
        "libmimalloc-sys",
        "linux-raw-sys",
        "lua-src-sys",
        "mach-sys",
        "ndk-sys",
        "notify-sys",
        "objc-sys",
        "secp256k1-sys",
        "security-framework-sys",
        "snmalloc-sys",
        "system-configuration-sys",
        "tikv-jemalloc-sys",
        "tree-sitter-sys",
        "web-sys",
        "windows-sys",
        "winreg-sys",
        "kqueue-sys",
        "tracy-client-sys",
        "esaxx-sys",
        "blake3-sys",
    ];
    NOTHING.contains(&name) || name.starts_with("objc2-") || name.starts_with("windows")
}

#[rustfmt::skip]
const CRATES: &[(&str, &[&str], &[&str])] = &[
    ("alsa-sys", &["alsa-lib"], PKG_CONFIG),
    ("atk-sys", &["at-spi2-core"], PKG_CONFIG),
    ("bindgen", &[], &["rustPlatform.bindgenHook"]),
    ("bzip2-sys", &["bzip2"], PKG_CONFIG),
    ("cairo-sys-rs", &["cairo"], PKG_CONFIG),
    ("cmake", &[], &["cmake"]),
    ("curl-sys", &["curl"], PKG_CONFIG),
    ("expat-sys", &["expat"], PKG_CONFIG),
    ("ffmpeg-sys-next", &["ffmpeg"], &["pkg-config", "rustPlatform.bindgenHook"]),
    ("freetype-sys", &["freetype"], PKG_CONFIG),
    ("gdal-sys", &["gdal"], PKG_CONFIG),
    ("gdk-pixbuf-sys", &["gdk-pixbuf"], PKG_CONFIG),
    ("gdk-sys", &["gtk3"], PKG_CONFIG),
    ("gio-sys", &["glib"], PKG_CONFIG),
    ("glib-sys", &["glib"], PKG_CONFIG),
    ("gmp-mpfr-sys", &["gmp", "mpfr"], &["gnum4"]),
    ("gobject-sys", &["glib"], PKG_CONFIG),
    ("gstreamer-sys", &["gst_all_1.gstreamer"], PKG_CONFIG),
    ("gstreamer-base-sys", &["gst_all_1.gst-plugins-base"], PKG_CONFIG),
    ("gtk-sys", &["gtk3"], PKG_CONFIG),
    ("gtk4-sys", &["gtk4"], PKG_CONFIG),
    ("harfbuzz-sys", &["harfbuzz"], PKG_CONFIG),
    ("hdf5-sys", &["hdf5"], PKG_CONFIG),
    ("hidapi", &["udev"], PKG_CONFIG),
    ("javascriptcore-rs-sys", &["webkitgtk_4_1"], PKG_CONFIG),
    ("leptonica-sys", &["leptonica"], PKG_CONFIG),
    ("libadwaita-sys", &["libadwaita"], PKG_CONFIG),
    ("libdbus-sys", &["dbus"], PKG_CONFIG),
    ("libffi-sys", &["libffi"], PKG_CONFIG),
    ("libgit2-sys", &["libgit2"], PKG_CONFIG),
    ("libgssapi-sys", &["krb5"], &["pkg-config", "rustPlatform.bindgenHook"]),
    ("liblzma-sys", &["xz"], PKG_CONFIG),
    ("libpulse-sys", &["libpulseaudio"], PKG_CONFIG),
    ("librocksdb-sys", &["rocksdb"], &["rustPlatform.bindgenHook"]),
    ("libsodium-sys", &["libsodium"], PKG_CONFIG),
    ("libspa-sys", &["pipewire"], &["pkg-config", "rustPlatform.bindgenHook"]),
    ("libsqlite3-sys", &["sqlite"], PKG_CONFIG),
    ("libssh2-sys", &["libssh2"], PKG_CONFIG),
    ("libsystemd-sys", &["systemdLibs"], PKG_CONFIG),
    ("libudev-sys", &["udev"], PKG_CONFIG),
    ("libusb1-sys", &["libusb1"], PKG_CONFIG),
    ("libxml", &["libxml2"], PKG_CONFIG),
    ("libz-sys", &["zlib"], PKG_CONFIG),
    ("lz4-sys", &["lz4"], PKG_CONFIG),
    ("lzma-sys", &["xz"], PKG_CONFIG),
    ("mysqlclient-sys", &["libmysqlclient"], PKG_CONFIG),
    ("netcdf-sys", &["netcdf"], PKG_CONFIG),
    ("nettle-sys", &["nettle"], &["pkg-config", "rustPlatform.bindgenHook"]),
    ("onig_sys", &["oniguruma"], PKG_CONFIG),
    ("openblas-src", &["openblas"], PKG_CONFIG),
    ("openssl-src", &[], &["perl"]),
    ("openssl-sys", &["openssl"], PKG_CONFIG),
    ("pango-sys", &["pango"], PKG_CONFIG),
    ("pcap", &["libpcap"], PKG_CONFIG),
    ("pipewire-sys", &["pipewire"], &["pkg-config", "rustPlatform.bindgenHook"]),
    ("pkg-config", &[], PKG_CONFIG),
    ("pq-sys", &["libpq"], PKG_CONFIG),
    ("proj-sys", &["proj"], &["cmake", "pkg-config"]),
    ("prost-build", &[], &["protobuf"]),
    ("protobuf-codegen", &[], &["protobuf"]),
    ("pyo3-ffi", &[], &["python3"]),
    ("rdkafka-sys", &["rdkafka"], PKG_CONFIG),
    ("sdl2-sys", &["SDL2"], PKG_CONFIG),
    ("servo-fontconfig-sys", &["fontconfig"], PKG_CONFIG),
    ("smithay-client-toolkit", &["libxkbcommon"], PKG_CONFIG),
    ("soup3-sys", &["libsoup_3"], PKG_CONFIG),
    ("tesseract-sys", &["tesseract"], PKG_CONFIG),
    ("tonic-build", &[], &["protobuf"]),
    ("wayland-sys", &["wayland"], PKG_CONFIG),
    ("webkit2gtk-sys", &["webkitgtk_4_1"], PKG_CONFIG),
    ("yeslogic-fontconfig-sys", &["fontconfig"], PKG_CONFIG),
    ("zmq-sys", &["zeromq"], PKG_CONFIG),
    ("zstd-sys", &["zstd"], PKG_CONFIG),
];

const PKG_CONFIG: &[&str] = &["pkg-config"];

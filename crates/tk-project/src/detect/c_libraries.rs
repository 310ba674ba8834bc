//! What C libraries are called: by pkg-config, by CMake's find_package, by nixpkgs (release 26.05).

use super::scan::ProjectScan;
use crate::flake_facts::{FlakeReason, ProjectLanguage};

/// Notes that the C code needs what `name` says, a module of pkg-config or a package of CMake.
pub fn need(scan: &mut ProjectScan, name: &str, because: FlakeReason) {
    let (file, line) = (because.file.clone(), because.line);
    match attributes(name) {
        Some(attributes) => {
            for attribute in attributes {
                scan.library(ProjectLanguage::C, attribute, because.clone());
            }
        }
        None => scan.note(
            FlakeReason::new(&file, name, line),
            "no package of nixpkgs is known for this library: add it to buildInputs",
        ),
    }
}

/// The attributes of nixpkgs; none for what comes with the compiler.
fn attributes(name: &str) -> Option<&'static [&'static str]> {
    let wanted = name.to_ascii_lowercase();
    let found = LIBRARIES
        .iter()
        .find(|(names, _)| names.contains(&wanted.as_str()));
    found.map(|(_, attributes)| *attributes)
}

/// The names, in small letters, and the attributes.
#[rustfmt::skip]
const LIBRARIES: &[(&[&str], &[&str])] = &[
    (&["threads", "m", "dl", "rt", "pthread", "openmp"], &[]),
    (&["alsa"], &["alsa-lib"]),
    (&["boost"], &["boost"]),
    (&["bzip2"], &["bzip2"]),
    (&["cairo"], &["cairo"]),
    (&["catch2"], &["catch2_3"]),
    (&["libcurl", "curl"], &["curl"]),
    (&["dbus-1"], &["dbus"]),
    (&["eigen3"], &["eigen"]),
    (&["expat"], &["expat"]),
    (&["libavcodec", "libavformat", "libavutil", "libswscale"], &["ffmpeg"]),
    (&["fftw3"], &["fftw"]),
    (&["fmt"], &["fmt"]),
    (&["fontconfig"], &["fontconfig"]),
    (&["freetype", "freetype2"], &["freetype"]),
    (&["glfw3"], &["glfw"]),
    (&["glib-2.0", "gio-2.0", "gobject-2.0", "gmodule-2.0", "gthread-2.0", "gio-unix-2.0"], &["glib"]),
    (&["gmp"], &["gmp"]),
    (&["gnutls"], &["gnutls"]),
    (&["gtest", "googletest", "gmock"], &["gtest"]),
    (&["gtk+-3.0"], &["gtk3"]),
    (&["gtk4"], &["gtk4"]),
    (&["harfbuzz"], &["harfbuzz"]),
    (&["hdf5"], &["hdf5"]),
    (&["icu", "icu-uc", "icu-i18n"], &["icu"]),
    (&["json-c"], &["json_c"]),
    (&["jsoncpp"], &["jsoncpp"]),
    (&["libarchive"], &["libarchive"]),
    (&["libevent"], &["libevent"]),
    (&["libffi"], &["libffi"]),
    (&["libgit2"], &["libgit2"]),
    (&["jpeg", "libjpeg"], &["libjpeg"]),
    (&["liblzma"], &["xz"]),
    (&["libpcap"], &["libpcap"]),
    (&["png", "libpng", "libpng16"], &["libpng"]),
    (&["libpq", "postgresql"], &["libpq"]),
    (&["libpulse"], &["libpulseaudio"]),
    (&["libsodium", "sodium"], &["libsodium"]),
    (&["libssh2"], &["libssh2"]),
    (&["libsystemd"], &["systemdLibs"]),
    (&["libudev"], &["udev"]),
    (&["libusb-1.0"], &["libusb1"]),
    (&["libuv"], &["libuv"]),
    (&["libxml-2.0", "libxml2"], &["libxml2"]),
    (&["liblz4", "lz4"], &["lz4"]),
    (&["lua"], &["lua"]),
    (&["curses", "ncurses", "ncursesw"], &["ncurses"]),
    (&["nlohmann_json"], &["nlohmann_json"]),
    (&["openblas"], &["openblas"]),
    (&["openssl", "libssl", "libcrypto"], &["openssl"]),
    (&["pango", "pangocairo"], &["pango"]),
    (&["pixman-1"], &["pixman"]),
    (&["protobuf"], &["protobuf"]),
    (&["readline"], &["readline"]),
    (&["sdl2"], &["SDL2"]),
    (&["spdlog"], &["spdlog"]),
    (&["sqlite3"], &["sqlite"]),
    (&["tbb"], &["tbb"]),
    (&["tiff", "libtiff-4"], &["libtiff"]),
    (&["wayland-client", "wayland-server"], &["wayland"]),
    (&["xkbcommon"], &["libxkbcommon"]),
    (&["yaml-cpp"], &["yaml-cpp"]),
    (&["yaml-0.1"], &["libyaml"]),
    (&["zlib"], &["zlib"]),
    (&["libzmq", "zeromq"], &["zeromq"]),
    (&["libzstd", "zstd"], &["zstd"]),
];

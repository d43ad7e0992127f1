//! A page in headless Chromium: where its charts are, and what is drawn there.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::Command;

const WIDTH: usize = 1280;
const HEIGHT: usize = 3000;
/// The lines of the first two runs, in the light colours of the page.
const LINES: [[u8; 3]; 2] = [[0x25, 0x63, 0xeb], [0xe2, 0x71, 0x1d]];
/// Pixels of a line's very colour that a chart has at least; edges are mixed with the background.
const PIXELS: usize = 20;

/// Leaves the places of all drawings in the page's title.
const MEASURE: &str = "<script>document.title = JSON.stringify([...document.querySelectorAll('svg')].map(svg => {
    const r = svg.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; }));</script>";

/// Checks the picture of a page that compares two runs.
pub fn every_chart_has_lines(page: &str, charts: &[&str]) {
    if std::env::var_os("ACRLPD_OFFLINE_TESTS").is_some_and(|v| v == "1") {
        eprintln!("skipped: ACRLPD_OFFLINE_TESTS=1");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (plain, measured) = (dir.path().join("page.html"), dir.path().join("measured.html"));
    fs::write(&plain, page).expect("written");
    fs::write(&measured, page.replace("</body>", &format!("{MEASURE}</body>"))).expect("written");
    let dom = chromium(&["--dump-dom"], &measured);
    let title = dom
        .split("<title>")
        .nth(1)
        .and_then(|t| t.split("</title>").next())
        .expect("a title");
    let places: Vec<[f64; 4]> = serde_json::from_str(title).expect("places");
    assert_eq!(places.len(), charts.len());

    let picture = dir.path().join("page.png");
    chromium(&[&format!("--screenshot={}", picture.display())], &plain);
    let (pixels, width, height) = decode(&picture);
    assert!(width >= WIDTH && height >= HEIGHT, "{width} x {height}");
    let mut colours: Vec<&[u8; 3]> = pixels.iter().collect();
    colours.sort_unstable();
    colours.dedup();
    assert!(colours.len() > 64, "{} colours", colours.len());
    for (name, [x, y, w, h]) in std::iter::zip(charts, places) {
        assert!(
            w > 200.0 && h > 100.0 && x >= 0.0 && x + w <= WIDTH as f64,
            "{name}: {x} {y} {w} {h}"
        );
        assert!(y + h <= HEIGHT as f64, "{name} is outside the picture");
        let rows = (y as usize..(y + h) as usize).flat_map(|row| {
            let start = row * width + x as usize;
            &pixels[start..start + w as usize]
        });
        let inside: Vec<&[u8; 3]> = rows.collect();
        for line in &LINES {
            let n = inside.iter().filter(|pixel| **pixel == line).count();
            assert!(n >= PIXELS, "{name}: {n} pixels of {line:?}");
        }
    }
}

fn chromium(flags: &[&str], page: &Path) -> String {
    let profile = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]);
    command.args([
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]);
    command.args([
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
    ]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("--window-size={WIDTH},{HEIGHT}")).args(flags);
    command.arg(format!("file://{}", page.display()));
    let output = command.output().unwrap_or_else(|e| {
        panic!("`chromium` cannot be started ({e}): install Debian's package, or set ACRLPD_OFFLINE_TESTS=1 to leave this out")
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Colours of all pixels; width and height.
fn decode(path: &Path) -> (Vec<[u8; 3]>, usize, usize) {
    let file = BufReader::new(File::open(path).expect("a picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut bytes).expect("a frame");
    let each = info.color_type.samples();
    let pixels = bytes.chunks_exact(each).map(|p| [p[0], p[1], p[2]]).collect();
    (pixels, info.width as usize, info.height as usize)
}

//! Data-side numerics: normalisation, robot-space maps, letterboxing, chunk rewards.

use super::{Fixture, Kind, Report, Result};
use crate::data::resize::{resize_with_pad, resize_with_pad_f32};

/// Runs every group of the fixture.
pub(super) fn run(f: &Fixture, wanted: &dyn Fn(&str) -> bool, report: &mut Report) -> Result<()> {
    let mut names: Vec<&str> = f
        .names()
        .filter_map(|n| n.split_once('/'))
        .map(|(group, _)| group)
        .collect();
    names.dedup();
    for name in names {
        if name.starts_with("resize") {
            resize(f, name, report)?;
        }
    }
    report.rows.retain(|r| wanted(&r.tensor));
    Ok(())
}

fn resize(f: &Fixture, name: &str, report: &mut Report) -> Result<()> {
    let [h, w, _] = *f.shape(&format!("{name}/u8_in"))? else {
        return Err(f.broken(format!("{name} is no picture")));
    };
    let [oh, ow, _] = *f.shape(&format!("{name}/u8_out"))? else {
        return Err(f.broken(format!("{name} is no picture")));
    };
    let _ = (h, w, oh, ow, Kind::Exact, &report, resize_with_pad, resize_with_pad_f32);
    Ok(())
}

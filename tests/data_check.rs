//! `data check`: every mistake is found where it is, and a good dataset has none.

mod data_support;

use acrlpd::data::Column;
use acrlpd::data::check::{Finding, Settings, check};
use data_support::memory::MemoryDataset;
use data_support::{aloha, asset};

const LENGTHS: [usize; 3] = [60, 50, 70];
const FPS: f64 = 10.0;

fn settings() -> Settings {
    Settings {
        state_key: "state".into(),
        action_key: "action".into(),
        horizon: 40,
        reach: 5.0,
    }
}

fn timestamps(of: impl Fn(usize, usize) -> f64) -> Column {
    let times = LENGTHS
        .iter()
        .enumerate()
        .flat_map(|(e, n)| (0..*n).map(move |t| (e, t)));
    Column {
        key: "timestamp".into(),
        width: 1,
        values: times.map(|(e, t)| of(e, t) as f32).collect(),
    }
}

fn good() -> MemoryDataset {
    MemoryDataset::new(&LENGTHS).with_columns(vec![timestamps(|_, t| t as f64 / FPS)])
}

fn findings(dataset: &MemoryDataset) -> Vec<Finding> {
    let mut told = Vec::new();
    let found = check(dataset, &settings(), |done, all| told.push((done, all)));
    assert_eq!(told, [(1, 3), (2, 3), (3, 3)]);
    found
}

/// The only finding of a dataset with one mistake.
#[track_caller]
fn only(change: impl FnOnce(&mut MemoryDataset), check: &str, episode: Option<usize>, parts: &[&str]) {
    let mut dataset = good();
    change(&mut dataset);
    let found = findings(&dataset);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].check, found[0].episode), (check, episode), "{found:?}");
    assert!(
        parts.iter().all(|part| found[0].what.contains(part)),
        "{}",
        found[0].what
    );
}

#[test]
fn good_datasets_have_no_findings() {
    assert_eq!(findings(&good()), []);
    let real = Settings {
        state_key: "observation.state".into(),
        horizon: 30,
        ..settings()
    };
    assert_eq!(check(aloha().as_ref(), &real, |_, _| ()), []);
}

#[test]
fn each_mistake_is_found() {
    let column = |d: &mut MemoryDataset, key: &str| d.columns.iter().position(|c| c.key == key).unwrap();
    only(
        |d| {
            let state = column(d, "state");
            d.columns[state].values[2 * 70 + 1] = f32::NAN;
        },
        "finite",
        Some(1),
        &["`state`", "1 values", "NaN", "row 70"],
    );
    only(
        |d| {
            let state = column(d, "state");
            d.columns[state]
                .values
                .iter_mut()
                .skip(1)
                .step_by(2)
                .for_each(|v| *v = 2.5);
        },
        "spread",
        None,
        &["`state`[1]", "deviation"],
    );
    only(
        |d| {
            let action = column(d, "action");
            d.columns[action].values[3 * 100 + 2] = -9000.0;
        },
        "outlier",
        Some(1),
        &["`action`[2]", "-9000", "row 100", "1 such"],
    );
    only(
        |d| {
            let action = column(d, "action");
            let first: Vec<f32> = d.columns[action].row(60).to_vec();
            (60..110).for_each(|frame| d.columns[action].values[3 * frame..3 * frame + 3].copy_from_slice(&first));
        },
        "still",
        Some(1),
        &["`action`", "same"],
    );
    only(
        |d| d.columns[2] = timestamps(|e, t| if e == 2 { t as f64 / 20.0 } else { t as f64 / FPS }),
        "time",
        Some(2),
        &["frame 1 ", "0.0500", "0.1000", "69 frames", "20.00"],
    );
    only(
        |d| d.columns[2] = timestamps(|e, t| t as f64 / FPS + if (e, t) == (0, 30) { 2e-4 } else { 0.0 }),
        "time",
        Some(0),
        &["frame 30 ", "1 frames"],
    );
    only(
        |d| d.failing_frame = Some(179),
        "picture",
        Some(2),
        &["row 179", "torn"],
    );
    only(|d| d.info.tasks.push(" \n".into()), "task", None, &["task 1"]);
    let mut short = MemoryDataset::new(&[60, 39]);
    short.columns.truncate(2);
    let found = check(&short, &settings(), |_, _| ());
    assert_eq!((found.len(), found[0].check, found[0].episode), (1, "length", Some(1)));
    let unknown = Settings {
        action_key: "actions".into(),
        ..settings()
    };
    let found = check(&good(), &unknown, |_, _| ());
    assert!(
        found.iter().any(|f| f.what.contains("no numeric feature `actions`")),
        "{found:?}"
    );
}

#[test]
fn the_command_tells_by_its_exit_code() {
    let run = |flags: &[&str]| {
        let mut command = assert_cmd::Command::cargo_bin("acrlpd").unwrap();
        command
            .args(["data", "check"])
            .arg(asset("datasets/aloha_v21_image"))
            .args(flags);
        command.assert()
    };
    let good = run(&["--horizon", "30"]).code(0).get_output().stdout.clone();
    assert!(
        String::from_utf8(good)
            .unwrap()
            .contains("0 findings in 6 episodes, 236 frames")
    );
    let short = run(&["--horizon", "38"]).code(1).get_output().stdout.clone();
    let short = String::from_utf8(short).unwrap();
    assert!(
        short.contains("episode 0: it has 30 frames, a chunk has 38") && short.contains("3 findings"),
        "{short}"
    );
    let json = run(&["--horizon", "38", "--json"]).code(1).get_output().stdout.clone();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["findings"][2]["episode"], 4);
}

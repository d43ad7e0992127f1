//! Several datasets as one: what comes out is what is in them, and what does not go together is refused.

mod data_support;

use std::sync::Arc;

use acrlpd::data::mixed::Mixed;
use acrlpd::data::{Column, DataError, Dataset, EpisodeSplit, Place, Sampler, open_all};
use data_support::memory::{self, MemoryDataset};
use data_support::synthetic::Recipe;
use data_support::{asset, data};

fn mixed(parts: Vec<MemoryDataset>) -> Result<Mixed, DataError> {
    Mixed::new(parts.into_iter().map(|p| Arc::new(p) as Arc<dyn Dataset>).collect())
}

fn flag(frames: usize) -> Column {
    Column {
        key: "next.success".into(),
        width: 1,
        values: vec![1.0; frames],
    }
}

#[test]
fn frames_episodes_and_tasks_are_laid_end_to_end() {
    let parts = || {
        [
            MemoryDataset::new(&[5, 7]),
            MemoryDataset::new(&[4]).with_tasks("open it"),
        ]
    };
    let all = mixed(parts().into()).unwrap();
    assert_eq!(all.info().total_frames, 16);
    assert_eq!(all.info().tasks, ["fold the box", "open it"]);
    let episodes: Vec<_> = all.episodes().iter().map(|e| (e.index, e.start, e.length)).collect();
    assert_eq!(episodes, [(0, 0, 5), (1, 5, 7), (2, 12, 4)]);
    for (source, part) in parts().iter().enumerate() {
        let start = 12 * source;
        for frame in 0..part.info.total_frames {
            assert_eq!(all.source(start + frame), source);
            assert_eq!(all.task(start + frame).unwrap(), part.task(frame).unwrap());
            assert_eq!(all.locate(start + frame).1, frame);
            for (ours, theirs) in all.columns().iter().zip(&part.columns) {
                assert_eq!((&ours.key, ours.row(start + frame)), (&theirs.key, theirs.row(frame)));
            }
        }
    }
    // Pictures say which frame of their dataset they are; order and borders do not matter.
    let wanted = [11, 12, 3, 2, 15, 0];
    let pictures = all.images("cam", &wanted).unwrap();
    let first: Vec<u8> = pictures.iter().map(|p| p.pixels[0]).collect();
    assert_eq!(first, [11 * 12, 0, 3 * 12, 2 * 12, 3 * 12, 0].map(|i| i as u8));
    let error = all.images("cam", &[0, 16]).unwrap_err().to_string();
    assert!(error.contains("frame 16") && error.contains("16 frames"), "{error}");
}

#[test]
fn weights_say_how_often_a_dataset_is_drawn_from() {
    let lengths = [[40, 40], [10, 10]];
    let flagged = |lengths: [usize; 2]| {
        let dataset = MemoryDataset::new(&lengths);
        let frames = dataset.info.total_frames;
        dataset.with_columns(vec![flag(frames)])
    };
    let all = Arc::new(mixed(lengths.map(flagged).into()).unwrap());
    let stats = data_support::identity_stats(2, 3);
    let tokenizer = data_support::tokenizer();
    let builder = acrlpd::data::BatchBuilder::new(all.clone(), memory::spec(), &stats, tokenizer).unwrap();
    let starts = builder.starts();
    assert_eq!(starts.iter().map(|s| s.source).collect::<Vec<_>>(), [0, 0, 1, 1]);
    let starts = EpisodeSplit::select(&starts, &[0, 1, 2, 3]);
    let share = |weights: &[f64]| {
        let sampler = Sampler::mixed(3, &starts, None, weights).unwrap();
        let drawn: Vec<usize> = (0..100).flat_map(|step| sampler.draw(step, 100)).collect();
        drawn.iter().filter(|frame| all.source(**frame) == 1).count() as f64 / drawn.len() as f64
    };
    // 74 starts in the one, 14 in the other.
    assert!((share(&[]) - 14.0 / 88.0).abs() < 0.02);
    assert!((share(&[1.0, 1.0]) - 0.5).abs() < 0.02);
    assert!((share(&[0.0, 2.0]) - 1.0).abs() < 1e-9);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let refusal = |b: MemoryDataset| mixed(vec![MemoryDataset::new(&[5]), b]).unwrap_err().to_string();
    let mut faster = MemoryDataset::new(&[5]);
    faster.info.fps = 25.0;
    assert!(refusal(faster).contains("10 and 25 frames a second"));
    let labelled = MemoryDataset::new(&[5]).with_columns(vec![flag(5)]);
    assert!(refusal(labelled).contains("only one has the column `next.success`"));
    assert!(mixed(Vec::new()).is_err());
}

#[test]
fn features_that_only_some_have_are_left_out() {
    let mut narrow = MemoryDataset::new(&[5]);
    narrow.info.features.retain(|f| f.key != "cam");
    let state = narrow.info.features.iter_mut().find(|f| f.key == "state").unwrap();
    state.kind = acrlpd::data::FeatureKind::Vector { width: 1 };
    let all = mixed(vec![MemoryDataset::new(&[5]), narrow]).unwrap();
    assert_eq!(
        all.info().features.iter().map(|f| f.key.as_str()).collect::<Vec<_>>(),
        ["action"]
    );
    assert_eq!(
        all.columns().iter().map(|c| c.key.as_str()).collect::<Vec<_>>(),
        ["action"]
    );
}

#[test]
fn real_datasets_of_two_versions_mix() {
    let places = [asset("datasets/aloha_v21_image"), data("aloha_v20_image")].map(Place::Folder);
    let all = open_all(&places).unwrap();
    let one = open_all(&places[..1]).unwrap();
    assert_eq!((all.info().total_frames, all.episodes().len()), (472, 12));
    assert_eq!(all.info().tasks, one.info().tasks, "the same tasks count once");
    assert_eq!(all.columns().len(), one.columns().len());
    let camera = "observation.images.cam_high";
    assert_eq!(all.image(camera, 236 + 17).unwrap(), one.image(camera, 17).unwrap());
    assert_eq!(all.task(236 + 235).unwrap(), one.task(235).unwrap());
    let folder = tempfile::tempdir().unwrap();
    Recipe::default().write(folder.path());
    let error = open_all(&[places[0].clone(), Place::Folder(folder.path().into())]).unwrap_err();
    assert!(matches!(error, DataError::Mix { .. }), "{error}");
}

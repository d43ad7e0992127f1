//! Videos broken in one way each: what the message must say.
#![cfg(feature = "video")]

mod data_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use acrlpd::data::open;
use arrow_array::{ArrayRef, Float64Array};
use data_support::broken::{INFO, LIST, check_all, column, copied, edit, replace};
use data_support::synthetic::set;

const HIGH: &str = "observation.images.cam_high";

/// The video of an episode.
fn film(root: &Path, episode: usize) -> PathBuf {
    root.join(format!("videos/chunk-000/{HIGH}/episode_{episode:06}.mp4"))
}

fn change(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn find(bytes: &[u8], name: &[u8; 4]) -> usize {
    bytes.windows(4).position(|w| w == name).unwrap()
}

#[test]
fn videos() {
    check_all(
        "aloha_v21_h264",
        &[
            (
                "a missing video",
                &|root| fs::remove_file(film(root, 3)).unwrap(),
                &["cannot read", "episode_000003.mp4", "the video of a camera"],
            ),
            (
                "half a video",
                &|root| change(&film(root, 3), |bytes| bytes.truncate(bytes.len() / 2)),
                &["episode_000003.mp4`: the video of `observation.images.cam_high` cannot be opened"],
            ),
            (
                "an empty video",
                &|root| fs::write(film(root, 3), "").unwrap(),
                &["episode_000003.mp4`", "cannot be opened"],
            ),
            (
                "no video",
                &|root| fs::write(film(root, 3), "a text about pictures").unwrap(),
                &["episode_000003.mp4`", "cannot be opened"],
            ),
            (
                "another frame rate",
                &|root| {
                    change(&film(root, 2), |bytes| {
                        // Ticks of a second, behind version, flags and two dates.
                        let at = find(bytes, b"mdhd") + 16;
                        assert_eq!(bytes[at..at + 4], 12800u32.to_be_bytes());
                        bytes[at..at + 4].copy_from_slice(&6400u32.to_be_bytes());
                    })
                },
                &[
                    "episode_000002.mp4`: the video of `observation.images.cam_high` has no frame at 0.0200 s",
                    "only at 0.0000 s and 0.0400 s",
                    "frame rate",
                ],
            ),
            (
                "a video that is too short",
                &|root| assert!(fs::copy(film(root, 0), film(root, 2)).unwrap() > 0),
                &[
                    "episode_000002.mp4`",
                    "has no frame at 0.6000 s, its last is at 0.5800 s",
                ],
            ),
            (
                "broken data",
                &|root| {
                    change(&film(root, 1), |bytes| {
                        let begin = find(bytes, b"mdat") + 4;
                        let size = u32::from_be_bytes(bytes[begin - 8..begin - 4].try_into().unwrap()) as usize;
                        bytes[begin + size / 2..begin + size - 8].fill(0xff);
                    })
                },
                &["episode_000001.mp4`", "cannot be decoded at"],
            ),
            (
                "another size",
                &|root| {
                    let text = fs::read_to_string(root.join(INFO)).unwrap();
                    let lines: String = text.split_whitespace().collect();
                    let smaller = lines.replace("\"shape\":[3,72,96]", "\"shape\":[3,36,48]");
                    assert_ne!(lines, smaller);
                    fs::write(root.join(INFO), smaller).unwrap();
                },
                &["episode_000000.mp4`", "shows 72x96 pixels", "announces 36x48"],
            ),
            (
                "a path out of the dataset",
                &|root| replace(root, INFO, "\"videos/chunk-", "\"../videos/chunk-"),
                &["info.json`", "`video_path`", "out of the dataset"],
            ),
            (
                "a camera out of the dataset",
                &|root| replace(root, INFO, HIGH, "../../../cam"),
                &["info.json`", "`../../../cam`", "out of the dataset"],
            ),
            (
                "one file for all cameras",
                &|root| replace(root, INFO, "{video_key}/", ""),
                &["info.json`", "`video_path`", "all cameras would share a file"],
            ),
            (
                "no path",
                &|root| replace(root, INFO, "\"video_path\"", "\"film_path\""),
                &[
                    "info.json`",
                    "`observation.images.cam_high`",
                    "there is no `video_path`",
                ],
            ),
            (
                "a path with a zero byte",
                &|root| replace(root, INFO, "\"videos/chunk-", "\"videos\\u0000/chunk-"),
                &["cannot read", "the video of a camera"],
            ),
            (
                "no times",
                &|root| replace(root, INFO, "\"timestamp\"", "\"reward2\""),
                &["info.json`", "`observation.images.cam_high`", "no feature `timestamp`"],
            ),
        ],
    );
}

#[test]
fn clips_of_a_video() {
    let times = |root: &Path, values: [f64; 6]| {
        let times: ArrayRef = Arc::new(Float64Array::from_iter_values(values));
        let key = format!("videos/{HIGH}/from_timestamp");
        edit(&root.join(LIST), |table| set(table, &key, times.clone()));
    };
    check_all(
        "aloha_v30_av1",
        &[
            (
                "a clip beyond the end",
                &|root| times(root, [0.0, 0.6, 100.0, 0.0, 0.74, 1.4]),
                &[
                    "cam_high/chunk-000/file-000.mp4`",
                    "has no frame at 100.0000 s, its last is at 2.4000 s",
                ],
            ),
            (
                "a clip between frames",
                &|root| times(root, [0.0, 0.61, 1.42, 0.0, 0.74, 1.4]),
                &[
                    "file-000.mp4`",
                    "has no frame at 0.6100 s, only at 0.6000 s and 0.6200 s",
                ],
            ),
            (
                "NaN",
                &|root| times(root, [0.0, 0.6, 1.42, f64::NAN, 0.74, 1.4]),
                &["row 3", "from_timestamp` is NaN"],
            ),
            (
                "a time before the video",
                &|root| times(root, [0.0, -0.6, 1.42, 0.0, 0.74, 1.4]),
                &["row 1", "from_timestamp` is -0.6"],
            ),
            (
                "a file out of range",
                &|root| column(root, &format!("videos/{HIGH}/file_index"), [0, 0, 0, 1, 1, 9]),
                &["cannot read", "file-009.mp4", "the video of a camera"],
            ),
            (
                "a camera nobody lists",
                &|root| replace(root, INFO, HIGH, "observation.images.cam_low"),
                &["file-000.parquet` has no column `videos/observation.images.cam_low/chunk_index`"],
            ),
        ],
    );
}

/// Whatever is in a file: an answer, soon, and none of another frame.
#[test]
fn changed_bytes_are_errors_or_pictures() {
    for name in ["aloha_v21_h264", "aloha_v21_av1"] {
        let dir = copied(name);
        let path = film(dir.path(), 0);
        let whole = fs::read(&path).unwrap();
        for case in 0..150usize {
            let mut bytes = whole.clone();
            for i in 0..1 + case % 4 {
                let at = (case * 7919 + i * 104_729) % bytes.len();
                bytes[at] = bytes[at].wrapping_add(1 + (case * 31 + i) as u8 % 255);
            }
            fs::write(&path, bytes).unwrap();
            let dataset = open(dir.path()).unwrap();
            if let Err(error) = dataset.images(HIGH, &[3, 13, 29]) {
                let message = error.to_string();
                assert!(
                    message.contains("episode_000000.mp4") && !message.contains('\n'),
                    "{message}"
                );
            }
        }
    }
}

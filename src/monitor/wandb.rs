//! A wandb run that was recorded without a connection, as `wandb sync` takes it: `wandb/offline-run-TIME-ID/run-ID.wandb`
//! with `Record` messages of `wandb/proto/wandb_internal.proto` in the framing of [`super::blocks`].
//!
//! wandb cannot go on with such a file, and of two files of one run the later replaces the earlier line by line. So a
//! program that goes on with a run begins a new file with the rows so far: the newest file is the whole run.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use chrono::DateTime;
use prost::Message;
use serde_json::json;

use super::blocks::BlockWriter;
use super::{Point, RunFile, Sink, unix_time};

/// The oldest wandb that can read the file.
const MIN_CONSUMER: &str = "0.13.0";

/// One record of a file.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    #[prost(int64, tag = "1")]
    pub num: i64,
    #[prost(message, optional, tag = "2")]
    pub history: Option<History>,
    #[prost(message, optional, tag = "3")]
    pub summary: Option<Items>,
    #[prost(message, optional, tag = "17")]
    pub run: Option<Run>,
    #[prost(message, optional, tag = "18")]
    pub exit: Option<Exit>,
    #[prost(message, optional, tag = "21")]
    pub header: Option<Header>,
}

/// The first record.
#[derive(Clone, PartialEq, Message)]
pub struct Header {
    #[prost(message, optional, tag = "1")]
    pub version: Option<Version>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Version {
    #[prost(string, tag = "1")]
    pub producer: String,
    #[prost(string, tag = "2")]
    pub min_consumer: String,
}

/// The second record: the run.
#[derive(Clone, PartialEq, Message)]
pub struct Run {
    #[prost(string, tag = "1")]
    pub run_id: String,
    #[prost(string, tag = "3")]
    pub project: String,
    #[prost(message, optional, tag = "4")]
    pub config: Option<Items>,
    #[prost(string, tag = "8")]
    pub display_name: String,
    #[prost(message, optional, tag = "17")]
    pub start_time: Option<Timestamp>,
}

/// Changes of the configuration or of the summary.
#[derive(Clone, PartialEq, Message)]
pub struct Items {
    #[prost(message, repeated, tag = "1")]
    pub update: Vec<Item>,
}

/// A row.
#[derive(Clone, PartialEq, Message)]
pub struct History {
    #[prost(message, repeated, tag = "1")]
    pub item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub step: Option<Step>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Item {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "16")]
    pub value_json: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Step {
    #[prost(int64, tag = "1")]
    pub num: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// The last record, which a killed program has not written.
#[derive(Clone, PartialEq, Message)]
pub struct Exit {
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    #[prost(int32, tag = "2")]
    pub runtime: i32,
}

/// An offline run being written.
pub struct OfflineRun {
    file: BlockWriter<BufWriter<File>>,
    /// Number of the last record.
    records: i64,
    started: f64,
    /// The newest value of everything, not written yet.
    summary: Vec<Item>,
}

impl OfflineRun {
    /// What a warning calls it.
    pub const NAME: &'static str = "the wandb run";

    /// Begins a file under `dir/wandb` with the rows so far.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn create(dir: &Path, run: &RunFile, so_far: impl Iterator<Item = Point>) -> io::Result<OfflineRun> {
        let started = unix_time();
        let time = DateTime::from_timestamp(started as i64, 0).unwrap_or_default();
        let name = format!("offline-run-{}-{}", time.format("%Y%m%d_%H%M%S"), run.id);
        let folder = dir.join("wandb").join(name);
        fs::create_dir_all(folder.join("files"))?;
        let file = File::create(folder.join(format!("run-{}.wandb", run.id)))?;
        let mut offline = OfflineRun {
            file: BlockWriter::new(BufWriter::new(file))?,
            records: 0,
            started,
            summary: Vec::new(),
        };
        offline.begin(run)?;
        for point in so_far {
            offline.write(&point)?;
        }
        offline.flush()?;
        Ok(offline)
    }

    fn begin(&mut self, run: &RunFile) -> io::Result<()> {
        let version = Version {
            producer: env!("CARGO_PKG_VERSION").into(),
            min_consumer: MIN_CONSUMER.into(),
        };
        self.put(Record {
            header: Some(Header { version: Some(version) }),
            ..Record::default()
        })?;
        let config = run.config.as_object().into_iter().flatten();
        self.put(Record {
            run: Some(Run {
                run_id: run.id.clone(),
                project: run.project.clone(),
                config: Some(Items {
                    update: config.map(|(key, value)| item(key, value)).collect(),
                }),
                display_name: run.name.clone(),
                start_time: Some(Timestamp {
                    seconds: self.started as i64,
                    nanos: (self.started.fract() * 1e9) as i32,
                }),
            }),
            ..Record::default()
        })
    }

    fn put(&mut self, record: Record) -> io::Result<()> {
        self.records += 1;
        let record = Record {
            num: self.records,
            ..record
        };
        self.file.record(&record.encode_to_vec())
    }
}

/// A key with any JSON value.
fn item(key: &str, value: &impl ToString) -> Item {
    Item {
        key: key.into(),
        value_json: value.to_string(),
    }
}

impl Sink for OfflineRun {
    fn name(&self) -> &'static str {
        OfflineRun::NAME
    }

    fn write(&mut self, point: &Point) -> io::Result<()> {
        let mut items = vec![item("_step", &point.step)];
        if let Some(time) = point.time {
            items.push(item("_timestamp", &json!(time)));
            items.push(item("_runtime", &json!(time - self.started)));
        }
        items.extend(point.scalars.iter().map(|(name, x)| item(name, &json!(x))));
        for new in &items {
            match self.summary.iter_mut().find(|known| known.key == new.key) {
                Some(known) => known.value_json.clone_from(&new.value_json),
                None => self.summary.push(new.clone()),
            }
        }
        self.put(Record {
            history: Some(History {
                item: items,
                step: Some(Step { num: point.step as i64 }),
            }),
            ..Record::default()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        let update = std::mem::take(&mut self.summary);
        if !update.is_empty() {
            self.put(Record {
                summary: Some(Items { update }),
                ..Record::default()
            })?;
        }
        self.file.flush()
    }

    fn finish(&mut self, exit_code: u8) -> io::Result<()> {
        self.put(Record {
            exit: Some(Exit {
                exit_code: exit_code.into(),
                runtime: (unix_time() - self.started) as i32,
            }),
            ..Record::default()
        })?;
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks;
    use super::*;

    #[test]
    fn the_newest_file_has_the_whole_run() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = RunFile {
            id: "abcd1234".into(),
            name: "first".into(),
            project: "towels".into(),
            config: json!({"batch_size": 8, "model": {"dtype": "float32"}}),
        };
        let point = |step, time| Point {
            step,
            time,
            scalars: vec![("train/q".into(), step as f64 / 4.0)],
        };
        let mut offline = OfflineRun::create(dir.path(), &run, [point(1, None)].into_iter()).expect("a file");
        offline.write(&point(2, Some(unix_time()))).expect("written");
        offline.flush().expect("written");
        offline.finish(143).expect("finished");

        let folder = fs::read_dir(dir.path().join("wandb")).expect("a folder").next();
        let folder = folder.expect("one run").expect("readable").path();
        assert!(folder.ends_with(folder.file_name().expect("a name")) && folder.join("files").is_dir());
        let bytes = fs::read(folder.join("run-abcd1234.wandb")).expect("bytes");
        let records = blocks::records(&bytes).expect("whole");
        let records: Vec<Record> = records
            .iter()
            .map(|r| Record::decode(&r[..]).expect("a record"))
            .collect();
        assert_eq!(records.iter().map(|r| r.num).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
        let told = records[1].run.as_ref().expect("a run");
        assert_eq!(
            (&told.run_id, &told.project, &told.display_name),
            (&run.id, &run.project, &run.name)
        );
        let config = &told.config.as_ref().expect("a configuration").update;
        assert_eq!(config[1], item("model", &r#"{"dtype":"float32"}"#));
        let history: Vec<&History> = records.iter().filter_map(|r| r.history.as_ref()).collect();
        assert_eq!(history[0].item, [item("_step", &1), item("train/q", &0.25)]);
        assert_eq!(history[1].item[3], item("train/q", &0.5));
        let summaries: Vec<&Items> = records.iter().filter_map(|r| r.summary.as_ref()).collect();
        assert!(summaries[1].update.contains(&item("train/q", &0.5)));
        assert_eq!(records[6].exit.as_ref().expect("an end").exit_code, 143);
    }
}

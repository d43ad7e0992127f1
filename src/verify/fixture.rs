//! A fixture group in memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::find::{description, name_of, tensor_files};
use super::{Result, VerifyError};

/// Elements of a tensor as stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    I32(Vec<i32>),
    Bool(Vec<bool>),
    U8(Vec<u8>),
}

/// One tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Values,
}

impl Values {
    /// The type as descriptions name it.
    fn type_name(&self) -> &'static str {
        match self {
            Values::F32(_) => "float32",
            Values::I32(_) => "int32",
            Values::Bool(_) => "bool",
            Values::U8(_) => "uint8",
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// No elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A group: its description and all its tensors by name.
#[derive(Debug)]
pub struct Fixture {
    pub name: String,
    pub json: Value,
    tensors: BTreeMap<String, Array>,
    /// Names of tensors that were read, so that what nobody looks at can be reported.
    touched: RefCell<BTreeSet<String>>,
}

impl Fixture {
    /// Reads a group: `stem` is its path without extensions, as [`find`](super::find) gives it.
    pub fn open(stem: &Path) -> Result<Fixture> {
        let name = name_of(stem);
        let mut tensors = BTreeMap::new();
        let json = description(stem)?;
        for (part, path) in tensor_files(stem)? {
            let broken = |why: String| VerifyError::File {
                path: path.clone(),
                why,
            };
            let bytes = std::fs::read(&path).map_err(|e| broken(e.to_string()))?;
            let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
            for (tensor, view) in file.iter() {
                let array = array(&view)
                    .ok_or_else(|| broken(format!("{tensor} has an unexpected type {:?}", view.dtype())))?;
                tensors.insert(key(&part, tensor), array);
            }
        }
        let fixture = Fixture {
            name,
            json,
            tensors,
            touched: RefCell::default(),
        };
        fixture.check_listing()?;
        Ok(fixture)
    }

    /// Fails unless everything is there that `files` of the description lists: `{FILE: {"tensors": {NAME: [type, shape]}}}`.
    fn check_listing(&self) -> Result<()> {
        let files = self.json.get("files").and_then(Value::as_object);
        for (file, listed) in files.into_iter().flatten() {
            let part = file
                .strip_prefix(&self.name)
                .and_then(|r| r.strip_suffix(".safetensors"));
            let part =
                part.ok_or_else(|| self.broken(format!("the description lists {file}, which is of another group")))?;
            let tensors = listed.get("tensors").and_then(Value::as_object);
            for (tensor, want) in tensors.into_iter().flatten() {
                let key = key(part.trim_start_matches('.'), tensor);
                let have = self.get(&key).ok_or_else(|| {
                    self.broken(format!("{tensor} is missing from {file}, which the description lists"))
                })?;
                let have = serde_json::json!([have.values.type_name(), have.shape]);
                if have != *want {
                    return Err(self.broken(format!("{tensor} of {file} is {have}, but the description says {want}")));
                }
            }
        }
        Ok(())
    }

    /// What is in front of the first slash in the names of wanted tensors, each once.
    pub(super) fn prefixes(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<String> {
        let names = self.names().filter(|n| wanted(n));
        let first = names.map(|n| n.split_once('/').map_or(n, |(first, _)| first).to_string());
        first.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Names of tensors whose values or shape nobody has asked for.
    pub(super) fn untouched(&self) -> Vec<String> {
        let touched = self.touched.borrow();
        self.names()
            .filter(|n| !touched.contains(*n))
            .map(String::from)
            .collect()
    }

    /// Names of all tensors; those of `GROUP.part.safetensors` as `part:name`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor, if the group has it.
    pub fn get(&self, name: &str) -> Option<&Array> {
        self.tensors.get(name)
    }

    /// A tensor the group must have.
    pub fn array(&self, name: &str) -> Result<&Array> {
        let array = self
            .get(name)
            .ok_or_else(|| self.broken(format!("{name} is missing")))?;
        self.touched.borrow_mut().insert(name.to_string());
        Ok(array)
    }

    /// Its values as f32 (integers and booleans converted).
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        Ok(match &self.array(name)?.values {
            Values::F32(v) => v.clone(),
            Values::I32(v) => v.iter().map(|&x| x as f32).collect(),
            Values::Bool(v) => v.iter().map(|&x| x as u8 as f32).collect(),
            Values::U8(v) => v.iter().map(|&x| x as f32).collect(),
        })
    }

    /// Its values as integers.
    pub fn i32(&self, name: &str) -> Result<Vec<i32>> {
        match &self.array(name)?.values {
            Values::I32(v) => Ok(v.clone()),
            _ => Err(self.broken(format!("{name} should be int32"))),
        }
    }

    /// Its values as booleans.
    pub fn bool(&self, name: &str) -> Result<Vec<bool>> {
        match &self.array(name)?.values {
            Values::Bool(v) => Ok(v.clone()),
            _ => Err(self.broken(format!("{name} should be bool"))),
        }
    }

    /// Its values as bytes.
    pub fn u8(&self, name: &str) -> Result<Vec<u8>> {
        match &self.array(name)?.values {
            Values::U8(v) => Ok(v.clone()),
            _ => Err(self.broken(format!("{name} should be uint8"))),
        }
    }

    /// Its shape.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.array(name)?.shape)
    }

    /// A number of the description, by JSON pointer.
    pub fn number(&self, pointer: &str) -> Result<f64> {
        let value = self.json.pointer(pointer).and_then(Value::as_f64);
        value.ok_or_else(|| self.broken(format!("the description has no number at {pointer}")))
    }

    /// The error for a group that is not as it should be.
    pub fn broken(&self, what: String) -> VerifyError {
        VerifyError::Format {
            group: self.name.clone(),
            what,
        }
    }
}

fn array(view: &safetensors::tensor::TensorView<'_>) -> Option<Array> {
    let data = view.data();
    let values = match view.dtype() {
        Dtype::F32 => Values::F32(bytemuck::pod_collect_to_vec(data)),
        Dtype::I32 => Values::I32(bytemuck::pod_collect_to_vec(data)),
        Dtype::BOOL => Values::Bool(data.iter().map(|&b| b != 0).collect()),
        Dtype::U8 => Values::U8(data.to_vec()),
        _ => return None,
    };
    Some(Array {
        shape: view.shape().to_vec(),
        values,
    })
}

/// The name of a tensor of `GROUP.part.safetensors`.
fn key(part: &str, tensor: &str) -> String {
    if part.is_empty() {
        tensor.to_string()
    } else {
        format!("{part}:{tensor}")
    }
}

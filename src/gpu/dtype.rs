//! Number formats of device memory.

use cubecl::ir::{ElemType, FloatKind, StorageType, UIntKind};

/// How a tensor's elements are stored. Kernels compute in f32 whatever the storage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F16,
    Bf16,
    U32,
    /// 16-bit words.
    U16,
    /// Bytes, four to a 32-bit word (WGSL has no 8-bit storage).
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::Bf16 | DType::U16 => 2,
            DType::U8 => 1,
        }
    }

    /// The name used in configs, errors and safetensors-like listings.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::Bf16 => "bfloat16",
            DType::U32 => "uint32",
            DType::U16 => "uint16",
            DType::U8 => "uint8",
        }
    }

    /// The type a kernel sees in its buffer.
    pub(crate) fn storage(self) -> StorageType {
        match self {
            DType::F32 => ElemType::Float(FloatKind::F32).into(),
            DType::F16 => ElemType::Float(FloatKind::F16).into(),
            DType::Bf16 => ElemType::Float(FloatKind::BF16).into(),
            DType::U16 => ElemType::UInt(UIntKind::U16).into(),
            DType::U32 | DType::U8 => ElemType::UInt(UIntKind::U32).into(),
        }
    }
}

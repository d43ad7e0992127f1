//! The choices in a configuration, and how they are written.

use serde::{Deserialize, Serialize};

use crate::gpu::DType;

/// Makes an enum of spellings, one per variant.
macro_rules! spellings {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $($name::$variant => $text,)+ })
            }
        }
    };
}

spellings! {
    /// Vision tower and language stream.
    PaligemmaVariant {
        /// SigLIP So400m/14 and Gemma 2B.
        Gemma2b = "gemma_2b",
        /// The same, fixed, with adapters of rank 16.
        Gemma2bLora = "gemma_2b_lora",
        /// The sizes of `tests/golden/pi0_tiny`, with the vocabulary of the shipped tokenizer.
        Tiny = "tiny",
        /// The same, its language stream fixed, with adapters of rank 2.
        TinyLora = "tiny_lora",
    }
}
spellings! {
    /// Action expert.
    ExpertVariant {
        Gemma300m = "gemma_300m",
        /// The same, fixed, with adapters of rank 32.
        Gemma300mLora = "gemma_300m_lora",
        Tiny = "tiny",
        /// The same, fixed, with adapters of rank 4.
        TinyLora = "tiny_lora",
    }
}
spellings! {
    /// Storage of weights and activations. Sums, norms, losses and critics are float32 always.
    Precision {
        Float32 = "float32",
        Bfloat16 = "bfloat16",
        Float16 = "float16",
    }
}
spellings! {
    /// Storage of residual streams: SigLIP's, the language model's and the action expert's.
    ResidualPrecision {
        /// As the rest of the model.
        Model = "model",
        Float32 = "float32",
    }
}
spellings! {
    /// Error of a critic's value.
    CriticLoss {
        Huber = "huber",
        Mse = "mse",
    }
}
spellings! {
    /// One value of an ensemble's.
    QAggregation {
        Min = "min",
        Mean = "mean",
        Weighted = "weighted",
    }
}
spellings! {
    /// What the critics see of images and prompt.
    Features {
        /// Mean of the embedded prefix tokens, before the language model.
        Embedding = "embedding",
        /// Mean of the language model's last hidden states.
        Llm = "llm",
    }
}
spellings! {
    /// Which candidates the actor loss takes its value from.
    ActorObjective {
        BestOfN = "best_of_n",
        MeanN = "mean_n",
    }
}
spellings! {
    /// What `[memory]` is where it says nothing else.
    MemoryPreset {
        /// States in float32 on the device, nothing computed twice.
        Exact = "exact",
        /// For smaller cards.
        Tight = "tight",
    }
}
spellings! {
    /// Activations that backward recomputes.
    Remat {
        None = "none",
        /// Gate and up of the language MLPs.
        Mlp = "mlp",
        /// Everything inside a block.
        Full = "full",
    }
}
spellings! {
    /// Storage of optimizer moments.
    Moments {
        Float32 = "float32",
        /// 8 bits each, with a scale for every 256.
        Blockwise8 = "blockwise8",
    }
}
spellings! {
    /// Rows of the prompt table that can learn.
    PromptStates {
        /// Those that have occurred.
        Touched = "touched",
        Dense = "dense",
    }
}
spellings! {
    /// A part of π₀.
    Part {
        Vision = "vision",
        Language = "language",
        Expert = "expert",
    }
}

impl From<Precision> for DType {
    fn from(precision: Precision) -> DType {
        match precision {
            Precision::Float32 => DType::F32,
            Precision::Bfloat16 => DType::Bf16,
            Precision::Float16 => DType::F16,
        }
    }
}

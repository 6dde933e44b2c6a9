"""Names and values that run files, records and code share; nothing but the standard library is imported."""

from __future__ import annotations

import re
from typing import Literal, get_args

from schemas.errors import InputError

SpecialTokenPolicy = Literal["exclude", "zero", "include", "zero_first"]
SpecialText = Literal["parse", "literal"]
ModelDtype = Literal["float32", "bfloat16", "float16"]
ActivationDtype = Literal["float16", "float32"]
ContextsOf = Literal["packed", "document"]
Pooling = Literal["none", "last_token", "mean"]
StoreLayout = Literal["token_major", "feature_major", "dense"]
DenseDtype = Literal["float32", "float16", "bfloat16"]
Loader = Literal[
    "transformer_lens", "hooked_transformer", "torch_module", "image_classifier", "inputs", "synthetic"
]
PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
"""Weight processing that TransformerLens knows."""
EncodeDtype = Literal["float32", "bfloat16"]
CheckSae = Literal["stop", "warn", "off"]
Control = Literal["random_encoder", "shuffled_rows"]
DerivedJob = Literal[
    "stats",
    "examples",
    "profile",
    "rank",
    "coactivation",
    "cluster",
    "logits",
    "fidelity",
    "importance",
    "images",
    "attribute",
    "plots",
    "report",
]
DERIVED_JOBS: tuple[DerivedJob, ...] = get_args(DerivedJob)
"""In the order in which they need each other."""
SYNTHETIC = "synthetic:"
"""What the `sae` of a site of a synthetic model begins with."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def check_name(name: str, what: str) -> str:
    """Return `name` when it is safe as a folder name, else raise InputError."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{what} {name!r} is not a folder name: use letters, digits and . _ + - (at most 128)"
        )
    return name

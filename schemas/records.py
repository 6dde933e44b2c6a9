"""The JSON records of a store: the lake, a link of the corpus chain, a pass's plan, a shard's receipt."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from schemas.names import (
    ActivationDtype,
    ContextsOf,
    Control,
    DenseDtype,
    EncodeDtype,
    Loader,
    ModelDtype,
    Pooling,
    SpecialText,
    SpecialTokenPolicy,
    StoreLayout,
)
from schemas.record import (
    FORMAT_VERSION,
    Amount,
    Count,
    LabelType,
    Name,
    Position,
    Positive,
    Record,
    TokenId,
    Version,
    canonical_json,
    digest_of,
    digest_of_file,
    parse_json,
    refuse_newer,
)
from schemas.values import RowSelection

__all__ = [
    "FORMAT_VERSION",
    "Record",
    "canonical_json",
    "digest_of",
    "digest_of_file",
    "parse_json",
    "refuse_newer",
]

MOST_FEATURES = 1 << 26
"""Of a site; SAEs have 2^24 at most, and several numbers of each are in memory."""
_MOST_CONTEXT = 1 << 20
_WIDEST = 1 << 24


class Inputs(Record):
    """The vectors that a corpus holds for each of its tokens."""

    width: Annotated[Positive, Field(le=_WIDEST)]
    dtype: Literal["uint8", "float32"]
    """As they are stored; a model is given uint8 as float32, divided by 255."""
    shape: tuple[Positive, ...]
    """The shape of one, as (28, 28); its product is `width`."""

    @model_validator(mode="after")
    def _has_its_width(self) -> Self:
        if math.prod(self.shape) != self.width:
            raise ValueError(f"the shape {list(self.shape)[:8]} does not hold {self.width} numbers")
        return self


class Lake(Record):
    """lake.json: what must be the same for every token of the store."""

    format_version: Version = FORMAT_VERSION
    tokenizer: str
    tokenizer_digest: str
    context_size: Annotated[Positive, Field(le=_MOST_CONTEXT)]
    bos_id: TokenId | None
    separator_id: TokenId | None
    special_ids: tuple[TokenId, ...]
    special_tokens: SpecialTokenPolicy
    label_columns: dict[str, LabelType]
    """Label column -> Polars dtype name (String, Int64, Float64 or Boolean)."""
    contexts: ContextsOf = "packed"
    """Whether documents follow each other, or each has a context of its own."""
    inputs: Inputs | None = None
    """What a model reads in place of tokens; None: it reads tokens."""
    special_text: SpecialText = "literal"
    """Whether text that spells a special token was that token, or letters, as before version 7."""

    @property
    def digest(self) -> str:
        """sha256 of the record, in hex."""
        content = self.model_dump(mode="json")
        _drop_defaults(content, type(self), LATER_IN_LAKES)
        return digest_of(content)


class ShardRecord(Record):
    """One token shard in a link of the corpus chain."""

    name: Name
    sha256: str
    bytes: Count
    row_start: Count
    rows: Count
    counted_rows: Count
    context_start: Count
    contexts: Count
    counted_contexts: Count
    document_start: Count
    documents: Count
    counted_documents: Count

    @model_validator(mode="after")
    def _counts_parts(self) -> Self:
        """What is counted is a part of what there is."""
        for name in ("rows", "contexts", "documents"):
            if getattr(self, f"counted_{name}") > getattr(self, name):
                raise ValueError(f"shard {self.name[:128]} counts more {name} than it has")
        if self.contexts > self.rows:
            raise ValueError(f"shard {self.name[:128]} has more contexts than rows")
        return self


class CorpusLink(Record):
    """corpus/<n>.json: one source, cut into shards."""

    format_version: Version = FORMAT_VERSION
    source: dict[str, Any]
    source_digest: str
    shards: tuple[ShardRecord, ...]


class PlannedSite(Record):
    """One site of a pass."""

    name: Name
    hook_name: str
    sae: str
    sae_digest: str
    architecture: str
    d_model: Annotated[Count, Field(le=_WIDEST)]
    d_sae: Annotated[Count, Field(le=MOST_FEATURES)]
    encode_block: Positive
    """Rows encoded at once."""
    feature_block: Positive
    """Features in one row group of the postings."""
    encode_features: Count = 0
    """Features encoded at once; 0, in plans from before version 0.2, means all."""
    encode_dtype: EncodeDtype = "float32"
    """What the factors of x @ W_enc are rounded to."""
    positions: Annotated[tuple[Position | None, ...], Field(min_length=1, max_length=3)] | None = None
    """Positions of a context that are encoded and counted, as start, stop and perhaps step of Python's slice
    over the lake's context_size positions; None: all of them."""
    pooling: Pooling = "none"
    """What the SAE reads of a context: each row's x, or one vector."""
    control: Control | None = None
    """The control that is counted along with the learnt features on some contexts; None: nothing."""
    control_seed: Count = 0
    """What the control is drawn from."""

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if self.positions is not None and self.positions[2:] == (0,):
            raise ValueError("positions have the step 0")
        return self

    @property
    def has_sae(self) -> bool:
        """Whether there are features; a site without stores x alone, its d_sae and d_model are 0."""
        return self.d_sae > 0

    @property
    def selection(self) -> RowSelection:
        """What it reads of a context."""
        return RowSelection(self.positions, self.pooling)


LATER_IN_LAKES = {"contexts", "inputs", "special_text"}
LATER_IN_SITES = {"encode_features", "encode_dtype", "positions", "pooling", "control", "control_seed"}
LATER_IN_PLANS = {"model_processing", "model_inputs", "dense_dtype"}
"""Fields that came after the first stores: left out of a recipe at their default, so that hashes stay."""

CHOSEN = ("encode_block", "encode_features", "feature_block")
"""Fields of a planned site that latentlake chooses: a pass keeps those that it was begun with."""


class Plan(Record):
    """passes/<pass>/plan.json: everything that can change a pass's data."""

    format_version: Version = FORMAT_VERSION
    pass_name: Name
    lake_digest: str
    model: str
    model_loader: Loader
    model_digest: str
    model_dtype: ModelDtype
    device: str
    batch_contexts: Positive
    threads: Count
    sites: Annotated[tuple[PlannedSite, ...], Field(min_length=1)]
    activation_dtype: ActivationDtype
    layouts: Annotated[tuple[StoreLayout, ...], Field(min_length=1)]
    environment: dict[str, str]
    """Library versions. The device's model is the workers' to say: it stands in the receipts."""
    model_processing: dict[str, bool] | None = None
    """Weight processing of the model that is on (fold_ln: true ...); None: none."""
    model_inputs: Inputs | None = None
    """What the model reads in place of tokens; None: it reads tokens."""
    dense_dtype: DenseDtype = "float32"
    """What x of layout dense is rounded to."""

    def recipe(self) -> dict[str, Any]:
        """What the hash covers: all but where the model and the SAEs lie."""
        content = self.model_dump(mode="json")
        del content["model"]
        _drop_defaults(content, type(self), LATER_IN_PLANS)
        for site in content["sites"]:
            del site["sae"]
            _drop_defaults(site, PlannedSite, LATER_IN_SITES)
        return content

    @property
    def hash(self) -> str:
        """sha256 of the recipe, in hex."""
        return digest_of(self.recipe())


def _drop_defaults(content: dict[str, Any], record: type[Record], names: set[str]) -> None:
    """Take those of the fields `names` out that say what they say by default."""
    for name in names:
        if content[name] == record.model_fields[name].default:
            del content[name]


_EXACT = ConfigDict(extra="forbid")
# What a store holds by the ten thousand are dataclasses with slots: a third of a Record's memory.


@dataclass(frozen=True, slots=True, config=_EXACT)
class DataObject:
    """One data object of an attempt: a file, or a folder hashed as one.

    A folder's sha256 is that of its sorted lines `<relative path> <sha256 of the file>`.
    """

    path: str
    """Below the attempt's folder, as `<site>/<object>`."""
    bytes: Count
    sha256: str


@dataclass(frozen=True, slots=True, config=_EXACT)
class Counted:
    """How much of a shard is counted for a site."""

    rows: Count
    contexts: Count
    """Contexts with a counted row."""
    documents: Count
    """Documents with a counted row."""


@dataclass(frozen=True, slots=True, config=_EXACT)
class SiteReceipt:
    """What one site of one shard holds."""

    nnz: Count
    underflow: Count
    """Activations that rounding to activation_dtype turned into 0 (not stored)."""
    rounding: Amount
    """Largest |rounded - value| / |value| among stored activations."""
    counted: Counted | None = None
    """What is counted where the site reads some positions only; None: what the shard's record says."""
    explained_variance: float | None = None
    """1 - SSE / SST on the shard's first rows, where it was measured (a worker's first shard)."""
    explained_variance_rest: float | None = None
    """The same without massive rows, which are above ten times the median norm; None where there are not a
    few of them."""


@dataclass(frozen=True, slots=True, config=_EXACT)
class CompactedFile(DataObject):
    """Postings of one feature block over all shards of a compaction; `path` is below its folder."""

    first_feature: Annotated[Count, Field(lt=MOST_FEATURES)]
    nnz: Positive


class Compaction(Record):
    """passes/<pass>/compactions/<id>.json: the postings of one site over some shards, by feature block."""

    format_version: Version = FORMAT_VERSION
    site: Name
    shards: tuple[Name, ...]
    """Those that it covers, in shard order."""
    receipts: str
    """Digest of their receipts."""
    files: tuple[CompactedFile, ...]
    """By first feature; blocks in which nothing fired have none."""

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        firsts = [file.first_feature for file in self.files]
        if firsts != sorted(set(firsts)):
            raise ValueError("its files are not in the order of their features")
        return self


class Dropped(Record):
    """passes/<pass>/dropped/<site>.json: the site is not of the store any more, whatever is left of it."""

    format_version: int = FORMAT_VERSION
    site: str
    at: str
    """When, in UTC, as 2026-01-31T12:00:00Z."""


class Receipt(Record):
    """passes/<pass>/commits/<shard>.json: the commit of one shard."""

    format_version: Version = FORMAT_VERSION
    shard: Name
    attempt: Name
    plan_hash: str
    tokens_sha256: str
    rows: Count
    sites: dict[str, SiteReceipt]
    objects: tuple[DataObject, ...]
    seconds: dict[str, Amount]
    """Wall seconds by stage: read, forward, encode, write."""
    peak_rss_bytes: Count
    """Largest resident memory of the worker's process so far."""
    environment: dict[str, str]
    batch_contexts: Positive | None = None
    """Contexts of a batch where GPU memory forced fewer than the plan's, so that low bits of this shard may
    be others than with enough memory; None: the plan's."""
    link: Count | None = None
    """The corpus link that the shard is in; None in receipts from before version 3."""

    @property
    def nnz(self) -> int:
        """Stored activations, over all sites."""
        return sum(site.nnz for site in self.sites.values())

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(item.bytes for item in self.objects)

    @property
    def work_seconds(self) -> float:
        """Wall seconds of all stages; to the bit the same in any order of them."""
        return math.fsum(self.seconds.values())

"""The JSON records of a store: the lake, a link of the corpus chain, a pass's plan, a shard's receipt."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from schemas.errors import InputError
from schemas.run_file import (
    ActivationDtype,
    ContextsOf,
    Control,
    DenseDtype,
    EncodeDtype,
    Loader,
    ModelDtype,
    Pooling,
    SpecialTokenPolicy,
    StoreLayout,
)
from schemas.values import Reads

FORMAT_VERSION = 7


class Record(BaseModel):
    """A frozen JSON object; `to_json` is canonical, so equal records have equal bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """Canonical bytes: sorted keys, no spaces beyond one newline at the end."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Any:
        """Read a record; a newer format, or damage, is one sentence that names the file."""
        try:
            record = cls.model_validate_json(data)
        except ValidationError:
            return cls._from_content(data, where)
        refuse_newer(getattr(record, "format_version", None), where)
        return record

    @classmethod
    def _from_content(cls, data: bytes, where: str) -> Any:
        """The same in steps, which find what is wrong."""
        try:
            content = json.loads(data)
        except ValueError:
            raise InputError(f"{where} is damaged (not JSON); restore it from a copy of the store") from None
        refuse_newer(content.get("format_version") if isinstance(content, dict) else None, where)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{where} is no {cls.__name__}: {error.errors()[0]['msg']}") from None


def refuse_newer(version: Any, where: str) -> None:
    """Stop at a format version that this code does not know; older ones, and None, pass."""
    if version is not None and int(version) > FORMAT_VERSION:
        raise InputError(
            f"{where} has format version {version}, this latentlake reads up to {FORMAT_VERSION}: "
            "update latentlake"
        )


def canonical_json(content: Any) -> bytes:
    """JSON with sorted keys and no white space."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(content: Any) -> str:
    """sha256 of the canonical JSON of `content`, in hex."""
    return hashlib.sha256(canonical_json(content)).hexdigest()


class Inputs(Record):
    """The vectors that a corpus holds for each of its tokens."""

    width: int
    dtype: Literal["uint8", "float32"]
    """As they are stored; a model is given uint8 as float32, divided by 255."""
    shape: tuple[int, ...]
    """How one is to be looked at, as (28, 28); its product is `width`."""


class Lake(Record):
    """lake.json: what must be the same for every token of the store."""

    format_version: int = FORMAT_VERSION
    tokenizer: str
    tokenizer_digest: str
    context_size: int
    bos_id: int | None
    separator_id: int | None
    special_ids: tuple[int, ...]
    special_tokens: SpecialTokenPolicy
    label_columns: dict[str, str]
    """Label column -> Polars dtype name (String, Int64, Float64 or Boolean)."""
    contexts: ContextsOf = "packed"
    """Whether documents follow each other, or each has a context of its own."""
    inputs: Inputs | None = None
    """What a model reads in the place of tokens; None: it reads tokens."""

    @property
    def digest(self) -> str:
        """sha256 of the record, in hex."""
        content = self.model_dump(mode="json")
        _drop_defaults(content, type(self), LATER_IN_LAKES)
        return digest_of(content)


class ShardRecord(Record):
    """One token shard in a link of the corpus chain."""

    name: str
    sha256: str
    bytes: int
    row_start: int
    rows: int
    counted_rows: int
    context_start: int
    contexts: int
    counted_contexts: int
    document_start: int
    documents: int
    counted_documents: int


class CorpusLink(Record):
    """corpus/<n>.json: one source, cut into shards."""

    format_version: int = FORMAT_VERSION
    source: dict[str, Any]
    source_digest: str
    shards: tuple[ShardRecord, ...]


class PlannedSite(Record):
    """One site of a pass."""

    name: str
    hook_name: str
    sae: str
    sae_digest: str
    architecture: str
    d_model: int
    d_sae: int
    encode_block: int
    """Rows encoded at once."""
    feature_block: int
    """Features in one row group of the postings."""
    encode_features: int = 0
    """Features encoded at once; 0, in plans from before version 0.2, means all."""
    encode_dtype: EncodeDtype = "float32"
    """What the factors of x @ W_enc are rounded to."""
    positions: tuple[int | None, ...] | None = None
    """Positions of a context that are encoded and counted, as start, stop and perhaps step of Python's slice
    over the lake's context_size positions; None: all of them."""
    pooling: Pooling = "none"
    """What the SAE reads of a context: each row's x, or one vector."""
    control: Control | None = None
    """What is counted beside the learnt features on some contexts; None: nothing."""
    control_seed: int = 0
    """What the control is drawn from."""

    @property
    def has_sae(self) -> bool:
        """Whether there are features; a site without stores x alone, its d_sae and d_model are 0."""
        return self.d_sae > 0

    @property
    def reads(self) -> Reads:
        """What it reads of a context."""
        return Reads(self.positions, self.pooling)


LATER_IN_LAKES = {"contexts", "inputs"}
LATER_IN_SITES = {"encode_features", "encode_dtype", "positions", "pooling", "control", "control_seed"}
LATER_IN_PLANS = {"model_processing", "model_inputs", "dense_dtype"}
"""Fields that came after the first stores: left out of a recipe at their default, so that hashes stay."""

CHOSEN = ("encode_block", "encode_features", "feature_block")
"""Fields of a planned site that latentlake chooses: a pass keeps those that it was begun with."""


class Plan(Record):
    """passes/<pass>/plan.json: everything that can move a bit of a pass's data."""

    format_version: int = FORMAT_VERSION
    pass_name: str
    lake_digest: str
    model: str
    model_loader: Loader
    model_digest: str
    model_dtype: ModelDtype
    device: str
    batch_contexts: int
    threads: int
    sites: tuple[PlannedSite, ...]
    activation_dtype: ActivationDtype
    layouts: tuple[StoreLayout, ...]
    environment: dict[str, str]
    """Library versions. The device's model is the workers' to say: it stands in the receipts."""
    model_processing: dict[str, bool] | None = None
    """Weight processing of the model that is on (fold_ln: true ...); None: none."""
    model_inputs: Inputs | None = None
    """What the model reads in the place of tokens; None: it reads tokens."""
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
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, config=_EXACT)
class Counted:
    """How much of a shard is counted for a site."""

    rows: int
    contexts: int
    """Contexts with a counted row."""
    documents: int
    """Documents with a counted row."""


@dataclass(frozen=True, slots=True, config=_EXACT)
class SiteReceipt:
    """What one site of one shard holds."""

    nnz: int
    underflow: int
    """Activations that rounding to activation_dtype turned into 0 (not stored)."""
    rounding: float
    """Largest |rounded - value| / |value| among stored activations."""
    counted: Counted | None = None
    """What is counted where the site reads some positions only; None: what the shard's record says."""
    explained_variance: float | None = None
    """1 - SSE / SST on the shard's first rows, where somebody looked (a worker's first shard)."""
    explained_variance_rest: float | None = None
    """The same without massive rows, which are above ten times the median norm; None where there are not a
    few of them."""


@dataclass(frozen=True, slots=True, config=_EXACT)
class CompactedFile(DataObject):
    """Postings of one feature block over all shards of a compaction; `path` is below its folder."""

    first_feature: int
    nnz: int


class Compaction(Record):
    """passes/<pass>/compactions/<id>.json: the postings of one site over some shards, by feature block."""

    format_version: int = FORMAT_VERSION
    site: str
    shards: tuple[str, ...]
    """Those that it covers, in shard order."""
    receipts: str
    """Digest of their receipts."""
    files: tuple[CompactedFile, ...]
    """By first feature; blocks in which nothing fired have none."""


class Receipt(Record):
    """passes/<pass>/commits/<shard>.json: the commit of one shard."""

    format_version: int = FORMAT_VERSION
    shard: str
    attempt: str
    plan_hash: str
    tokens_sha256: str
    rows: int
    sites: dict[str, SiteReceipt]
    objects: tuple[DataObject, ...]
    seconds: dict[str, float]
    """Wall seconds by stage: read, forward, encode, write."""
    peak_rss_bytes: int
    """Largest resident memory of the worker's process so far."""
    environment: dict[str, str]
    batch_contexts: int | None = None
    """Contexts of a batch where GPU memory forced fewer than the plan's, so that low bits of this shard may
    be others than with enough memory; None: the plan's."""
    link: int | None = None
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

    def same_bytes(self, other: Receipt) -> bool:
        """Whether two attempts wrote the same data."""
        return {o.path: o.sha256 for o in self.objects} == {o.path: o.sha256 for o in other.objects}

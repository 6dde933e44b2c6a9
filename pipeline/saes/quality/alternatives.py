"""Other ways to read an SAE's files: each undoes one common mistake, and says what it changes.

An alternative is an encoder (a new one, nothing is changed in place) and the rows to try it on. The functions
of WAYS are pure: an encoder and rows [n, D] in, alternatives out, the more special ones first. Mistakes about
the rows themselves (hook, BOS) are the caller's to add, who has the model.

N rows, D d_model, O width of the target, F d_sae, s = sqrt(D) / mean norm of x: the factor of SAELens'
`expected_average_only_in`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.saes.encoding.architectures import ARCHITECTURES, array_names
from pipeline.saes.encoding.encoder import Encoder, RuleEncoder
from pipeline.saes.encoding.weights import Weights, fold_input_scale, rule_of
from pipeline.saes.quality.reconstruction import MASSIVE, MASSIVE_SHARE, Reconstruction, reconstruct

BLOCK, SAMPLE = 512, 256
"""Rows reconstructed at once; rows that a factor or a k is searched on."""

OWN_SCALE = ("layer_norm", "constant_norm_rescale")
"""Normalisations by a row's own norm: no factor of the corpus comes into them."""


class Rows(NamedTuple):
    """What an SAE is tried on: x [N, D] and the target [N, O], of a plain SAE the same."""

    x: Tensor
    target: Tensor

    def thinned(self, n: int) -> Rows:
        """At most n of the rows, evenly spaced."""
        if len(self.x) <= n:
            return self
        # in whole numbers, so that the last row is never passed
        kept = torch.arange(n, device=self.x.device) * len(self.x) // n
        return Rows(self.x[kept], self.target[kept])

    def ordinary(self) -> Rows:
        """Without massive rows (by the target's norm), where they are few; see `reconstruction`."""
        norms = torch.linalg.vector_norm(self.target.double(), dim=1)
        if not len(norms):
            return self
        kept = norms <= MASSIVE * norms.quantile(0.5)
        if not 0 < int((~kept).sum()) <= MASSIVE_SHARE * len(norms):
            return self
        # a plain SAE's target is x itself, and stays one tensor with it
        x = self.x[kept]
        return Rows(x, x if self.target is self.x else self.target[kept])


class Alternative(NamedTuple):
    """One way to read the SAE; `change` says what to do about it, to be read after a colon."""

    name: str
    change: str
    encoder: Encoder
    rows: Rows


Way = Callable[[Encoder, Rows], Iterator[Alternative]]


def measured(encoder: Encoder, rows: Rows) -> Reconstruction:
    """How well the encoder reconstructs the rows."""
    reconstruction = Reconstruction(encoder.d_sae)
    for first in range(0, len(rows.x), BLOCK):
        block = slice(first, first + BLOCK)
        reconstruct(encoder, rows.x[block], rows.target[block], reconstruction)
    return reconstruction


def rebuilt(encoder: Encoder, weights: Weights | None = None, **metadata: Any) -> Encoder:
    """A new encoder with some weights and some fields of the metadata replaced."""
    changed = replace(encoder.metadata, **metadata)
    every = tensors_of(encoder) | (weights or {})
    kept = {name: every[name] for name in array_names(changed.architecture, skip=changed.skip)}
    return RuleEncoder(changed, kept, rule_of(changed, kept), encoder.block, encoder.dtype)


def tensors_of(encoder: Encoder) -> Weights:
    """The encoder's weights on its device; they may share its memory."""
    return {name: torch.from_numpy(array).to(encoder.device) for name, array in encoder.weights().items()}


def scaled(encoder: Encoder, scale_in: float, scale_out: float) -> Encoder:
    """The encoder for x * scale_in and target * scale_out, with both factors folded in."""
    return rebuilt(encoder, fold_input_scale(tensors_of(encoder), scale_in, scale_out))


def mean_norm_factor(x: Tensor) -> float:
    """What brings the mean norm of rows x [N, D] to sqrt(D); 1 for rows of zeros."""
    norm = float(torch.linalg.vector_norm(x.double(), dim=1).mean())
    return x.shape[1] ** 0.5 / norm if norm else 1.0


def normalisation(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """The corpus' factor s was to be folded into the weights and was not, or was twice, or by half."""
    if encoder.metadata.normalize_activations in OWN_SCALE:
        return
    s_in, s_out = mean_norm_factor(rows.x), mean_norm_factor(rows.target)
    factor = f"sqrt(d_model) / mean norm of x, {s_in:.4g} here"
    for name, change, scales in (
        (
            "normalisation missing",
            f"x must be scaled by the factor {factor} before it is encoded, and the reconstruction scaled "
            "back: fold the factor into the weights",
            (s_in, s_out),
        ),
        (
            "normalisation applied twice",
            f"the weights hold the factor {factor}, one time too many: give the SAE the x that it expects, "
            "or take the factor out of the weights",
            (1 / s_in, 1 / s_out),
        ),
        (
            "reconstruction not scaled back",
            f"the reconstruction must be divided by the factor {factor}: divide W_dec and b_dec by it",
            (1.0, s_out),
        ),
        (
            "reconstruction scaled back, x not scaled",
            f"x must be multiplied by the factor {factor} before it is encoded: multiply W_enc by it",
            (s_in, 1.0),
        ),
    ):
        yield Alternative(name, change, scaled(encoder, *scales), rows)


def own_normalisation(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """Each row normalised by its own mean and norm, or not."""
    used = encoder.metadata.normalize_activations
    for how in ("layer_norm", "constant_norm_rescale", "none"):
        if how != used and not (how == "none" and used not in OWN_SCALE):
            change = f"set normalize_activations to {how} instead of {used}"
            yield Alternative(
                f"normalisation {how}", change, rebuilt(encoder, normalize_activations=how), rows
            )


def decoder_bias(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """b_dec subtracted from x or not."""
    if encoder.metadata.transcoder:
        return
    flipped = not encoder.metadata.apply_b_dec_to_input
    change = f"set apply_b_dec_to_input to {str(flipped).lower()}"
    name = "b_dec subtracted from x" if flipped else "b_dec not subtracted from x"
    yield Alternative(name, change, rebuilt(encoder, apply_b_dec_to_input=flipped), rows)


def thresholds(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """The threshold is in another form than the file's, or on another scale."""
    if encoder.metadata.architecture != "jumprelu":
        return
    learnt, s = tensors_of(encoder)["threshold"], mean_norm_factor(rows.x)
    for name, change, threshold in (
        ("threshold is a logarithm", "apply exp() to the threshold", learnt.exp()),
        (
            "exp() was applied twice to the threshold",
            "use the threshold as it was before the last exp()",
            learnt.clamp(min=1e-30).log(),
        ),
        (
            "threshold on the scale of normalised x",
            f"divide the threshold by sqrt(d_model) / mean norm of x, {s:.4g} here",
            learnt / s,
        ),
        (
            "threshold on the scale of raw x",
            f"multiply the threshold by sqrt(d_model) / mean norm of x, {s:.4g} here (Llama Scope)",
            learnt * s,
        ),
    ):
        yield Alternative(name, change, rebuilt(encoder, {"threshold": threshold}), rows)


def selection(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """Another rule says which features fire: ReLU or the k largest."""
    metadata = encoder.metadata
    if "b_enc" not in encoder.weights():
        return
    topk = partial(rebuilt, encoder, architecture="topk")
    for k in sorted(published_k(encoder)):
        if (metadata.architecture, metadata.k) != ("topk", k):
            change = f"load the SAE as TopK with k {k}, as its own files or its card say"
            yield Alternative(f"TopK, k {k}", change, topk(k=k), rows)
    if metadata.architecture != "standard":
        change = f"load the SAE as a standard one (ReLU) instead of as {metadata.architecture}"
        yield Alternative("ReLU", change, rebuilt(encoder, architecture="standard", k=None), rows)
    if metadata.architecture == "topk":
        change = "load the SAE as AbsTopK: its activations are signed"
        yield Alternative("AbsTopK", change, rebuilt(encoder, architecture="abstopk"), rows)


def published_k(encoder: Encoder) -> set[int]:
    """Numbers of active features that the SAE's files or its card name."""
    published = set(_named_k(encoder.metadata.extra))
    if "l0" in encoder.metadata.card:
        published.add(round(encoder.metadata.card["l0"]))
    return {k for k in published if 1 <= k <= encoder.d_sae}


def _named_k(content: Mapping[str, Any]) -> Iterator[int]:
    """Values of `k` anywhere in a configuration."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _named_k(value)
        elif name in ("k", "top_k", "topk") and isinstance(value, int) and not isinstance(value, bool):
            yield value


def decoder_norms(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """Activations are meant for decoder rows of length 1."""
    weights = tensors_of(encoder)
    norm = torch.linalg.vector_norm(weights["W_dec"], dim=1).clamp(min=1e-30)
    # rows of length 1 already: norms cannot be the mistake
    if bool(((norm - 1).abs() < 0.01).all()):
        return
    unit = {"W_dec": weights["W_dec"] / norm[:, None]}
    change = "divide the rows of W_dec by their norms: its activations assume rows of length 1"
    yield Alternative("W_dec with unit rows", change, rebuilt(encoder, unit), rows)
    if "b_enc" in weights:
        folded = unit | {"W_enc": weights["W_enc"] * norm, "b_enc": weights["b_enc"] * norm}
        change = (
            "set rescale_acts_by_decoder_norm to true: the threshold applies to activations multiplied by "
            "the norms of W_dec's rows"
        )
        yield Alternative("decoder norms folded in", change, rebuilt(encoder, folded), rows)


def precision(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """Weights and threshold as bfloat16 holds them."""
    rounded = {name: tensor.bfloat16().float() for name, tensor in tensors_of(encoder).items()}
    change = "round weights and threshold to bfloat16, in which the SAE was trained"
    yield Alternative("weights rounded to bfloat16", change, rebuilt(encoder, rounded), rows)


def any_k(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """TopK with the power of two that explains most."""
    if "b_enc" not in encoder.weights():
        return
    topk = partial(rebuilt, encoder, architecture="topk")
    sample = rows.thinned(SAMPLE)
    # more than half as many features as dimensions explain anything, so k ends there
    powers = (1 << n for n in range(min(encoder.d_model // 2, encoder.d_sae).bit_length()))
    k = max(powers, key=lambda k: _score(topk(k=k), sample))
    if (encoder.metadata.architecture, encoder.metadata.k) != ("topk", k):
        change = f"load the SAE as TopK; among powers of two, k {k} explains most, so look up the true k"
        yield Alternative(f"TopK, best k {k}", change, topk(k=k), rows)


def any_scale(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """A factor that explains best, whatever it comes from: of x, of W_enc alone, of W_dec alone."""
    if encoder.metadata.normalize_activations in OWN_SCALE:
        return
    sample = rows.thinned(SAMPLE)
    is_poor = _score(encoder, sample) < POOR_FIT
    c = best_factor(lambda c: _score(scaled(encoder, c, c), sample), wide=is_poor)
    if c != 1:
        change = f"x must be multiplied by about {c:.3g} to be encoded, and the reconstruction divided"
        yield Alternative("x on another scale", change, scaled(encoder, c, c), rows)
    c = best_factor(lambda c: _score(scaled(encoder, c, 1), sample), wide=is_poor)
    if c != 1:
        change = f"W_enc must be multiplied by about {c:.3g}"
        yield Alternative("W_enc on another scale", change, scaled(encoder, c, 1), rows)
    c = decoder_factor(encoder, sample)
    if abs(c - 1) > 0.02:
        weights = {"W_dec": tensors_of(encoder)["W_dec"] * c}
        change = f"W_dec must be multiplied by about {c:.3g}"
        yield Alternative("W_dec on another scale", change, rebuilt(encoder, weights), rows)


POOR_FIT = 0.5
"""Below this explained variance the search for a factor goes from 1/256 to 256, above it stays near 1."""


def best_factor(score: Callable[[float], float], *, wide: bool) -> float:
    """The factor of the largest score, by powers of two first and then in steps down to 2^(1/16)."""
    reach = 8 if wide else 1
    scores = {2.0**n: score(2.0**n) for n in range(-reach, reach + 1)}
    best = max(scores, key=lambda c: (scores[c], c == 1))
    # steps that halve around the best power of two, as if the score had one maximum there
    for step in (2**0.5, 2**0.25, 2**0.125, 2**0.0625):
        scores |= {c: score(c) for c in (best * step, best / step)}
        # the best so far comes first: of equal scores the simpler factor stays
        best = max((best, best * step, best / step), key=lambda c: scores[c])
    return best


def decoder_factor(encoder: Encoder, rows: Rows) -> float:
    """The factor of activations @ W_dec with the least squared error; 1 where nothing fires."""
    features = encoder.encode(rows.x)
    y = encoder.decode(features, like=rows.x)
    # without activations only the bias is left: least squares of the rest on the sum of directions
    nothing = encoder.decode(features.select(features.data == 0), like=rows.x)
    sum_, rest = (y - nothing).double(), (rows.target.to(y.device) - nothing).double()
    power = float(sum_.square().sum())
    return float((sum_ * rest).sum()) / power if power else 1.0


def _score(encoder: Encoder, rows: Rows) -> float:
    """Explained variance, of nothing the worst."""
    explained = measured(encoder, rows).explained_variance
    return -math.inf if math.isnan(explained) else explained


WAYS: tuple[Way, ...] = (
    precision,
    normalisation,
    own_normalisation,
    decoder_bias,
    thresholds,
    selection,
    decoder_norms,
    any_k,
    any_scale,
)
"""All of them, the special before the general."""


def alternatives(encoder: Encoder, rows: Rows) -> Iterator[Alternative]:
    """Every alternative reading of the SAE, tried on these rows; none for an architecture without a rule."""
    for way in WAYS if encoder.metadata.architecture in ARCHITECTURES else ():
        yield from way(encoder, rows)

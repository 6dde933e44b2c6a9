"""What must come out of a known dictionary, in closed form, and the file that keeps it.

Shapes: F features, D entries of a vector. A value is a normal number Z of mean m and standard deviation s, 0
where it is not above 0; with t = m / s, P(Z > 0) = Phi(t) and E[Z | Z > 0] = m + s phi(t) / Phi(t) (the
truncated normal distribution; N. L. Johnson, S. Kotz, N. Balakrishnan, Continuous Univariate Distributions 1,
2nd edition 1994, section 10.1). Two features of a correlated group fire together as often as two normal
numbers of that correlation both exceed their thresholds (an orthant probability).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.store.objects.verbs import read_bytes
from pipeline.synthetic.dictionary.generator import DictionaryGenerator
from pipeline.synthetic.dictionary.numbers import magnitudes, probabilities
from pipeline.synthetic.dictionary.trees import JointFrequencies, Relations, joint_frequencies, relations
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.npy import check_npz
from schemas.run.dictionary_corpus import Dictionary
from schemas.values import F32, F64

_LEAST_STD = 1e-12

FIRST = 1 << 16
"""Entries of the first rows that a truth keeps."""


class Pairs(NamedTuple):
    """Pairs of features int64 [P, 2], and how often both fire, float64 [P]."""

    features: NDArray[np.int64]
    frequency: F64


@dataclass(frozen=True)
class KnownTruth:
    """A recipe and its dictionary: directions float32 [F, D], bias float32 [D]; the first rows of x [n, D].

    By these rows a store shows whether it was drawn from this dictionary, and by the same random numbers, for
    another version of a package may draw others. Older files hold none, n = 0.
    """

    recipe: Dictionary
    vectors: F32
    bias: F32
    first: F32 = field(default_factory=lambda: np.empty((0, 0), np.float32))

    @cached_property
    def _above(self) -> tuple[F64, F64]:
        """That a value that is drawn is above 0, and its mean where it is; float64 [F] both."""
        return above_zero(*magnitudes(self.recipe))

    @cached_property
    def _trees(self) -> list[JointFrequencies]:
        would = probabilities(self.recipe) * self._above[0]
        return [joint_frequencies(tree, would) for tree in self.recipe.trees]

    @cached_property
    def frequency(self) -> F64:
        """How often each feature fires, trees included, float64 [F]."""
        # a feature in a tree fires where its parents do too; all others as they would alone
        share: F64 = probabilities(self.recipe) * self._above[0]
        for tree in self._trees:
            share[tree.features] = tree.frequency.diagonal()
        return share

    @property
    def mean_active(self) -> F64:
        """The mean value of each where it fires, float64 [F]."""
        return self._above[1]

    @cached_property
    def correlated(self) -> Pairs:
        """Pairs of correlated groups."""
        from scipy import special

        p, (above, _) = probabilities(self.recipe), self._above
        quantiles = special.ndtri(p)
        features, both = [np.empty((0, 2), np.int64)], [np.empty(0)]
        for group in self.recipe.correlated:
            # how often both would fire, times the chances that their values, drawn apart, are above 0
            pairs = np.array(list(combinations(group.features, 2)), np.int64)
            share = both_below(quantiles[pairs[:, 0]], quantiles[pairs[:, 1]], group.correlation)
            features.append(pairs)
            both.append(share * above[pairs].prod(axis=1))
        return Pairs(np.concatenate(features), np.concatenate(both))

    @cached_property
    def relations(self) -> Relations:
        """Pairs of the trees."""
        return relations(self.recipe.trees)

    @cached_property
    def _related(self) -> dict[int, tuple[list[int], F64]]:
        """Of a feature in a group or a tree: the others there, and how often both fire."""
        of_trees = {
            f: (t.features, row) for t in self._trees for f, row in zip(t.features, t.frequency, strict=True)
        }
        of_group: dict[int, dict[int, float]] = {}
        for (a, b), both in zip(self.correlated.features.tolist(), self.correlated.frequency, strict=True):
            of_group.setdefault(a, {})[b] = of_group.setdefault(b, {})[a] = float(both)
        return of_trees | {
            f: (list(others), np.array(list(others.values()))) for f, others in of_group.items()
        }

    def both(self, a: int, b: int) -> float:
        """How often two features fire in the same row, exactly."""
        others, frequency = self._related.get(a, ([], np.empty(0)))
        return float(frequency[others.index(b)] if b in others else self.frequency[a] * self.frequency[b])

    def means_when_active(self, feature: int) -> F64:
        """The mean value, zeros included, of every feature in the rows in which one fires, float64 [F]."""
        share = self.frequency.copy()
        others, both = self._related.get(feature, ([], np.empty(0)))
        share[others] = both / self.frequency[feature]
        share[feature] = 1.0
        return np.where(share > 0, share * self.mean_active, 0.0)


def above_zero(mean: F64, std: F64) -> tuple[F64, F64]:
    """P(Z > 0) and E[Z | Z > 0]; 0 and NaN where no value is above 0."""
    from scipy import special

    # a standard deviation of 0 is a value that is always its mean, and t would be infinite
    scale = np.maximum(std, _LEAST_STD)
    t = mean / scale
    chance: F64 = np.where(std > 0, special.ndtr(t), (mean > 0).astype(np.float64))
    density = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(std > 0, mean + std * density / chance, np.where(mean > 0, mean, np.nan))
    return chance, value


def both_below(h: F64, k: F64, correlation: float) -> F64:
    """P(X < h, Y < k) of normal numbers of that correlation, float64 as h and k.

    D. B. Owen, Annals of Mathematical Statistics 27 (1956), 1075-1090, equation 2.1, by his function T.
    """
    from scipy import special

    # Owen: (Phi(h) + Phi(k)) / 2 - T(h, a_h) - T(k, a_k), and 1/2 less where h and k differ in sign
    h, k = (np.where(quantile == 0, 1e-100, quantile) for quantile in (h, k))  # the limit, without 0 / 0
    root = np.sqrt(1 - correlation**2)
    halves = special.ndtr(h) / 2 + special.ndtr(k) / 2 - (h * k < 0) / 2
    corners = [special.owens_t(a, (b - correlation * a) / (a * root)) for a, b in ((h, k), (k, h))]
    probability: F64 = np.clip(halves - sum(corners), 0, 1)
    return probability


def truth_of(generator: DictionaryGenerator) -> KnownTruth:
    """That of what a generator draws."""
    recipe = generator.recipe
    rows = min(recipe.documents * recipe.rows, max(1, FIRST // recipe.width))
    return KnownTruth(recipe, generator.vectors, generator.bias, generator.block(0).x[:rows])


def write_truth(truth: KnownTruth, write: Callable[[bytes], None]) -> None:
    """The truth as a .npz file: recipe (JSON), dictionary, and what follows from them, for anybody."""
    arrays: dict[str, NDArray[Any]] = {
        "recipe": np.array(truth.recipe.model_dump_json()),
        "vectors": truth.vectors,
        "bias": truth.bias,
        "first": truth.first,
        "frequency": truth.frequency,
        "mean_active": truth.mean_active,
        "correlated": truth.correlated.features,
        "correlated_frequency": truth.correlated.frequency,
        **truth.relations._asdict(),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write(buffer.getvalue())


def read_truth(path: StorePath) -> KnownTruth:
    """Read it again; InputError when it is not such a file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: `latentlake make-dictionary RUN.yaml` writes it")
    try:
        data = io.BytesIO(read_bytes(path))
        check_npz(data)
        data.seek(0)
        with np.load(data, allow_pickle=False) as arrays:
            recipe = Dictionary.model_validate_json(str(arrays["recipe"]))
            vectors, bias = arrays["vectors"].astype(np.float32), arrays["bias"].astype(np.float32)
            first = arrays["first"] if "first" in arrays else np.empty((0, recipe.width))
            truth = KnownTruth(recipe, vectors, bias, first.astype(np.float32))
    except (ValueError, TypeError, KeyError, OSError, EOFError, BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} is not the ground truth of a dictionary ({reason}): write it with `latentlake "
            "make-dictionary`"
        ) from None
    shapes = truth.vectors.shape, truth.bias.shape, truth.first.shape[1:]
    if shapes != ((recipe.features, recipe.width), (recipe.width,), (recipe.width,)):
        raise InputError(f"{path} is damaged: its dictionary is not {recipe.features} x {recipe.width}")
    return truth

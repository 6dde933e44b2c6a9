"""An encoder against the limit, the fastest plain matmul of its shape, and against SAELens' own class.

SAELens' side is `sae.encode(x)` followed by `nonzero` and the values there: the same sparse result. Plain
matmuls are one of all rows, and one cut into blocks as the encoder cuts it; the limit is the faster.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.inputs import write_sae
from jobs.bench.report import Section, in_turn, rate, ratio
from pipeline.saes import CPU_BLOCK, load_sae

if TYPE_CHECKING:
    from torch import Tensor

D_MODEL, D_SAE, ROWS, L0 = 768, 24_576, 8_192, 32
ROUNDS = 5
TARGETS = {"topk": 1.5, "jumprelu": 1.8, "standard": 1.35, "gated": None}
"""Architecture -> how many times SAELens' rate is aimed at."""

LIMIT_TARGET = 0.9


@dataclass(frozen=True)
class Result:
    """Rows a second; ratios are of summed seconds, with the range over rounds."""

    architecture: str
    mean_l0: float
    encoder: float
    matmul: float
    matmul_in_blocks: float
    saelens: float
    of_limit: tuple[float, float, float]
    of_saelens: tuple[float, float, float]
    target: float | None


def run(folder: Path, threads: int) -> Section:
    """Measure each architecture."""
    import torch

    torch.set_num_threads(threads)
    results = [measure(architecture, folder / architecture) for architecture in TARGETS]
    title = f"encode, {ROWS:,} rows, d_model {D_MODEL}, d_sae {D_SAE:,}, {threads} threads (rows a second)"
    columns = (
        "architecture", "mean L0", "encoder", "x @ W_enc", "the same in blocks", "SAELens + nonzero",
        "encoder / limit", "target", "encoder / SAELens", "target",
    )  # fmt: skip
    rows = []
    for r in results:
        rates = [f"{value:,.0f}" for value in (r.encoder, r.matmul, r.matmul_in_blocks, r.saelens)]
        row = [r.architecture, f"{r.mean_l0:.1f}", *rates, ratio_text(r.of_limit), f"{LIMIT_TARGET:.2f}"]
        rows.append([*row, ratio_text(r.of_saelens), "" if r.target is None else f"{r.target:.2f}"])
    return Section("encode", title, columns, rows, [asdict(r) for r in results])


def measure(
    architecture: str, folder: Path, d_model: int = D_MODEL, d_sae: int = D_SAE, rows: int = ROWS
) -> Result:
    """All four, in turn."""
    import torch

    write_sae(folder, architecture, d_model, d_sae, L0)
    encoder, saelens_sae = load_sae(str(folder)), saelens(folder)
    w_enc = torch.from_numpy(encoder.weights()["W_enc"])
    x = torch.randn(rows, d_model, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {
        "encoder": lambda: encoder.encode(x),
        "matmul": lambda: torch.mm(x, w_enc),
        "blocks": lambda: in_blocks(x, w_enc),
        "saelens": lambda: sparse(saelens_sae.encode(x)),
    }
    with torch.inference_mode():
        nnz = encoder.encode(x).nnz
        assert abs(nnz - len(sparse(saelens_sae.encode(x))[1])) <= 2, "the two disagree on what fires"
        seconds = in_turn(calls, ROUNDS)
    limit = min(seconds["matmul"], seconds["blocks"], key=sum)
    return Result(
        architecture,
        nnz / rows,
        encoder=rate(rows, seconds["encoder"]),
        matmul=rate(rows, seconds["matmul"]),
        matmul_in_blocks=rate(rows, seconds["blocks"]),
        saelens=rate(rows, seconds["saelens"]),
        of_limit=ratio(limit, seconds["encoder"]),
        of_saelens=ratio(seconds["saelens"], seconds["encoder"]),
        target=TARGETS[architecture],
    )


def sparse(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values of what is not 0."""
    places = dense.nonzero()
    return places, dense[places[:, 0], places[:, 1]]


def in_blocks(x: Tensor, w_enc: Tensor) -> None:
    """The product, block by block into one buffer."""
    import torch

    rows, features = CPU_BLOCK
    buffer = torch.empty(rows * features)
    for part in torch.split(x, rows):
        for columns in torch.split(w_enc, features, dim=1):
            shape = len(part), columns.shape[1]
            torch.mm(part, columns, out=buffer[: shape[0] * shape[1]].view(shape))


def saelens(folder: Path) -> Any:
    """SAELens' own class; importing it warns about its own use of TransformerLens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("sae_lens").SAE.load_from_disk(folder)


def ratio_text(value: tuple[float, float, float]) -> str:
    """A ratio with its range."""
    return f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"

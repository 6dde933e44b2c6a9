"""Makes the small store of the present format version that stays here: `python -m tests.data.make_store`.

A format version's store is made once, by the latentlake that brought that version, and never again.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from jobs.lake.compact import compact
from pipeline.tasks import OneProcess
from schemas.records import FORMAT_VERSION
from schemas.run.file import parse_run_file
from tests.fixtures.runs import extracted, run_content, write_corpus
from tests.kit import write_sae, write_tiny_tokenizer


def main() -> None:
    """A TopK site as in version 1, compacted, and one of signed activations over some positions only.

    Both have a control; beside them x of all sites, one site that has x alone, and one that reads means.
    """
    root = Path(__file__).parent / f"store-v{FORMAT_VERSION}"
    assert not root.exists(), f"{root} is there already, and stays as it is"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        lake = Path("lake")  # the plan tells where an SAE lay: no path of the machine at hand
        lake.mkdir()
        write_corpus(lake / "corpus.parquet", documents=9)
        write_tiny_tokenizer(lake / "tokenizer")
        content = run_content(lake, store={"root": str(root), "pass": "mid"})
        signed = write_sae(lake / "signed", "abstopk", d_sae=64, hook_name="layers.0", k=4)
        content["sites"][0]["control"] = "random_encoder"
        site = {"name": "signed", "sae": str(signed), "positions": [2, None]}
        content["sites"].append(site | {"control": "shuffled_rows", "control_seed": 3})
        content["sites"].append({"name": "x", "hook_name": "layers.2"})
        content["sites"].append({"name": "mean", "sae": content["sites"][0]["sae"], "pooling": "mean"})
        content["store"]["layouts"] = ["token_major", "feature_major", "dense"]
        store = extracted(parse_run_file(content, "run.yaml"))
        compact(store, "mid", OneProcess())


if __name__ == "__main__":
    main()

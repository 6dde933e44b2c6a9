"""Every command of `latentlake`, in the groups of its help: one line says which function it is.

A function is imported when its command is chosen, so that `latentlake --help` answers at once. What its
parameters mean is written in `jobs.command.protocol`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A command and the function that it calls, as `module:function` inside of `jobs`."""

    name: str
    job: str
    help: str

    def load(self) -> Callable[..., Any]:
        """The function; imports its module."""
        module, _, function = self.job.partition(":")
        return getattr(import_module(f"jobs.{module}"), function)  # type: ignore[no-any-return]


GROUPS: dict[str, tuple[Command, ...]] = {
    "Start": (
        Command("demo", "studies.demo.demo:command", "A real model, a real SAE and a real corpus become a store, tables and figures."),
        Command("run", "lake.run:run", "Tokenize, extract, compute tables, figures and the report; skips what is already done."),
        Command(
            "plan", "lake.plan:plan", "Try a run for a minute; predict its rate, nonzeros, bytes and hours."
        ),
        Command("status", "lake.status:command", "What the store holds, and how far each pass is; reads the store alone."),
    ),
    "Look": (
        Command("top", "views.top:top", "The strongest contexts of a feature, the firing token marked."),
        Command("feature", "views.feature:show_feature", "Everything that the store's tables hold about one feature, on a page."),
        Command("neighbours", "views.neighbours:neighbours", "The neighbours of one feature, from the stored table, and their graph."),
        Command("elicit", "evaluation.elicit:elicit", "The features of a typed text, by activation and by surprise; runs the store's model and SAE."),
        Command("heatmap", "views.heatmap:heatmap", "Contexts × features as a picture, plain and clustered; how sparse they are, how often active."),
        Command("plots", "figures.plots:command", "Draw the figures from the stored tables."),
        Command("report", "report.build:command", "Write a static site of the features, which opens from disk without a server."),
    ),
    "Tables": (
        Command("stats", "tables.stats:stats", "Fold the shards' partials into the feature table, L0 counts and examples."),
        Command("examples", "tables.examples:examples", "More examples: the strongest row of each document, and contexts in which a feature does not fire."),
        Command("profile", "tables.profile:profile", "Intervals of frequencies, what features fire on, differences between label values, L0 thresholds."),
        Command("rank", "tables.rank:command", "Write the rankings of features by columns of their tables, or print a window of one."),
        Command("coactivation", "tables.coactivation:coactivation", "Features active on the same tokens, and features with similar decoder directions."),
        Command("cluster", "tables.cluster:command", "Cluster features by direction, co-activation and density; contexts and documents by their features."),
        Command("match", "tables.match:command", "Match the features of two sites: by decoder cosine, by co-activation, and one to one."),
        Command("diff", "tables.diff:command", "Compare two stores of one SAE, feature by feature: two corpora, or two models over one corpus."),
        Command("logits", "evaluation.logits:logits", "The tokens that each feature promotes (direct logit attribution); runs the model's last part."),
        Command("fidelity", "evaluation.fidelity:fidelity", "How the loss changes when x is replaced by the SAE's reconstruction; runs the model."),
        Command("attribute", "evaluation.attribute:attribute", "Features that make the model prefer one answer to another, by label of the prompts; runs the model."),
        Command("check-sae", "evaluation.check_sae:check_sae", "Whether an SAE explains a model's activations; names the likely mistake, and ends with 1, if not."),
    ),
    "Store": (
        Command("tokenize", "lake.tokenize:tokenize", "Cut the corpus into token shards, once."),
        Command("extract", "lake.extract:extract", "Run model and SAEs over the token shards; what is committed stays."),
        Command("verify", "lake.verify:verify", "Check every checksum, and recompute every statistic from the raw activations."),
        Command("compact", "lake.compact:compact", "Merge the shards' postings into one file per feature block, which queries then read."),
        Command("gc", "lake.gc:gc", "Remove attempts without a receipt, idle compactions, temporary files, pieces of dropped sites."),
        Command("drop", "lake.drop:drop", "Remove a pass, a site or a derived table for good; says what that is, and asks."),
    ),
    "Cluster": (
        Command("submit", "lake.submit:command", "Run RUN.yaml on a Ray cluster, stream its log, and exit with the driver's exit code."),
    ),
    "Studies": (
        Command("train-digits", "studies.digits.train_digits:train_digits", "Train an image classifier, SAEs of its hidden layer and a decoder to images; half a minute."),
        Command("importance", "tables.importance:importance", "How much each class's reconstruction loses without each feature, exactly; runs no model."),
        Command("images", "tables.feature_images:images", "The images that features make, alone and for their classes, and how alike they are."),
        Command("steer", "studies.digits.steer:steer", "Set features manually, and see the image and the classes that come of it; runs no model."),
        Command("make-dictionary", "studies.known.make_dictionary:command", "Write the truth of the run file's corpus of kind dictionary, and SAEs that are made of it."),
        Command("truth", "studies.known.truth:command", "Compare the store of a known dictionary with its truth: matches, frequencies, means, pairs, trees."),
    ),
}  # fmt: skip

EXPORTS = (
    Command("neuronpedia", "export.neuronpedia:command", "Neuronpedia's import: features and activations as jsonl.gz, with model, source set and source."),
    Command("circuit-tracer", "export.circuit_tracer:command", "circuit-tracer's feature files: features/index.json.gz and a .bin for each layer (site)."),
    Command("delphi", "export.delphi:command", "Delphi's cache of latents: safetensors of locations, activations and tokens, for each hookpoint."),
    Command("anndata", "export.anndata_zarr:command", "AnnData: <site>.zarr, rows (or contexts, documents) by features, read by anndata.read_zarr."),
)  # fmt: skip
"""The formats of `latentlake export`, which is in the group Look."""


def find(name: str) -> Command:
    """The command of that name."""
    return next(command for group in GROUPS.values() for command in group if command.name == name)

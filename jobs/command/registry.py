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
        Command("demo", "studies.demo.demo:command", "Run a real model and a real SAE over a real corpus, up to tables and figures."),
        Command("init", "lake.init:init", "Write a run file from what the files of an SAE, a model and a corpus say."),
        Command("run", "lake.run:command", "Tokenize, extract, compute tables, figures and the report; skips what is already done."),
        Command(
            "plan", "lake.plan:plan", "Try a run for a minute; predict its rate, nonzeros, bytes and hours."
        ),
        Command("status", "lake.status:command", "Show what the store holds and how far each pass has got; reads only the store."),
    ),
    "Look": (
        Command("explore", "explore.command:command", "Look at a store in a browser: type a text, choose a token, see its features."),
        Command("top", "views.top:top", "Show the strongest contexts of a feature, with the firing token marked."),
        Command("find", "views.find:find", "Find features by a token, by words in their examples, or by conditions on their columns."),
        Command("feature", "views.feature:show_feature", "Show everything that the store's tables hold about one feature, on one page."),
        Command("neighbours", "views.neighbours:neighbours", "Show the neighbours of one feature, from the stored table, and their graph."),
        Command("elicit", "evaluation.elicit:elicit", "Show the features that fire on a typed text, by activation and surprise; runs the store's model and SAE."),
        Command("annotate", "views.annotations:annotate_feature", "Give a feature a name, a note or a star, which all commands show from then on."),
        Command("annotations", "views.annotations:list_annotations", "List the stars, names and notes of a site's features; export and import them as JSON lines."),
        Command("heatmap", "views.heatmap:heatmap", "Draw contexts × features as a heat map, plain and clustered, with their sparsity and frequencies."),
        Command("plots", "figures.plots:command", "Draw the figures from the stored tables."),
        Command("report", "report.build:command", "Write a static site of the features, which opens from disk without a server."),
    ),
    "Tables": (
        Command("stats", "tables.stats:stats", "Merge the shards' partials into the feature table, L0 counts and examples."),
        Command("examples", "tables.examples:examples", "Add examples: the strongest token of each document, and contexts in which a feature does not fire."),
        Command("profile", "tables.profile:profile", "Compute intervals of frequencies, what features fire on, differences by label, and L0 thresholds."),
        Command("rank", "tables.rank:command", "Rank features by columns of their tables, or print a window of a ranking."),
        Command("coactivation", "tables.coactivation:coactivation", "Find features active on the same tokens, and features with similar decoder directions."),
        Command("explanations", "tables.explanations:explanations", "Import explanations of features by Neuronpedia or delphi, which name features from then on."),
        Command("cluster", "tables.cluster:command", "Cluster features by direction, co-activation and density; contexts and documents by their features."),
        Command("match", "tables.match:command", "Match the features of two sites: by decoder cosine, by co-activation, and one to one."),
        Command("diff", "tables.diff:command", "Compare two stores of one SAE, feature by feature: two corpora, or two models over one corpus."),
        Command("logits", "evaluation.logits:logits", "Compute the tokens that each feature promotes (direct logit attribution); runs the end of the model."),
        Command("fidelity", "evaluation.fidelity:fidelity", "Measure how the loss changes when x is replaced by the SAE's reconstruction; runs the model."),
        Command("attribute", "evaluation.attribute:attribute", "Find features that make the model prefer one answer to another, by label; runs the model."),
        Command("check-sae", "evaluation.check_sae:check_sae", "Check whether an SAE explains a model's activations; if not, name the likely mistake and exit with 1."),
    ),
    "Store": (
        Command("tokenize", "lake.tokenize:tokenize", "Cut the corpus into token shards, once."),
        Command("extract", "lake.extract:extract", "Run the model and the SAEs over the token shards; committed shards are kept."),
        Command("verify", "lake.verify:verify", "Check every checksum, and recompute every statistic from the raw activations."),
        Command("compact", "lake.compact:compact", "Merge the shards' postings into one file per feature block, which makes queries faster."),
        Command("gc", "lake.gc:gc", "Remove attempts without a receipt, unused compactions, temporary files and remains of dropped sites."),
        Command("drop", "lake.drop:drop", "Remove a pass, a site or a derived table for good; shows what that is, and asks first."),
    ),
    "Cluster": (
        Command("submit", "lake.submit:command", "Run RUN.yaml on a Ray cluster, stream its log, and exit with the driver's exit code."),
    ),
    "Studies": (
        Command("train-digits", "studies.digits.train_digits:train_digits", "Train an image classifier, SAEs on its hidden layer and a decoder to images."),
        Command("importance", "tables.importance:importance", "Compute how much each class's reconstruction loses without each feature; runs no model."),
        Command("images", "tables.feature_images:images", "Draw the images that features decode to, alone and for their classes, and compare them."),
        Command("steer", "studies.digits.steer:steer", "Set features manually, and show the resulting image and classes; runs no model."),
        Command("make-dictionary", "studies.known.make_dictionary:command", "Write the ground truth of a corpus of kind dictionary, and SAEs built from it."),
        Command("truth", "studies.known.truth:command", "Compare the store of a known dictionary with its ground truth: matches, frequencies, means, pairs, trees."),
    ),
}  # fmt: skip

EXPORTS = (
    Command("neuronpedia", "export.neuronpedia:command", "For Neuronpedia's import: features and activations as jsonl.gz, with model, source set and source."),
    Command("circuit-tracer", "export.circuit_tracer:command", "For circuit-tracer: features/index.json.gz and a .bin file for each layer (site)."),
    Command("delphi", "export.delphi:command", "For delphi: its cache of latents, safetensors with locations, activations and tokens of each hookpoint."),
    Command("anndata", "export.anndata_zarr:command", "For AnnData: <site>.zarr, tokens (or contexts, documents) × features, read with anndata.read_zarr."),
)  # fmt: skip
"""The formats of `latentlake export`, which is in the group Look."""


def find(name: str) -> Command:
    """The command of that name."""
    return next(command for group in GROUPS.values() for command in group if command.name == name)

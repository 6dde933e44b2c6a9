"""What to try on a store next: commands that work on it as it is, in the order in which one looks at it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import polars as pl
from rich.markup import escape

from jobs.terminal.console import say
from pipeline.plans.reopen import model_of
from pipeline.plans.sae_defaults import config_of_model
from pipeline.store import FeatureStore
from pipeline.store.reading.contexts import label_column
from pipeline.store.reading.label_filters import label_filter

SUPPORT = 20
"""Active rows that a feature must have: sigma/mu alone puts those first that fired once."""

TEXT = "The war in Europe is over, and our soldiers are coming home."


def say_next(store: FeatureStore) -> None:
    """Print the commands."""
    say("\nTry next:")
    for command in next_commands(store):
        say(f"  {escape(command)}")


def next_commands(store: FeatureStore) -> list[str]:
    """Commands on a store that need nothing that is not there, quoted for a shell."""
    root, with_sae = str(store.layout.root), [name for name, site in store.sites.items() if site.has_sae]
    commands: list[tuple[Any, ...]] = []
    if with_sae:
        commands += [("explore", root), *_of_features(store, root, with_sae)]
    return [shlex.join(["latentlake", *map(str, words)]) for words in [*commands, ("verify", root)]]


def _of_features(store: FeatureStore, root: str, with_sae: list[str]) -> list[tuple[Any, ...]]:
    """What shows one feature of the first site, or finds some; nothing before `stats`."""
    site = with_sae[0]
    if not store.has_table(site, "features") or (best := best_features(store, site).head(1)).is_empty():
        return []
    feature, at = best["feature"][0], ("--site", site) if len(with_sae) > 1 else ()
    commands: list[tuple[Any, ...]] = [("feature", root, feature, *at)]
    if _has_model(store, site):
        commands.append(("elicit", root, TEXT, *at))
    commands.append(("top", root, feature, *_where(store, site, feature), *at))
    if store.has_table(site, "profile") and store.reads_tokens(site):
        commands.append(("find", root, "--where", "token_entropy_bits < 1", *at))
    return [*commands, ("rank", root, "--by", "mean_active", "--window", "0:20")]


def best_features(store: FeatureStore, site: str) -> pl.DataFrame:
    """Features that fire, by sigma/mu, the largest first; those with fewer active rows than SUPPORT last."""
    features = store.scan_features(site).filter(pl.col("n_active") > 0)
    order = [pl.col("n_active") >= SUPPORT, pl.col("sigma_over_mu")]
    by = features.sort(*order, "feature", descending=[True, True, False], nulls_last=True)
    return by.collect()


def _has_model(store: FeatureStore, site: str) -> bool:
    """Whether the site's model, which reads texts, and its SAE lie here, as far as their names say."""
    plan = store.plans[store.site(site).pass_name]
    if plan.model_loader not in ("transformer_lens", "hooked_transformer") or store.lake.inputs is not None:
        return False
    sae = next(planned.sae for planned in plan.sites if planned.name == site)
    is_here = Path(sae).exists() or sae.startswith(("hf:", "saelens:"))
    return is_here and bool(config_of_model(model_of(plan)))


def _where(store: FeatureStore, site: str, feature: int) -> tuple[str, ...]:
    """A condition on a label that the feature's strongest row fulfils; none where it has no label."""
    strongest = store.contexts(site, feature, 1)
    for name in store.lake.label_columns:
        (value,) = strongest[label_column(name)]
        if isinstance(value, str):
            condition = f"{name}={value}"
            if strongest.filter(label_filter(store, condition, label_column)).height:
                return ("--where", condition)
    return ()

"""What a row of a store is called, by its corpus and by what a site reads of it."""

from __future__ import annotations

from pipeline.store import FeatureStore


def kinds_of_corpus(store: FeatureStore) -> set[str]:
    """`corpus.kind` of everything that the lake holds."""
    return {str(link.source.get("kind", "text")) for link in store.links}


def unit_of_lake(store: FeatureStore) -> str:
    """One row of the lake: an image, a vector, or a token."""
    if store.lake.inputs is None:
        return "token"
    return "image" if kinds_of_corpus(store) == {"images"} else "vector"


def unit_of_site(store: FeatureStore, site: str) -> str:
    """One row that a site counts: of pooled contexts there is one in each, a prompt's or another's."""
    if store.lake.inputs is not None or store.site(site).selection.pooling == "none":
        return unit_of_lake(store)
    return "prompt" if kinds_of_corpus(store) == {"prompts"} else "context"

"""Features drawn from recipes: what a worker does where there is no model. Loads no torch."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import MappingProxyType

from pipeline.store.formats.dense import NO_DENSE, DenseWriters
from pipeline.store.records.site import write_site_weights
from pipeline.synthetic.generator import Generator
from pipeline.synthetic.recipe import parse
from schemas.errors import NodeError
from schemas.layout import Layout
from schemas.records import Plan
from schemas.values import ControlSums, Encoded, Explained, Timed, TokenShard


class SyntheticFeatures:
    """Holds a generator for each site."""

    agreement = None
    batch_contexts: int | None = None
    """See `pipeline.worker.Features`."""
    controls: Mapping[str, ControlSums] = MappingProxyType({})
    """There is no encoder that another could stand for."""

    def __init__(self, layout: Layout, plan: Plan) -> None:
        self._layout, self._plan = layout, plan

    @property
    def device_model(self) -> str:
        """Whole numbers are the same on all."""
        return "any (synthetic features)"

    def load(self) -> None:
        """Build the generators' tables; NodeError where this machine's arithmetic gives others."""
        self._generators = {site.name: Generator(parse(site.sae)) for site in self._plan.sites}
        for site in self._plan.sites:
            if self._generators[site.name].digest != site.sae_digest:
                raise NodeError(
                    f"node {socket.gethostname()} generates different features for site {site.name!r} than "
                    "those in the plan: give every node the same latentlake and NumPy"
                )

    def keep_weights(self) -> None:
        """There are none: the recipes, as metadata of the sites."""
        for site in self._plan.sites:
            recipe = self._generators[site.name].recipe.model_dump(mode="json")
            about = {"format": "synthetic", **recipe}
            write_site_weights(self._layout, self._plan.pass_name, site, dict, about)

    def check_saes(self, shard: str, by_site: dict[str, TokenShard], timed: Timed) -> dict[str, Explained]:  # noqa: ARG002
        """There is nothing to reconstruct."""
        return {}

    def width(self, site: str) -> int:  # noqa: ARG002
        """There is no x."""
        return 0

    def encode(
        self,
        tokens: TokenShard,  # noqa: ARG002
        by_site: dict[str, TokenShard],
        timed: Timed,
        dense: DenseWriters = NO_DENSE,  # noqa: ARG002
    ) -> Encoded:
        """The features of each site."""
        with timed("encode"):
            return {
                name: list(generator.blocks(by_site[name])) for name, generator in self._generators.items()
            }

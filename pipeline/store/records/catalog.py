"""What a store records: the lake, the corpus chain, plans, sites and receipts, and where data objects lie.

What is committed is looked up once per pass, when first needed: open the store again to see newer shards.
"""

from __future__ import annotations

from typing import Self

from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import listed, read_record
from pipeline.store.records.commits import read_commits, receipts_digest
from pipeline.store.records.dropped import dropped_sites, live_sites
from pipeline.store.records.tokens import read_lake, read_links
from pipeline.store.records.unfinished import unfinished_tokens
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.names import NAME, ActivationDtype, DenseDtype, StoreLayout
from schemas.records import CorpusLink, Lake, Plan, PlannedSite, Receipt, ShardRecord, SiteReceipt
from schemas.values import Totals


class SiteInfo(PlannedSite):
    """One site of the store: what its pass's plan says of it, and of all sites of the pass."""

    pass_name: str
    activation_dtype: ActivationDtype
    layouts: tuple[StoreLayout, ...]
    dense_dtype: DenseDtype
    """What x of layout dense is rounded to."""


class Catalog:
    """The records of one store.

    A site goes by its name alone; every method that takes one raises InputError where there is no such site.
    """

    def __init__(
        self,
        layout: Layout,
        lake: Lake,
        links: list[CorpusLink],
        plans: dict[str, Plan],
        seen: dict[str, dict[str, Receipt]] | None = None,
    ) -> None:
        self.layout, self.lake, self.links, self.plans = layout, lake, links, plans
        self.shards = [record for link in links for record in link.shards]
        self.dropped = {name: dropped_sites(layout, name) for name in plans}
        self.sites = _sites({name: self.pass_sites(name) for name in plans}, plans)
        self._records = {record.name: record for record in self.shards}
        self._links = {record.name: number for number, link in enumerate(links) for record in link.shards}
        self._receipts: dict[str, dict[str, Receipt]] = {}
        self._seen = seen or {}
        self._digests: dict[str, str] = {}

    @classmethod
    def open(cls, root: str | StorePath) -> Self:
        """Open the store at `root`; InputError if there is none, or if its format is newer."""
        return cls._open(root)

    @classmethod
    def _open(cls, root: str | StorePath, seen: dict[str, dict[str, Receipt]] | None = None) -> Self:
        """The same; receipts of a pass that were `seen` need not be read again."""
        layout = Layout(store_path(root))
        lake = read_lake(layout)
        if lake is None:
            raise no_lake(layout)
        return cls(layout, lake, read_links(layout), read_plans(layout), seen)

    def require_feature(self, site: str, feature: int) -> None:
        """InputError where the site has no feature of this number."""
        d_sae = self.require_features(site).d_sae
        if feature not in range(d_sae):
            raise InputError(f"feature {feature} is not in site {site!r}: its features are 0 to {d_sae - 1}")

    def require_features(self, site: str | None) -> SiteInfo:
        """The site, or the only one with an SAE; InputError where it has none, and so no features."""
        if site is None:
            with_sae = [name for name, info in self.sites.items() if info.has_sae]
            site = self._only(with_sae or list(self.sites))
        info = self.site(site)
        if not info.has_sae:
            raise InputError(
                f"site {info.name!r} has no SAE, so it has no features, only x at {info.hook_name}: read "
                "that with FeatureStore.dense, or extract a site with an SAE in another pass"
            )
        return info

    def again(self) -> Self:
        """The store in its current state; receipts that were read before are not read again."""
        return self._open(self.layout.root, self._receipts)

    def site(self, name: str | None = None) -> SiteInfo:
        """One site by name, or the only one; InputError where it is not there, or there are several."""
        name = self._only(list(self.sites)) if name is None else name
        if name not in self.sites:
            gone = ", it was dropped" if any(name in sites for sites in self.dropped.values()) else ""
            raise InputError(
                f"{self.layout.root} has no site {name!r}{gone}; it has {', '.join(self.sites) or 'none'}"
            )
        return self.sites[name]

    def pass_sites(self, pass_name: str) -> tuple[PlannedSite, ...]:
        """The sites of a pass as planned, except those that were dropped."""
        return live_sites(self.plans[pass_name], self.dropped[pass_name])

    def pass_receipts(self, pass_name: str) -> dict[str, Receipt]:
        """The receipts of a pass by shard, in shard order."""
        if pass_name not in self._receipts:
            self._receipts[pass_name] = read_commits(self.layout, pass_name, self._seen.get(pass_name, {}))
        return self._receipts[pass_name]

    def receipts(self, site: str | None = None) -> dict[str, Receipt]:
        """The receipts of the site's pass by shard, in shard order."""
        return self.pass_receipts(self.site(site).pass_name)

    def site_receipts(self, site: str) -> dict[str, SiteReceipt]:
        """The receipts of the site, by shard; InputError where a receipt lacks it."""
        receipts = {}
        for shard, receipt in self.receipts(site).items():
            if site not in receipt.sites:
                marker = self.layout.commit(self.site(site).pass_name, shard)
                raise InputError(
                    f"{marker} does not mention site {site}: restore it from a copy of the store"
                )
            receipts[shard] = receipt.sites[site]
        return receipts

    def receipts_digest(self, site: str) -> str:
        """The digest that up-to-date tables of the site carry."""
        name = self.site(site).pass_name
        if name not in self._digests:
            self._digests[name] = receipts_digest(self.pass_receipts(name).values())
        return self._digests[name]

    def committed(self, site: str | None = None) -> list[ShardRecord]:
        """The shards that the site's pass has committed, in shard order."""
        receipts = self.receipts(site)
        return [record for record in self.shards if record.name in receipts]

    def link_of(self, shard: str) -> int:
        """The link of the corpus chain that added a shard."""
        return self._links[self._record(shard).name]

    def totals(self, site: str | None = None) -> Totals:
        """Denominators over the committed shards."""
        site = self.site(site).name
        receipts = self.site_receipts(site)
        shards = (_totals(record, receipts[record.name]) for record in self.committed(site))
        return sum(shards, Totals(0, 0, 0, 0))

    def object_path(self, site: str, shard: str, name: str) -> StorePath:
        """The path of one data object, from the shard's receipt."""
        info, receipt = self.site(site), self.receipts(site).get(shard)
        if receipt is None:
            raise InputError(f"shard {shard!r} of site {site!r} is not committed: run `latentlake extract`")
        if f"{site}/{name}" not in {item.path for item in receipt.objects}:
            raise InputError(
                f"shard {shard!r} of site {site!r} has no {name}: the pass was made with store.layouts "
                f"{list(info.layouts)}; run another pass with the other layout"
            )
        return self.layout.attempt(info.pass_name, shard, receipt.attempt) / site / name

    def _only(self, sites: list[str]) -> str:
        """The one site that is meant where none is named."""
        if len(sites) != 1:
            several = f"has several sites ({', '.join(sites)}): name one of them"
            none = "has no site yet: run `latentlake extract` first"
            raise InputError(f"{self.layout.root} {several if sites else none}")
        return sites[0]

    def _record(self, shard: str) -> ShardRecord:
        if shard not in self._records:
            raise InputError(f"{self.layout.root} has no shard {shard!r}; it has {len(self._records)}")
        return self._records[shard]


def _totals(record: ShardRecord, receipt: SiteReceipt) -> Totals:
    """Denominators of one site over one shard."""
    if (counted := receipt.counted) is not None:
        return Totals(record.rows, counted.rows, counted.contexts, counted.documents)
    return Totals(record.rows, record.counted_rows, record.counted_contexts, record.counted_documents)


def read_plans(layout: Layout, without: str | None = None) -> dict[str, Plan]:
    """Every pass's plan by name, but for that of the pass `without`."""
    plans = {}
    for name in sorted(folder.name for folder in listed(layout.passes) if NAME.fullmatch(folder.name)):
        try:
            plan = read_record(Plan, layout.plan(name)) if name != without else None
        except InputError as error:
            raise InputError(f"{error}, or remove that pass: `latentlake drop STORE --pass {name}`") from None
        if plan is not None:
            plans[name] = plan
    return plans


def _sites(planned: dict[str, tuple[PlannedSite, ...]], plans: dict[str, Plan]) -> dict[str, SiteInfo]:
    sites: dict[str, SiteInfo] = {}
    for pass_name, plan in plans.items():
        for site in planned[pass_name]:
            if site.name in sites:
                raise InputError(
                    f"passes {sites[site.name].pass_name!r} and {pass_name!r} both have a site "
                    f"{site.name!r}: tables are filed by site, so drop one of the passes (`latentlake drop`)"
                )
            sites[site.name] = SiteInfo(
                **dict(site),
                pass_name=pass_name,
                activation_dtype=plan.activation_dtype,
                layouts=plan.layouts if site.has_sae else ("dense",),
                dense_dtype=plan.dense_dtype,
            )
    return sites


def no_lake(layout: Layout) -> InputError:
    """What to say of a root without a record: `tokenize` puts it last, after the token shards."""
    if unfinished := unfinished_tokens(layout, []):
        return InputError(f"there is no lake.json yet: {unfinished}")
    return InputError(
        f"{layout.root} is not a store (it has no lake.json): give the folder or URL that a run file calls "
        "store.root"
    )

"""`latentlake run RUN.yaml`: the whole pipeline; each step skips what is already done."""

from __future__ import annotations

import json
import re

from jobs.command.options import AcceptEnvironment, Append, LogJson, logged
from jobs.lake.derivable import check_derivable, with_needed
from jobs.lake.derive import derive
from jobs.lake.extract import extract_resolved
from jobs.lake.tokenize import tokenize_resolved
from jobs.terminal.console import say, warn
from pipeline.plans.plan import resolve
from pipeline.run import Extraction
from pipeline.store import FeatureStore
from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import listed, write_atomic
from schemas import __version__
from schemas.layout import Layout
from schemas.records import canonical_json
from schemas.run.file import RunFile


def run(
    run_file: RunFile,
    *,
    append: Append = False,
    accept_environment: AcceptEnvironment = False,
    log_json: LogJson = None,
) -> list[Extraction]:
    """Tokenize, extract each pass, derive each site."""
    with logged(log_json):
        resolved, warnings = resolve(run_file)
        warn(warnings)
        resolved = with_needed(resolved)
        tokenize_resolved(resolved, append=append)
        check_derivable(resolved, Layout(store_path(resolved.store.root)))
        results = extract_resolved(resolved, accept_environment=accept_environment)
        store = FeatureStore.open(resolved.store.root)
        for site in (store.site(str(site.name)) for site in resolved.sites):
            if not site.has_sae:
                say(
                    f"[bold]tables[/] of {site.name}: none, because it has no SAE and so no features; its x "
                    "is stored"
                )
            elif not is_fresh(store, site.name, resolved):
                derive(store, site.name, resolved)
                # Written last: a run that was killed in the midst derives anew.
                write_atomic(store.layout.derived(site.name), _made_from(store, site.name, resolved))
            else:
                say(f"[bold]tables[/] of {site.name}: nothing to do, they are up to date")
        return results


def is_fresh(store: FeatureStore, site: str, run_file: RunFile) -> bool:
    """Whether all tables and figures of the site were made, from these receipts and these sections."""
    path = store.layout.derived(site)
    if not path.exists() or path.read_bytes() != _made_from(store, site, run_file):
        return False
    return bool(json.loads(path.read_bytes())["files"])


def _made_from(store: FeatureStore, site: str, run_file: RunFile) -> bytes:
    """The record that stands for one state of a site's tables and figures, and its page of the report."""
    files = [f"tables/{site}/{name}.parquet" for name in store.tables(site)]
    if (page := store.layout.report / "sites" / site / "index.html").is_file():
        files.append(f"report/sites/{site}/{page.name}")
    figures = [path.name for path in listed(store.layout.figures(site))]
    files += [f"figures/{site}/{name}" for name in figures if re.match(r"[^.].*\.(png|svg)$", name)]
    content = {
        "latentlake": __version__,
        "receipts": store.receipts_digest(site),
        "rank": run_file.rank.model_dump(mode="json"),
        "cluster": run_file.cluster.model_dump(mode="json"),
        "derive": run_file.derive.model_dump(mode="json"),
        "files": sorted(files),
    }
    return canonical_json(content) + b"\n"

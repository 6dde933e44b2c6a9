"""`latentlake run RUN.yaml`: the whole pipeline; each step skips what is already done."""

from __future__ import annotations

import json
import re
from pathlib import Path

from jobs.command.options import AcceptEnvironment, Append, LogJson, logged
from jobs.lake.derivable import check_derivable, with_needed
from jobs.lake.derive import derive
from jobs.lake.extract import extract_resolved
from jobs.lake.tokenize import tokenize_resolved
from jobs.lake.try_next import say_next
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


def command(
    run_file: RunFile,
    *,
    append: Append = False,
    accept_environment: AcceptEnvironment = False,
    log_json: LogJson = None,
) -> None:
    """The run, and what to try on its store next."""
    run(run_file, append=append, accept_environment=accept_environment, log_json=log_json)
    say_next(FeatureStore.open(run_file.store.root))


def run(
    run_file: RunFile,
    *,
    append: bool = False,
    accept_environment: bool = False,
    log_json: Path | None = None,
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
                continue
            # All tables and figures were made, from these receipts and these sections of the run file.
            path = store.layout.derived(site.name)
            made_from = path.read_bytes() if path.exists() else b""
            if made_from == _made_from(store, site.name, resolved) and json.loads(made_from)["files"]:
                say(f"[bold]tables[/] of {site.name}: nothing to do, they are up to date")
                continue
            derive(store, site.name, resolved)
            # Written last: a run that was killed in the midst derives anew.
            write_atomic(path, _made_from(store, site.name, resolved))
        return results


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

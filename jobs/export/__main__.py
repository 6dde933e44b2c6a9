"""`python -m jobs.export FORMAT STORE …`, as `latentlake export`."""

from __future__ import annotations

import sys

from jobs.cli import main

main(["export", *sys.argv[1:]])

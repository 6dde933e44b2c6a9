"""Where `latentlake` begins, and `python -m jobs`: signals are taken before anything else is imported."""

from __future__ import annotations

from jobs.command.endings import ENDINGS

ENDINGS.catch()

from jobs.cli import main  # noqa: E402 - that takes a while, in which Ctrl-C may come

if __name__ == "__main__":
    main()

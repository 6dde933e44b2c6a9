"""`python -m jobs.report …` is `latentlake report …`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])

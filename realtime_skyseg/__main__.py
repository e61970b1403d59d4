"""`python -m realtime_skyseg` is `skyseg`."""

import sys

from realtime_skyseg.cli import program

if __name__ == "__main__":
    sys.exit(program())

"""`python -m realtime_skyseg.cli`."""

import sys

from realtime_skyseg.cli.entry import program

if __name__ == "__main__":
    sys.exit(program())

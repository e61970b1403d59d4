"""`python -m realtime_skyseg` is `skyseg`."""

import sys

from realtime_skyseg.cli import main

if __name__ == "__main__":
    sys.exit(main())

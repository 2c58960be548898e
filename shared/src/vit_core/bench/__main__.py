"""`python -m vit_core.bench`."""

import sys

from vit_core.bench.pair import main

if __name__ == "__main__":
    sys.exit(main())

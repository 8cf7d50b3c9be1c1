"""`python -m embedreg` is the `embedreg` command."""

import sys

from embedreg.cli import main

if __name__ == "__main__":
    sys.exit(main())

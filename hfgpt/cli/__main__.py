"""`python -m hfgpt.cli`: the `hfgpt` command, of this Python."""

import sys

from . import main


if __name__ == "__main__":
    sys.exit(main())

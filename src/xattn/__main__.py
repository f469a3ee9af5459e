"""``python -m xattn``: the command, for where the script is not on PATH."""

import sys

from xattn.cli import main

if __name__ == "__main__":
    sys.exit(main())

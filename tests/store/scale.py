"""How much of each fault is tried: little in every run, all of it where ``XATTN_FAULTS=full``."""

import os

FULL = os.environ.get("XATTN_FAULTS") == "full"


def times(small: int, full: int) -> int:
    """``full`` where all is asked for, else ``small``."""
    return full if FULL else small

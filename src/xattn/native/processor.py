"""What the processor calls itself."""

import platform
import re
from pathlib import Path


def processor() -> str:
    """Its name, where the system gives one."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    model = re.search(r"model name\s*: (.*)", text)
    return model.group(1) if model else platform.processor()

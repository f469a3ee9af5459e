"""Kernels are compiled once in a process; without a compiler torch decodes, and says so once."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest

from xattn.native.compiler import NativeError, compiler_command
from xattn.native.library import directory
from xattn.store import MemoryStore
from xattn.store.root import default_root

module = importlib.import_module("xattn.native.library")

WITHOUT = """
import json, sys, threading, warnings
import torch, xattn
model = xattn.load(sys.argv[1], quantize=sys.argv[2] or None)
found = []
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    def answer():
        memory = model.encode([5, 9, 12])
        found.append(model.generate(memory, form="materialized", max_new_tokens=4).tokens)
    threads = [threading.Thread(target=answer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(json.dumps([found, [str(one.message) for one in seen]]))
"""


@pytest.mark.parametrize("quantize", ["", "int8", "int4"])
def test_without_a_compiler_torch_decodes_and_one_notice_says_why(pairs, tmp_path, quantize):
    missing = {"CXX": "/nonexistent", "XDG_CACHE_HOME": str(tmp_path)}
    answers, notices = zip(
        *(run([str(pairs("bart").directory), quantize], more) for more in (missing, {})),
        strict=True,
    )
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3
    [notice] = notices[0]
    assert "no C++ compiler was found (CXX=/nonexistent)" in notice
    assert notices[1] == []
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("printf 'error: caf\\351\\n' >&2; exit 1", "failed: error: caf"),
        ("exit 0", "compiled nothing"),
        (r'while [ "$1" != -o ]; do shift; done; echo "no library" > "$2"', "cannot be loaded"),
        (
            'case "$*" in *-shared*) while [ "$1" != -o ]; do shift; done;'
            ' echo "int nothing;" > "$2.c"; exec cc -shared "$2.c" -o "$2";; esac',
            "cannot be loaded",
        ),
    ],
    ids=["fails", "writes nothing", "writes no library", "leaves functions out"],
)
def test_a_compiler_that_does_not_do_its_work_is_as_good_as_none(pairs, tmp_path, body, reason):
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/bash\n{body}\n")
    compiler.chmod(0o755)
    more = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    answers, [notice] = run([str(pairs("bart").directory), ""], more)
    assert len(answers) == 3
    assert reason in notice


def test_a_compiler_may_have_options(monkeypatch):
    monkeypatch.setenv("CXX", "g++ -g0 '-DSPACE=a b'")
    name, *options = compiler_command()
    assert Path(name).name == "g++"
    assert options == ["-g0", "-DSPACE=a b"]


def test_without_a_place_for_kernels_torch_decodes(pairs, tmp_path):
    (tmp_path / "file").write_text("no directory")
    _, [notice] = run([str(pairs("bart").directory), ""], {"XDG_CACHE_HOME": f"{tmp_path}/file"})
    assert "Not a directory; set XDG_CACHE_HOME" in notice


def test_a_user_without_a_home_has_a_place_for_kernels(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert directory() == Path(tempfile.gettempdir()) / f"xattn-native-{os.getuid()}"


def run(arguments, more):
    environment = {k: v for k, v in os.environ.items() if k != "XATTN_NATIVE"} | more
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_threads_that_come_meanwhile_wait(monkeypatch):
    module._library.cache_clear()
    asked = []

    def slowly():
        asked.append(1)
        time.sleep(0.1)
        raise NativeError("for a test")

    monkeypatch.setattr(module, "required", slowly)
    monkeypatch.delenv("XATTN_NATIVE", raising=False)
    try:
        with warnings.catch_warnings(record=True) as notices:
            warnings.simplefilter("always")
            threads = [threading.Thread(target=module.library) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        module._library.cache_clear()
    assert len(asked) == len(notices) == 1


def test_kernels_leave_the_stores_directory_alone(tmp_path, monkeypatch):
    """Whoever decodes before there is a store can open one after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory().mkdir(parents=True)
    (directory() / "kernels.so").touch()
    assert not directory().is_relative_to(default_root())
    with MemoryStore() as store:
        assert store.root == default_root()

"""A store against a dict: whatever is done to it, in any order."""

import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from making import Encoder, key_of, memory_of, states_of
from scale import times

from xattn.store import MemoryStore

NAMES = st.sampled_from([f"source {n}" for n in range(8)])


class StoreIsADict(RuleBasedStateMachine):
    """What was put is there until it is removed, whatever else happens."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.model: set[str] = set()
        self.pinned: set[str] = set()
        self.store = MemoryStore(self.root)

    def digest(self, name):
        return self.store.key_of(key_of(name)).digest

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.root)

    @rule(name=NAMES)
    def put(self, name):
        self.store.put(memory_of(name), encode_seconds=1.0)
        self.model.add(name)

    @rule(name=NAMES)
    def get(self, name):
        memory = self.store.get(key_of(name))
        assert (memory is not None) == (name in self.model)
        if memory is not None:
            assert torch.equal(memory.states_SD, states_of(name))

    @rule(name=NAMES)
    def get_or_encode(self, name):
        encoder = Encoder()
        memory = self.store.get_or_encode(encoder, name)
        assert torch.equal(memory.states_SD, states_of(name))
        assert encoder.encoded == ([] if name in self.model else [name])
        self.model.add(name)

    @rule(name=NAMES)
    def remove(self, name):
        assert self.store.remove(self.digest(name)) == (name in self.model)
        self.model.discard(name)

    @rule(name=NAMES)
    @precondition(lambda self: self.model)
    def pin(self, name):
        if name in self.model:
            self.store.pin(self.digest(name))
            self.pinned.add(name)

    @rule(name=NAMES)
    def unpin(self, name):
        self.store.unpin(self.digest(name))
        self.pinned.discard(name)

    @rule()
    def open_again(self):
        self.store.close()
        self.store = MemoryStore(self.root)

    @rule()
    def lose_the_index(self):
        self.store.close()
        for file in self.root.glob("index-2.sqlite*"):
            file.unlink()

    @rule(name=NAMES, place=st.integers(0, 10**6))
    def damage(self, name, place):
        path = self.store._tiers.disk.path(self.digest(name))
        if path.exists():
            content = bytearray(path.read_bytes())
            content[place % len(content)] ^= 0x10
            path.write_bytes(bytes(content))
            self.store = MemoryStore(self.root)
            self.model.discard(name)
            assert self.store.get(key_of(name)) is None

    @rule()
    def gc(self):
        assert self.store.gc() == 0

    @rule()
    def evict(self):
        self.store.capacity_bytes = 1
        self.store.gc()
        self.store.capacity_bytes = 2**30
        self.model &= self.pinned

    @rule(name=NAMES)
    def export_and_import(self, name):
        if name in self.model:
            with tempfile.TemporaryFile() as stream:
                self.store.export([self.digest(name)], stream)
                stream.seek(0)
                self.store.remove(self.digest(name))
                assert self.store.import_bundle(stream) == [self.digest(name)]

    @invariant()
    def the_same_names(self):
        assert {row.label for row in self.store.entries()} == self.model


StoreIsADict.TestCase.settings = settings(
    max_examples=times(12, 2000), stateful_step_count=times(25, 50), deadline=None
)
TestStoreIsADict = StoreIsADict.TestCase

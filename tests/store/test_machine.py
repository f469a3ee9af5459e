"""A store against a dict: whatever is done to it, in any order."""

import tempfile
from contextlib import ExitStack

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from making import Encoder, key_of, memory_of, states_of
from scale import quick_directory, times

from xattn.store import MemoryStore

EVERY_NAME = [f"source {n}" for n in range(8)]
NAMES = st.sampled_from(EVERY_NAME)
PLACES = st.integers(0, 10**6)


def is_not_empty(machine):
    return bool(machine.model)


class StoreIsADict(RuleBasedStateMachine):
    """What was put is there until it is removed, whatever else happens."""

    def __init__(self):
        super().__init__()
        self.stack = ExitStack()
        self.root = self.stack.enter_context(quick_directory())
        self.model: set[str] = set()
        self.pinned: set[str] = set()
        self.store = MemoryStore(self.root)

    def digest(self, name):
        return self.store.key_of(key_of(name)).digest

    def one_that_is_there(self, place):
        names = sorted(self.model)
        return names[place % len(names)]

    def teardown(self):
        self.store.close()
        self.stack.close()

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
        self.pinned.discard(name)

    @rule(place=PLACES)
    @precondition(is_not_empty)
    def remove_one_that_is_there(self, place):
        self.remove(self.one_that_is_there(place))

    @rule(place=PLACES)
    @precondition(is_not_empty)
    def pin(self, place):
        name = self.one_that_is_there(place)
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
        for file in self.root.glob("index-3.sqlite*"):
            file.unlink()

    @rule(which=PLACES, place=PLACES)
    @precondition(is_not_empty)
    def damage(self, which, place):
        name = self.one_that_is_there(which)
        path = self.store._tiers.disk.path(self.digest(name))
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 0x10
        path.write_bytes(bytes(content))
        self.store.close()
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

    @rule(place=PLACES)
    @precondition(is_not_empty)
    def evict_all_but_one(self, place):
        self.pin(place)
        self.evict()

    @rule(place=PLACES)
    @precondition(is_not_empty)
    def export_and_import(self, place):
        name = self.one_that_is_there(place)
        digest = self.digest(name)
        self.pinned.discard(name)
        with tempfile.TemporaryFile() as stream:
            self.store.export([digest], stream)
            stream.seek(0)
            self.store.remove(digest)
            assert self.store.import_bundle(stream) == [digest]

    @rule()
    def read_all_from_elsewhere(self):
        with MemoryStore(self.root, ram_bytes=0) as other:
            found = {name: other.get(key_of(name)) for name in EVERY_NAME}
        assert {name for name, memory in found.items() if memory is not None} == self.model
        for name in self.model:
            assert torch.equal(found[name].states_SD, states_of(name))

    @invariant()
    def the_same_names(self):
        assert {row.label for row in self.store.entries()} == self.model

    @invariant()
    def the_same_files(self):
        assert set(self.store._tiers.disk.digests()) == set(map(self.digest, self.model))

    @invariant()
    def the_same_pins(self):
        assert {n for n in EVERY_NAME if self.store.is_pinned(self.digest(n))} == self.pinned


StoreIsADict.TestCase.settings = settings(
    max_examples=times(12, 2000), stateful_step_count=times(25, 50), deadline=None
)
TestStoreIsADict = StoreIsADict.TestCase

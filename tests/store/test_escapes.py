"""Names that lead elsewhere: keys, tenants, payloads, bundles, index rows, and planted links.

Beside each store lies another directory of the same shape, whose entries have the same keys and
other states. Whatever is tried, it stays as it is, and none of it is given back.
"""

import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making import Encoder, assert_same, flip, key_of, memory_of, states_of
from scale import quick_directory

from xattn.errors import CorruptEntryError, UsageError, XattnError
from xattn.memory import Memory
from xattn.store import MemoryStore, Row
from xattn.store.bundle import MAGIC, write
from xattn.store.index import NAME as INDEX
from xattn.store.index import _insert
from xattn.store.payload import pack

THEIRS = "from outside"
THEIR_BUDGET = 1_234_567
LONG_AGO = (1e9, 1e9)
SOMEBODY = "0" * 24
"""Folder of another tenant."""


def theirs(name: str) -> Memory:
    """What the directory outside has under the key of ``name``."""
    return replace(memory_of(name), states_SD=states_of(THEIRS), label=THEIRS)


def digest_of_name(name: str) -> str:
    return key_of(name).digest


KEPT = digest_of_name("kept")


def make_ours(root: Path) -> None:
    """A store with an entry in every state that there is."""
    store = MemoryStore(root)
    for name in ("kept", "pinned", "damaged"):
        store.put(memory_of(name))
    store.put(memory_of("late"), ttl_seconds=1e-6)
    store.pin(digest_of_name("pinned"))
    store.get_or_encode(Encoder(), "encoded")
    path = store._tiers.disk.path(digest_of_name("damaged"))
    content = path.read_bytes()
    path.write_bytes(flip(content, 8 * len(content) - 3))
    store.close()


def make_outside(root: Path) -> None:
    """A store of somebody else, with files that a sweep would remove, and one that is none."""
    store = MemoryStore(root, capacity_bytes=THEIR_BUDGET)
    for name in ("kept", "pinned", "damaged", "encoded", "theirs alone"):
        store.put(theirs(name))
    store.put(theirs("late"), ttl_seconds=1e-6)
    for name in ("kept", "pinned"):
        store.pin(digest_of_name(name))
    store.get_or_encode(Encoder(), "locked")
    store.close()
    shutil.copytree(root / "tenants" / "default", root / "tenants" / SOMEBODY)
    (root / "empty").mkdir()
    (root / "quarantine").mkdir()
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in (".partial-1-a", "0.safetensors", f"{INDEX}.damaged-1"):
            (folder / name).write_bytes(b"left long ago")
            os.utime(folder / name, LONG_AGO)
    (root / "precious").write_text("mine")


@dataclass(frozen=True)
class World:
    """A store, and what lies outside of it."""

    place: Path

    @property
    def root(self) -> Path:
        return self.place / "store"

    @property
    def outside(self) -> Path:
        return self.place / "outside"

    def outside_now(self) -> dict[str, tuple[int, ...]]:
        """All that is beside the store; a file that was written to has another time of change."""
        found = dict.fromkeys(os.listdir(self.place), ())
        for folder, folders, files in os.walk(self.outside):
            found |= {os.path.join(folder, name): () for name in folders}
            for name in files:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                found[path] = (status.st_size, status.st_mtime_ns)
        return found


@pytest.fixture(scope="module")
def models():
    """The two directories, to be copied."""
    with quick_directory() as place:
        make_ours(place / "store")
        make_outside(place / "outside")
        yield place


@pytest.fixture
def world(models):
    with quick_directory() as place:
        shutil.copytree(models / "outside", place / "outside")
        shutil.copytree(models / "store", place / "store")
        yield World(place)


@pytest.fixture
def again(models, world):
    """Makes the store what it was."""

    def make() -> World:
        shutil.rmtree(world.root)
        shutil.copytree(models / "store", world.root)
        return world

    return make


@pytest.fixture(autouse=True)
def nothing_outside_changes(world):
    before = world.outside_now()
    yield
    assert world.outside_now() == before


# What one does with a store


def only_ours(memory: Memory | None, name: str) -> None:
    assert memory is None or torch.equal(memory.states_SD, states_of(name)), "read from outside"


def get_all(store: MemoryStore) -> None:
    for name in ("kept", "pinned", "damaged", "late", "encoded", "theirs alone"):
        only_ours(store.get(key_of(name)), name)


def get_or_encode(store: MemoryStore) -> None:
    for name in ("kept", "damaged", "theirs alone", "new"):
        try:
            memory = store.get_or_encode(Encoder(), name)
        except XattnError as error:
            raise AssertionError("a store that fails must not stop who encodes") from error
        assert torch.equal(memory.states_SD, states_of(name)), "read from outside"


def export(store: MemoryStore) -> None:
    stream = io.BytesIO()
    try:
        store.export([KEPT, digest_of_name("pinned")], stream)
    finally:
        assert THEIRS.encode() not in stream.getvalue(), "read from outside"


def entries(store: MemoryStore) -> None:
    labels = {row.label for row in store.entries()}
    assert THEIRS not in labels, "read from outside"


def entry(store: MemoryStore) -> None:
    assert store.entry(KEPT).label != THEIRS, "read from outside"


def budget(store: MemoryStore) -> None:
    assert store.capacity_bytes != THEIR_BUDGET, "read from outside"


def evict(store: MemoryStore) -> None:
    store.capacity_bytes = 1
    store.gc()


def lease(store: MemoryStore) -> None:
    with store.lease(KEPT, digest_of_name("new")):
        pass


def import_bundle(store: MemoryStore) -> None:
    store.import_bundle(bundle_of((memory_of("kept").key.digest, packed("kept"))))
    store.import_bundle(bundle_of((memory_of("new").key.digest, packed("new"))))


def packed(name: str, **changes: Any) -> bytes:
    memory = replace(memory_of(name), **changes)
    return pack(memory, "float32", encode_seconds=1.0, created=0.0)


def bundle_of(*pairs: tuple[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    write(stream, pairs)
    stream.seek(0)
    return stream


ACTS: dict[str, Callable[[MemoryStore], Any]] = {
    "get": get_all,
    "get or encode": get_or_encode,
    "put": lambda store: store.put(memory_of("kept")),
    "put new": lambda store: store.put(memory_of("new")),
    "pin": lambda store: store.pin(KEPT),
    "unpin": lambda store: store.unpin(KEPT),
    "unpin what is pinned": lambda store: store.unpin(digest_of_name("pinned")),
    "remove": lambda store: store.remove(KEPT),
    "evict": evict,
    "gc": lambda store: store.gc(),
    "lease": lease,
    "entries": entries,
    "entry": entry,
    "budget": budget,
    "export": export,
    "import": import_bundle,
    "verify": lambda store: store.verify(),
    "clear": lambda store: store.clear(),
    "close": lambda store: store.close(),
}


def tried(act: Callable[[MemoryStore], Any], store: MemoryStore) -> str:
    """What was wrong with the outcome, if anything: an error must be one of our own."""
    try:
        act(store)
    except XattnError:
        pass
    except AssertionError as error:
        return str(error).split("\n")[0]
    except Exception as error:  # noqa: BLE001  (whatever it is, it is not promised)
        return repr(error)
    return ""


# Keys


KEYS = {
    "up": "../../../outside/precious",
    "up, as long as a key": "../" * 21 + "x",
    "up and back": f"../{KEPT[:2]}/{KEPT}",
    "up from a key": f"{KEPT}/../../../../../outside/precious",
    "absolute": "/etc/passwd",
    "absolute, as long as a key": "/" + "e" * 63,
    "home": "~/.ssh/id_rsa",
    "a device": "/dev/zero",
    "NUL": "\0" * 64,
    "NUL behind a key": f"{KEPT}\0",
    "NUL in a key": f"{KEPT[:63]}\0",
    "a line behind a key": f"{KEPT}\n",
    "a suffix behind a key": f"{KEPT}.safetensors",
    "a space before a key": f" {KEPT}",
    "upper case": "A" * 64,
    "full-width digits": "\N{FULLWIDTH DIGIT ZERO}" * 64,
    "Arabic digits": "\N{ARABIC-INDIC DIGIT ONE}" * 64,
    "a Cyrillic letter": "\N{CYRILLIC SMALL LETTER A}" + KEPT[1:],
    "a fraction slash": "..\N{FRACTION SLASH}" * 16,
    "a surrogate": "\udce2" * 64,
    "percent": "%2e%2e%2f" * 7,
    "backslashes": "..\\..\\outside\\precious",
    "too short": KEPT[:63],
    "too long": KEPT + "a",
    "far too long": "a" * 100_000,
    "none": "",
    "a dot": ".",
    "two dots": "..",
    "the pins": "pins",
    "the locks": "../../locks/000",
}


def row_of(digest: str, tenant: str = "default") -> Row:
    return Row(
        digest=digest,
        tenant=tenant,
        size_bytes=1000,
        encode_seconds=0.0,
        modality="text",
        codec="float32",
        positions=6,
        label="planted",
        created=0.0,
        expires=None,
        used=0.0,
        relative_l2=0.0,
        largest=0.0,
    )


TAKE_A_KEY: dict[str, Callable[[MemoryStore, str], Any]] = {
    "get": lambda store, key: store.get(key),
    "contains": lambda store, key: key in store,
    "entry": lambda store, key: store.entry(key),
    "pin": lambda store, key: store.pin(key),
    "unpin": lambda store, key: store.unpin(key),
    "is_pinned": lambda store, key: store.is_pinned(key),
    "remove": lambda store, key: store.remove(key),
    "lease": lambda store, key: store.lease(key).__enter__(),
    "export": lambda store, key: store.export([KEPT, key], io.BytesIO()),
    "evict": lambda store, key: store._tiers.evict(row_of(key)),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_no_key_escapes(world, key):
    store = MemoryStore(world.root)
    for call in TAKE_A_KEY.values():
        with pytest.raises(UsageError, match="64 hexadecimal"):
            call(store, key)
    assert_same(store.get(key_of("kept")), memory_of("kept"))


@pytest.mark.parametrize("name", KEYS.values(), ids=KEYS)
def test_no_field_of_a_key_escapes(world, name):
    """A key's fields are text of any kind; what it is called is their digest."""
    store = MemoryStore(world.root)
    name = name.encode("utf-8", "replace").decode()  # a payload's header is UTF-8
    for field in ("source", "preprocessing", "encoder"):
        memory = replace(memory_of("new"), key=key_of("new", **{field: name}))
        digest = store.put(memory)
        assert_same(MemoryStore(world.root).get(digest), memory)
    memory = replace(memory_of("new"), label=name, details={name: name})
    assert_same(MemoryStore(world.root).get(store.put(memory)), memory)


# Tenants

TENANTS = {
    "up": "../x",
    "up and out": "../../outside",
    "two dots": "..",
    "a dot": ".",
    "a path": "a/b",
    "absolute": "/tmp/x",
    "home": "~",
    "a separator": "/",
    "backslashes": "..\\..\\outside",
    "NUL": "\0",
    "NUL behind": "default\0",
    "a surrogate": "\udc80",
    "two surrogates": "\ud83d\ude00",
    "the character that they are": "\N{GRINNING FACE}",
    "composed": "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "decomposed": "e\N{COMBINING ACUTE ACCENT}",
    "a fraction slash": "..\N{FRACTION SLASH}x",
    "very long": "t" * 10_000,
    "the folder of none": "default",
    "quarantine": "quarantine",
    "tenants": "tenants",
    "locks": "locks",
    "pins": "pins",
    "a prefix": "ab",
    "a device": "con",
    "a line": "a\nb",
    "a space": " ",
}


@pytest.mark.parametrize("name", TENANTS.values(), ids=TENANTS)
def test_no_tenant_escapes(world, name):
    store = MemoryStore(world.root, tenant=name)
    get_all(store)
    assert store.entries() == []
    digest = store.put(memory_of("mine"))
    store.pin(digest)
    assert_same(MemoryStore(world.root, tenant=name).get(key_of("mine")), memory_of("mine"))
    assert [row.digest for row in store.entries()] == [digest]
    folder = store._tiers.disk.path(digest).parents[1]
    assert folder.parent == world.root / "tenants"
    assert {path.name for path in folder.parent.iterdir()} == {"default", folder.name}
    store.clear()
    assert_same(MemoryStore(world.root).get(key_of("kept")), memory_of("kept"))


def test_no_two_tenants_have_one_folder(world):
    folders = {MemoryStore(world.root, tenant=name)._tiers.disk.folder for name in TENANTS.values()}
    assert len(folders) == len(TENANTS)


# Payloads that lie


def rewritten(old: str, new: str) -> bytes:
    """A payload of "kept" with a header that somebody changed, and its length with it."""
    content = packed("kept")
    start = content.index(old.encode())
    changed = content[:start] + new.encode() + content[start + len(old) :]
    length = int.from_bytes(content[:8], "little") + len(changed) - len(content)
    return length.to_bytes(8, "little") + changed[8:]


def of_key(**changes: Any) -> bytes:
    """A whole payload, signed, whose key is another than its name says."""
    return packed("kept", key=key_of("kept", **changes))


PAYLOADS = {
    "the source leads elsewhere": lambda: of_key(source="../../../outside/precious"),
    "the modality leads elsewhere": lambda: of_key(modality="../../x"),
    "the preprocessing leads elsewhere": lambda: of_key(preprocessing="/etc/passwd"),
    "the encoder leads elsewhere": lambda: of_key(encoder="../" * 40),
    "the tenant leads elsewhere": lambda: of_key(tenant="../../x"),
    "the tenant is absolute": lambda: of_key(tenant="/etc"),
    "the schema is another": lambda: of_key(schema_version=99),
    "another memory": lambda: packed("pinned"),
    "the codec is a path": lambda: rewritten('\\"codec\\": \\"float32', '\\"codec\\": \\"../../x'),
    "the dtype is a path": lambda: rewritten('\\"dtype\\": \\"float32', '\\"dtype\\": \\"../../x'),
    "the hash is a path": lambda: rewritten('\\"hash\\": \\"blake3', '\\"hash\\": \\"../../x'),
    "a tensor is a path": lambda: rewritten('"spans":{', '"../../x":{'),
    "a tensor lies before the file": lambda: rewritten('"data_offsets":[', '"data_offsets":[-1'),
    "a tensor lies behind the file": lambda: rewritten('"data_offsets":[', '"data_offsets":[9'),
    "the format is a path": lambda: rewritten('"format":"1"', '"format":"../../x"'),
    "the digest is a path": lambda: rewritten('"digest":"', '"digest":"../../'),
    "a text file": lambda: b"/etc/passwd",
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("make", PAYLOADS.values(), ids=PAYLOADS)
def test_no_payload_escapes(again, make):
    for name, act in ACTS.items():
        world = again()
        path = MemoryStore(world.root)._tiers.disk.path(KEPT)
        path.write_bytes(make())
        for file in world.root.glob("index*"):
            file.unlink()  # so that it is made again from what the payloads say
        store = MemoryStore(world.root)
        assert tried(act, store) == "", name
        if path.exists() and name not in ("put", "import", "get or encode"):
            assert store.get(key_of("kept")) is None, name
        store.close()
        assert {path.name for path in (world.root / "tenants").iterdir()} <= {"default"}


@pytest.mark.parametrize("make", PAYLOADS.values(), ids=PAYLOADS)
def test_no_payload_of_a_shared_tier_escapes(world, make):
    shared = world.root / "shared"
    (shared / "default" / KEPT[:2]).mkdir(parents=True)
    (shared / "default" / KEPT[:2] / f"{KEPT}.safetensors").write_bytes(make())
    store = MemoryStore(world.root / "local", cold=f"file://{shared}")
    assert store.get(key_of("kept")) is None
    assert not list(store.root.rglob("*.safetensors"))


# Bundles that lie


def line(key: Any, content: bytes, **more: Any) -> bytes:
    entry = json.dumps({"key": key, "bytes": len(content), **more}).encode()
    return MAGIC + entry + b"\n" + content + b'{"end": 1}\n'


WHOLE = packed("new")
LIES = {f"the key is {name}": line(key, WHOLE) for name, key in KEYS.items()} | {
    "the key is of another memory": line(KEPT, WHOLE),
    "the key is a list": line([digest_of_name("new")], WHOLE),
    "the key is null": line(None, WHOLE),
    "the key is a number": line(7, WHOLE),
    "the size is below 0": line(digest_of_name("new"), WHOLE, bytes=-1),
    "the size is too large": line(digest_of_name("new"), WHOLE, bytes=2**40),
    "the size is a text": line(digest_of_name("new"), WHOLE, bytes="../x"),
    "the line is a list": MAGIC + b'["../../x", 4]\nabcd',
    "the line is a path": MAGIC + b"../../outside/precious\nabcd",
    "the line does not end": MAGIC + b"../" * 10_000,
    "the magic is a path": b"../../outside/precious\n",
    **{
        f"the payload: {name}": line(digest_of_name("kept"), make())
        for name, make in PAYLOADS.items()
        if name != "nothing"
    },
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_no_bundle_escapes(world, lie):
    store = MemoryStore(world.root / "importer")
    for trust in (False, True):
        with pytest.raises(CorruptEntryError):
            store.import_bundle(io.BytesIO(lie), trust=trust)
    assert store.entries() == []
    assert not list(store.root.rglob("*.safetensors"))


@pytest.mark.parametrize("name", KEYS.values(), ids=KEYS)
def test_a_bundle_that_is_whole_ends_where_its_key_belongs(world, name):
    """Its tenant, and more that its line says, are no place to put it."""
    key = key_of("new", tenant=name.encode("utf-8", "replace").decode())
    content = packed("new", key=key)
    extra = {"path": name[:999], "tenant": name[:999], name[:999]: 1}
    store = MemoryStore(world.root)
    [digest] = store.import_bundle(io.BytesIO(line(key.digest, content, **extra)))
    assert digest == digest_of_name("new")
    assert_same(store.get(digest), memory_of("new"))
    assert {path.name for path in (world.root / "tenants").iterdir()} == {"default"}


# Rows of the index that lead elsewhere


def tenant_rows(outside: Path) -> dict[str, tuple[str, str]]:
    """(digest, tenant) of rows that somebody wrote into the index."""
    their_folder = outside / "tenants" / "default"
    return {
        "up": (KEPT, "../../outside/tenants/default"),
        "up from a tenant": (KEPT, "default/../../../outside/tenants/default"),
        "absolute": (KEPT, str(their_folder)),
        "two dots": (KEPT, ".."),
        "three up": (KEPT, "../../.."),
        "NUL": (KEPT, "\0"),
        "the key leads up": ("../../outside/precious", "default"),
        "the key is absolute": (str(outside / "precious"), "default"),
        "the key is NUL": ("\0" * 64, "default"),
        "both": ("../precious", "../../outside"),
    }


@pytest.mark.parametrize("kind", tenant_rows(Path()))
def test_no_row_of_the_index_escapes(again, kind):
    for name, act in ACTS.items():
        world = again()
        digest, tenant = tenant_rows(world.outside)[kind]
        plant_row(world.root / INDEX, digest, tenant)
        before = world.outside_now()
        store = MemoryStore(world.root)
        assert tried(act, store) == "", name
        store.close()
        assert world.outside_now() == before, name


def plant_row(path: Path, digest: str, tenant: str) -> None:
    """As the index itself writes it, sealed, and the first to be evicted."""
    connection = sqlite3.connect(path)
    with connection:
        _insert(connection, [row_of(digest, tenant)])
        connection.execute("UPDATE entries SET worth = -1 WHERE digest = ?", (digest,))
    connection.close()


# Links that somebody planted

FOLDER = f"tenants/default/{KEPT[:2]}"
STRIPE = f"locks/{int(KEPT[:8], 16) % 4096:03x}"
FOLDERS = {
    "tenants": "tenants",
    "the tenant's folder": "tenants/default",
    "another tenant's folder": f"tenants/{SOMEBODY}",
    "a folder of payloads": FOLDER,
    "pins": "tenants/default/pins",
    "quarantine": "quarantine",
    "locks": "locks",
}
FILES = {
    "a payload": f"{FOLDER}/{KEPT}.safetensors",
    "a folder's lock": f"{FOLDER}/.changing",
    "a lease": f"{FOLDER}/.leased-{KEPT[:3]}",
    "a pin": f"tenants/default/pins/{KEPT}",
    "the lock of pins": "tenants/default/pins/.changing",
    "an encoder's lock": STRIPE,
    "the index": INDEX,
    "the index's log": f"{INDEX}-wal",
    "the index's shared memory": f"{INDEX}-shm",
    "the index's journal": f"{INDEX}-journal",
    "the version": "store.json",
    "the lock of the root": ".changing",
}
TARGETS = {
    "its twin": lambda outside, place: outside / place,
    "an empty folder": lambda outside, _: outside / "empty",
    "a text": lambda outside, _: outside / "precious",
    "nothing": lambda outside, _: outside / "not there",
}
LINKS = {
    f"{name} to {target}": (place, target)
    for name, place in (FOLDERS | FILES).items()
    for target in TARGETS
    if name in FOLDERS or target != "an empty folder"
}


def plant(world: World, place: str, target: str) -> None:
    link = world.root / place
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(TARGETS[target](world.outside, place))


@pytest.mark.parametrize("opened", ["opened before", "opened after"])
@pytest.mark.parametrize(("place", "target"), LINKS.values(), ids=LINKS)
def test_no_link_is_followed(again, models, place, target, opened):
    escaped = []
    for name, act in ACTS.items():
        world = again()
        before = world.outside_now()
        store = MemoryStore(world.root)
        store.entries()
        plant(world, place, target)
        if opened == "opened after":
            with suppress(XattnError):
                store.close()
            try:
                store = MemoryStore(world.root)
            except XattnError:
                continue
        wrong = tried(act, store)
        with suppress(XattnError):
            store.close()
        if wrong:
            escaped.append(f"{name}: {wrong}")
        after = world.outside_now()
        if after != before:
            changed = {path for path, _ in after.items() ^ before.items()}
            escaped.append(f"{name}: changed {', '.join(sorted(changed))}")
            shutil.rmtree(world.outside)
            shutil.copytree(models / "outside", world.outside)
    assert escaped == []


@pytest.mark.parametrize("opened", ["opened before", "opened after"])
@pytest.mark.parametrize("place", ["tenants", "tenants/default", "tenants/default/pins"])
def test_a_pin_of_theirs_is_none_of_ours(world, place, opened):
    store = MemoryStore(world.root)
    assert MemoryStore(world.outside).is_pinned(KEPT)
    plant(world, place, "its twin")
    with suppress(XattnError):
        store = MemoryStore(world.root) if opened == "opened after" else store
        assert not store.is_pinned(KEPT)


def test_a_root_that_is_a_link_is_refused(world):
    for target in ("outside", "store", "not there"):
        link = world.root / "link"
        link.symlink_to(world.place / target)
        with pytest.raises(XattnError, match=r"link|directory"):
            MemoryStore(link)
        link.unlink()


def test_there_are_enough_attempts():
    """Each is another way to be led elsewhere, whatever is then done with it."""
    ways = (KEYS, TENANTS, PAYLOADS, LIES, tenant_rows(Path()), LINKS)
    assert sum(map(len, ways)) >= 200

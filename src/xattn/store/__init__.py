"""Memories at rest: content-addressed, in tiers, safe among many processes."""

from xattn.counts import CODECS
from xattn.store.index import Row
from xattn.store.store import MemoryStore
from xattn.store.tiers import StoreCounters

__all__ = ["CODECS", "MemoryStore", "Row", "StoreCounters"]

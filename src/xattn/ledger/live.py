"""The account of what is there now, from the tensors that are."""

from collections.abc import Collection, Iterable, Iterator

from xattn.ledger.account import Account, Row, What
from xattn.ledger.amounts import KIND_OF
from xattn.memory import Memory
from xattn.models.network import Network
from xattn.models.state import Projection, place_of
from xattn.spec import is_absorbed, is_narrow


def held_by_model(
    network: Network,
    pinned: Iterable[tuple[Memory, Projection]],
    store_bytes: int,
    elsewhere: Collection[int] = (),
) -> Account:
    """Weights, what is kept of memories, and memories that a store has in this process.

    What lies at one of the places ``elsewhere`` is in another account.
    """
    rows: list[Row] = []
    seen = set(elsewhere)
    for memory, projection in pinned:
        kind, place = KIND_OF[memory.modality], place_of(memory.states_SD)
        states = Row(
            input=kind, what="states", positions=len(memory), bytes=memory.states_SD.nbytes
        )
        if place not in projection.places:
            rows += of_projection(projection)
        if place not in seen:
            rows.append(states)
        seen.add(place)
    if store_bytes:
        rows.append(Row(input="store", what="states", bytes=store_bytes))
    return Account(model=network.spec.family, rows=(*rows, of_weights(network)))


def of_weights(network: Network) -> Row:
    """All weights and tables, those that are shared once."""
    tensors = (*network.parameters(), *network.buffers())
    size = sum({(t.data_ptr(), t.nbytes): t.nbytes for t in tensors}.values())
    return Row(input="model", what="weights", bytes=size)


def of_projection(projection: Projection) -> Iterator[Row]:
    """What a decoder reads of memories, one row for each."""
    positions = sum(map(len, projection.memories))
    for memory in projection.memories:
        yield Row(
            input=KIND_OF[memory.modality],
            what=what_of(projection),
            positions=len(memory),
            bytes=projection.size_bytes * len(memory) // positions,
        )


def what_of(projection: Projection) -> What:
    """What the decoder reads in this form."""
    if not is_absorbed(projection.form):
        return "keys and values"
    return "int8 states" if is_narrow(projection.form) else "states"

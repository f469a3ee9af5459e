"""Many requests at once, on one model: they join and leave at any step, and share memories.

::

    with xattn.Engine(model, capacity_bytes=2**30) as engine:
        tickets = [engine.submit(memory, max_new_tokens=40) for memory in memories]
        answers = [ticket.result() for ticket in tickets]

From the outside in: :mod:`engine` has the faces (threads, asyncio), :mod:`worker` says what is
done in what order, :mod:`scheduler` who is next, :mod:`admission` whether it fits, :mod:`memories`
what is shared, :mod:`flight` which rows are decoded, and :mod:`job` and :mod:`ticket` are one
request as the engine and as its caller see it.
"""

from xattn.engine.admission import Bytes
from xattn.engine.engine import Engine
from xattn.engine.stats import EngineStats
from xattn.engine.ticket import Ticket

__all__ = ["Bytes", "Engine", "EngineStats", "Ticket"]

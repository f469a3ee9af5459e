"""The one primitive: :func:`attend` reads one segment, :func:`merge` joins what was read.

Everything that attends is built from these two. Cross-attention over k memories is k ``attend``\\ s
and one ``merge``, which equals one softmax over the concatenation, without the concatenation.
"""

from xattn.attention.attend import (
    attend,
    attend_alone,
    attention_scores,
    attention_weights,
)
from xattn.attention.merge import combine, merge
from xattn.attention.segments import Absorbed, Materialized, Segment, narrow

__all__ = [
    "Absorbed",
    "Materialized",
    "Segment",
    "attend",
    "attend_alone",
    "attention_scores",
    "attention_weights",
    "combine",
    "merge",
    "narrow",
]

"""What an engine has done, and what it holds."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Counts of one engine, at one moment."""

    running: int
    """Requests that are being decoded."""
    queued: int
    """Requests that wait."""
    rows: int
    """Sequences in the running requests: beams and samples count each."""
    held_bytes: int
    """Bytes of self-attention caches, projections and encoded sources, and room for steps, now."""
    predicted_bytes: int
    """What the running requests take at most before they end."""
    capacity_bytes: int | None
    """What they may take."""
    submitted: int
    """Requests that were taken, since the engine began; the others below are parts of it."""
    finished: int
    cancelled: int
    expired: int
    """Requests whose time ran out."""
    failed: int
    refused: int
    """Requests that were not taken: too large, or the queue was full."""
    steps: int
    """Forward passes of the decoder over the rows in flight, and over prompts."""
    tokens: int
    """New tokens chosen, by all rows."""

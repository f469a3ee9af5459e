"""Choosing tokens: greedy, beam search, sampling, constraints, streaming; and transcription."""

from xattn.decoding.constraints import Processor
from xattn.decoding.request import Hypothesis, Request
from xattn.decoding.search import decode, stream
from xattn.decoding.settings import Settings
from xattn.decoding.stopping import StopFilter

__all__ = ["Hypothesis", "Processor", "Request", "Settings", "StopFilter", "decode", "stream"]

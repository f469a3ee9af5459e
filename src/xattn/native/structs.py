"""The structures of ``kernels/decoder.cpp``, field by field."""

from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from typing import ClassVar


class Matrix(Structure):
    """Weights ``[out, in]`` of so many ``bits``: 32, 8 or 4."""

    _fields_: ClassVar = [
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("bias", c_void_p),
        ("input", c_int64),
        ("output", c_int64),
        ("bits", c_int64),
        ("careful", c_int64),
    ]


class Norm(Structure):
    """``kind`` is a place in :data:`NORMS`."""

    _fields_: ClassVar = [
        ("kind", c_int64),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("eps", c_float),
    ]


NORMS = ("none", "layer", "rms")
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "quick_gelu")


class Attention(Structure):
    """Projections and shape of one attention sub-layer."""

    _fields_: ClassVar = [
        ("q", Matrix),
        ("k", Matrix),
        ("v", Matrix),
        ("o", Matrix),
        ("q_norm", Norm),
        ("k_norm", Norm),
        ("heads", c_int64),
        ("groups", c_int64),
        ("width", c_int64),
        ("rotary", c_int64),
        ("scale", c_float),
    ]


class Layer(Structure):
    """One decoder layer; ``activation`` is a place in :data:`ACTIVATIONS`."""

    _fields_: ClassVar = [
        ("self_norm", Norm),
        ("cross_norm", Norm),
        ("ffn_norm", Norm),
        ("self_attn", Attention),
        ("cross_attn", Attention),
        ("up", Matrix),
        ("gate", Matrix),
        ("down", Matrix),
        ("crosses", c_int64),
        ("crosses_first", c_int64),
        ("gated", c_int64),
        ("activation", c_int64),
        ("cross_gate", c_void_p),
    ]


class Decoder(Structure):
    """All that a step needs to know of a decoder."""

    _fields_: ClassVar = [
        ("layers", c_int64),
        ("width", c_int64),
        ("vocabulary", c_int64),
        ("norm_first", c_int64),
        ("goes_on", c_int64),
        ("layer", POINTER(Layer)),
        ("embedding", Matrix),
        ("head", Matrix),
        ("embedding_norm", Norm),
        ("final_norm", Norm),
        ("embedding_scale", c_float),
        ("head_scale", c_float),
        ("relative", c_void_p),
        ("bucket_of", c_void_p),
        ("distances", c_int64),
    ]


class Cache(Structure):
    """Where self-attention's keys and values lie; strides in numbers."""

    _fields_: ClassVar = [
        ("layers", c_void_p),
        ("kind_stride", c_int64),
        ("row_stride", c_int64),
        ("group_stride", c_int64),
        ("lengths", c_void_p),
        ("places", c_void_p),
        ("places_stride", c_int64),
        ("own", c_void_p),
    ]


class Segment(Structure):
    """One memory as one layer reads it; strides in numbers, and in scales."""

    _fields_: ClassVar = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("key_group", c_int64),
        ("key_stride", c_int64),
        ("value_group", c_int64),
        ("value_stride", c_int64),
        ("scale_group", c_int64),
    ]


class Absorption(Structure):
    """A layer's key and value projections ``[G, K, D]``, and its value bias ``[G, K]``."""

    _fields_: ClassVar = [("keys", c_void_p), ("values", c_void_p), ("value_bias", c_void_p)]


class Reads(Structure):
    """Which rows read which memories.

    ``numbers`` is 1 where they are int8, ``absorbed`` the width of absorbed states, or 0.
    ``turns``, ``weighed`` and ``scales`` are of rows that read in ways of their own.
    """

    _fields_: ClassVar = [
        ("memories", c_int64),
        ("numbers", c_int64),
        ("absorbed", c_int64),
        ("layers", c_int64),
        ("segments", POINTER(Segment)),
        ("absorption", POINTER(Absorption)),
        ("positions", c_void_p),
        ("masks", c_void_p),
        ("first", c_void_p),
        ("rows", c_void_p),
        ("turns", c_void_p),
        ("weighed", c_void_p),
        ("scales", c_void_p),
    ]


class Step(Structure):
    """One pass of the decoder."""

    _fields_: ClassVar = [
        ("decoder", POINTER(Decoder)),
        ("cache", POINTER(Cache)),
        ("reads", POINTER(Reads)),
        ("tokens", c_void_p),
        ("rows", c_int64),
        ("tokens_per_row", c_int64),
        ("positions", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("hidden", c_void_p),
        ("logits", c_void_p),
        ("wanted", c_void_p),
        ("wanted_count", c_int64),
        ("threads", c_int64),
        ("workspace", c_void_p),
        ("workspace_bytes", c_int64),
        ("times", c_void_p),
    ]

"""Sums over images and tokens, as values (values.py) and as they run (sums.py): NumPy and SciPy only."""

from corp_onnx.moments.values import (
    AnyMoments,
    ChannelMoments,
    CrossMoments,
    LogitMoments,
    Moments,
    flatten_moments,
    gather_moments,
    load_moments,
    merge_moments,
    pack_moments,
    save_moments,
    unpack_moments,
)

__all__ = [
    "AnyMoments",
    "ChannelMoments",
    "CrossMoments",
    "LogitMoments",
    "Moments",
    "flatten_moments",
    "gather_moments",
    "load_moments",
    "merge_moments",
    "pack_moments",
    "save_moments",
    "unpack_moments",
]

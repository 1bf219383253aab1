"""How many bits of a weight this processor multiplies without loss.

x86-64 without VNNI multiplies pairs of 8-bit numbers into sums of 16 bits, which saturate: with 255 x 127 twice they
do, with weights of 7 bits (255 x 64 twice) they do not. ONNX Runtime leaves that to whoever quantises; seen with 1.32
on an EPYC with AVX2 alone, answers of a file with 8-bit weights are off by up to a third of the largest one.
"""

from __future__ import annotations

import platform

from corp_onnx.cpuinfo import list_flags

VNNI = frozenset({"avx512_vnni", "avx_vnni"})

LARGEST, LARGEST_REDUCED = 127, 63
"""Of a symmetric weight of 8 and of 7 bits; -128 and -64 are left out, so that a number and its negative are alike."""


def has_whole_sums() -> bool:
    """Whether sums of 8-bit products are as long as they have to be; true where the system does not tell."""
    flags = list_flags() if platform.machine() in ("x86_64", "AMD64") else frozenset[str]()
    return not flags or bool(flags & VNNI)


def largest_weight() -> int:
    """The largest 8-bit weight that is multiplied without loss here."""
    return LARGEST if has_whole_sums() else LARGEST_REDUCED


def describe_weights() -> list[str]:
    """A sentence for the report where weights keep fewer bits than they could."""
    if has_whole_sums():
        return []
    return [
        "weights keep 7 bits: 8-bit products of this processor (x86-64 without VNNI) saturate with 8. The file answers "
        "alike everywhere; made on a processor with VNNI it would keep 8."
    ]

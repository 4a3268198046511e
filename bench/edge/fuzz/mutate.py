"""Mutations: what transmission, disks, bugs and malice do to bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Lengths and counts at which parsers change their minds.
_BOUNDARIES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65534, 65535, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)

_FRAGMENTS = (
    b"\xff" * 4,
    b"\0" * 16,
    b"../../../etc/passwd",
    b"<script>alert(1)</script>",
    b"\xc3\x28",
    b"\r\n",
    b"%n",
)


@dataclass(frozen=True)
class Material:
    """What mutations take from: good inputs, and pieces that are known to be trouble."""

    seeds: Sequence[bytes]
    fragments: Sequence[bytes]


Mutation = Callable[[bytearray, Material, np.random.Generator], None]


def mutated(seeds: Sequence[bytes], fragments: Sequence[bytes], seed: int, index: int) -> bytes:
    """Input ``index`` of the run with this ``seed``: one of ``seeds`` after one to four mutations."""
    noise = np.random.default_rng([seed, index])
    given = Material(seeds, (*_FRAGMENTS, *fragments))
    content = bytearray(seeds[int(noise.integers(len(seeds)))])
    for _ in range(noise.integers(1, 5)):
        _MUTATIONS[noise.integers(len(_MUTATIONS))](content, given, noise)
    return bytes(content)


def _flip_bits(content: bytearray, given: Material, noise: np.random.Generator) -> None:
    for _ in range(noise.integers(1, 9)):
        if content:
            content[noise.integers(len(content))] ^= 1 << int(noise.integers(8))


def _edit_length(content: bytearray, given: Material, noise: np.random.Generator) -> None:
    """Replace two or four bytes, in either byte order, by a boundary or by something near what was there."""
    form = ("<H", ">H", "<L", ">L")[noise.integers(4)]
    size = struct.calcsize(form)
    if len(content) < size:
        return
    at = int(noise.integers(len(content) - size + 1))
    if noise.integers(2):
        value = _BOUNDARIES[noise.integers(len(_BOUNDARIES))]
    else:
        value = struct.unpack_from(form, content, at)[0] + int(noise.integers(-8, 9))
    struct.pack_into(form, content, at, value % 2 ** (8 * size))


def _truncate(content: bytearray, given: Material, noise: np.random.Generator) -> None:
    del content[int(noise.integers(len(content) + 1)) :]


def _remove(content: bytearray, given: Material, noise: np.random.Generator) -> None:
    at = int(noise.integers(len(content) + 1))
    del content[at : at + int(noise.integers(1, 65))]


def _repeat(content: bytearray, given: Material, noise: np.random.Generator) -> None:
    at = int(noise.integers(len(content) + 1))
    content[at:at] = content[at : at + int(noise.integers(1, 257))] * int(noise.integers(1, 9))


def _splice(content: bytearray, given: Material, noise: np.random.Generator) -> None:
    """Go on as another seed does."""
    other = given.seeds[int(noise.integers(len(given.seeds)))]
    content[int(noise.integers(len(content) + 1)) :] = other[int(noise.integers(len(other) + 1)) :]


def _insert(content: bytearray, given: Material, noise: np.random.Generator) -> None:
    at = int(noise.integers(len(content) + 1))
    content[at:at] = given.fragments[int(noise.integers(len(given.fragments)))]


def _overwrite(content: bytearray, given: Material, noise: np.random.Generator) -> None:
    at, fragment = int(noise.integers(len(content) + 1)), given.fragments[int(noise.integers(len(given.fragments)))]
    content[at : at + len(fragment)] = fragment


_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits, _edit_length, _edit_length, _truncate, _remove, _repeat, _splice, _insert, _overwrite,
)  # fmt: skip

"""Random numbers as a function of (seed, purpose, images seen), and who computes which rows of a batch.

No generator runs from step to step, so nothing of it can be lost when a run is stopped, and every process can
draw what belongs to the whole batch and take its rows: one process and many see the same numbers. The
exception is a family that draws noise in training mode (none does yet): from torch's global generators, whose
states are in each checkpoint, so resuming is exact, but other processes or passes per step draw other noise.
"""

from __future__ import annotations

import hashlib

import torch

from stylenat_hub.errors import InputError


def stream(seed: int, purpose: str, images: int) -> torch.Generator:
    """The generator, on the CPU, for one purpose at one point of the training (`images` seen before it)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{images}".encode()).digest()
    # 32 bits, because torch's generator on the CPU drops what is above.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def shard_rows(batch: int, group: int, shards: int, shard: int) -> list[int]:
    """The rows of a batch that one of `shards` equal parts computes, ascending.

    The discriminator compares samples in groups (`minibatch_stddev`: with n groups, row i is in group i mod
    n), so a part gets whole groups, and in the part they are the groups of the whole batch again.

    Raises `InputError` if the groups cannot be dealt out evenly.
    """
    size = min(batch, group)
    groups = batch // size
    if batch % size or groups % shards:
        raise InputError(
            f"a batch of {batch} cannot be dealt out to {shards} (processes times accumulation): the "
            f"discriminator compares {size} pictures at a time; allowed: a multiple of {group * shards}"
        )
    mine = range(shard * groups // shards, (shard + 1) * groups // shards)
    return [row for row in range(batch) if row % groups in mine]

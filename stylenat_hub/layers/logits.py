"""The weights of chosen queries, computed anew from what an attention compares.

Legend: B batch, H,W tokens, N heads, D head dim; Q chosen queries, n heads of one partition, K keys that one
query sees along an axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.layers.partitions import Partition


@dataclass(frozen=True, eq=False)
class Compared:
    """What an attention's weights are made of.

    q, k: [B, H, W, N, D]. tables: for each partition a bias per offset [n, 2K-1, 2K-1], height first, or
    None. seam: what is added where a pair does not count (see `Partition.counted`).
    """

    q: torch.Tensor
    k: torch.Tensor
    tables: tuple[torch.Tensor | None, ...]
    seam: float = 0.0

    def weights(
        self, number: int, part: Partition, rows: torch.Tensor, columns: torch.Tensor, sample: int = 0
    ) -> torch.Tensor:
        """softmax(q k / sqrt(D) + bias) of one partition's heads, [Q, n, K, K] over `part.keys` of the
        query's row and column; each sums to 1. In float32 at least, whatever q and k are in.

        number: the partition's, from 0 on. rows, columns: [Q] int64, on the device of q.
        """
        exact = torch.promote_types(self.q.dtype, torch.float32)
        device = self.q.device
        keys = part.keys.to(device)
        k = self.k[sample, :, :, part.heads]
        k = k[keys[rows][:, :, None], keys[columns][:, None, :]].to(exact)  # [Q, K, K, n, D]
        q = self.q[sample, rows, columns][:, part.heads].to(exact) * self.q.shape[-1] ** -0.5
        logits = torch.einsum("qnd,qijnd->qnij", q, k)
        table = self.tables[number]
        if table is not None:
            index = offsets(part.keys).to(device)
            bias = table.to(exact)[:, index[rows][:, :, None], index[columns][:, None, :]]  # [n, Q, K, K]
            logits = logits + bias.transpose(0, 1)
        counted = part.counted.to(device)
        counts = counted[rows][:, :, None] & counted[columns][:, None, :]
        logits = logits + torch.where(counts, 0.0, self.seam)[:, None].to(exact)
        return logits.flatten(2).softmax(dim=2).view_as(logits)


def offsets(keys: torch.Tensor) -> torch.Tensor:
    """[L, K] int64: how many keys each key stands behind the query itself, plus K - 1, which is its row in a
    table of biases.

    Every window here is an evenly spaced run of positions that holds its query, also where it wraps around.
    Raises `InputError` where a query is not among its own keys.
    """
    length, count = keys.shape
    found = keys == torch.arange(length, device=keys.device)[:, None]
    if not found.any(dim=1).all():
        missing = int(found.any(dim=1).int().argmin())
        raise InputError(
            f"the query at position {missing} is not among its own keys {keys[missing].tolist()}, so they "
            "have no offsets from it; a bias by offset, or an average by it, needs partitions that hold it"
        )
    own = found.int().argmax(dim=1)
    return torch.arange(count, device=keys.device) - own[:, None] + count - 1

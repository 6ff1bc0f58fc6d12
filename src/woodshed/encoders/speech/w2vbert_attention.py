"""Attention with a learned bias for clamped distances, without a tensor of all pairs of frames.

Shaw et al. 2018 (arXiv 1803.02155), the `relative_key` of transformers: the score of query i and key j is
`q_i . (k_j + e[clamp(j - i, -left, right)]) / sqrt(size)`. Each query therefore meets the few rows of the table `e` and
no others: `q @ e^T` holds every bias of that query. Laid out over the keys it is one value to the left of a band, the
band, and one value to its right, so a block of queries is written by three fills and one diagonal copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

ALIGNMENT = 16
"""Columns that rows of the bias are rounded up to: fused kernels on CUDA would copy a bias that is not aligned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How much is worked on at once. The result is the same up to rounding, whatever the sizes."""

    rows: int
    """Frames per matrix product of the layers' widest part."""
    clips: int
    """Clips per call of attention and convolution. One needs no padding; many fill a large device."""
    queries: int
    """Frames per call of attention."""
    bias_elements: int
    """Biases in memory; heads are taken in turn to keep to it, one at the least."""


CPU_BLOCKS = Blocks(rows=1024, clips=1, queries=256, bias_elements=1 << 20)
"""Four megabytes of bias stay near the core; from 192 queries on, torch's kernel uses its larger tiles."""
DEVICE_BLOCKS = Blocks(rows=8192, clips=1024, queries=256, bias_elements=1 << 26)
"""256 MiB of bias in float32: some hundred thread blocks per call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Which rows of a table belong to which clip, and which of them count."""

    frames: tuple[int, ...]
    """Rows of each clip: its valid frames and, where there is room, one more, which may be half padding."""
    valid: tuple[int, ...]

    @classmethod
    def of(cls, valid: Sequence[int], *, num_frames: int) -> Packing:
        assert all(0 <= count <= num_frames for count in valid), f"valid frames {valid} of {num_frames}"
        return cls(frames=tuple(min(count + 1, num_frames) for count in valid), valid=tuple(valid))

    def pack(self, clips: Float[Tensor, "batch frame channel"]) -> Float[Tensor, "row channel"]:
        return torch.cat([clip[:frames] for clip, frames in zip(clips, self.frames, strict=True)])

    def unpack(self, rows: Float[Tensor, "row channel"], *, num_frames: int) -> Float[Tensor, "batch frame channel"]:
        if all(frames == num_frames for frames in self.frames):
            return rows.view(len(self.frames), num_frames, rows.shape[1])
        clips = rows.new_zeros(len(self.frames), num_frames, rows.shape[1])
        for clip, part in zip(clips, rows.split_with_sizes(self.frames), strict=True):
            clip[: len(part)] = part
        return clips

    def clear_invalid(self, rows: Float[Tensor, "row channel"]) -> None:
        """Set the rows behind the valid ones to zero."""
        for part, valid in zip(rows.split_with_sizes(self.frames), self.valid, strict=True):
            part[valid:] = 0

    def groups(self, num_clips: int) -> Iterator[tuple[slice, Packing]]:
        """The rows of `num_clips` clips at a time."""
        ends = (0, *accumulate(self.frames))
        for first in range(0, len(self.frames), num_clips):
            frames, valid = self.frames[first : first + num_clips], self.valid[first : first + num_clips]
            yield slice(ends[first], ends[first + len(frames)]), Packing(frames=frames, valid=valid)

    def padded(self, rows: Float[Tensor, "row channel"]) -> Float[Tensor, "clip frame channel"]:
        """The clips side by side: a view of the rows if there is one clip, else a padded copy."""
        return (
            rows[None]
            if len(self.frames) == 1
            else pad_sequence(list(rows.split_with_sizes(self.frames)), batch_first=True)
        )


class SelfAttention(nn.Module):
    """Attention of each clip's rows to its valid rows."""

    def __init__(self, *, hidden_size: int, num_heads: int, left: int, right: int) -> None:
        super().__init__()
        self.num_heads, self.left = num_heads, left
        self.linear_q = nn.Linear(hidden_size, hidden_size)
        self.linear_k = nn.Linear(hidden_size, hidden_size)
        self.linear_v = nn.Linear(hidden_size, hidden_size)
        self.linear_out = nn.Linear(hidden_size, hidden_size)
        self.distance_embedding = nn.Embedding(left + right + 1, hidden_size // num_heads)

    def forward(
        self, rows: Float[Tensor, "row channel"], packing: Packing, blocks: Blocks
    ) -> Float[Tensor, "row channel"]:
        """What each row attends to, before the output projection."""
        query: Tensor = self.linear_q(rows)
        key, value = self.linear_k(rows), self.linear_v(rows)
        del rows
        for span, clips in packing.groups(blocks.clips):
            sides = [self._heads(clips.padded(side[span])) for side in (query, key, value)]
            # A clip without a valid frame attends to its one cleared frame: no row is without a key.
            num_keys = [max(valid, 1) for valid in clips.valid]
            attend(*sides, table=self.distance_embedding.weight, left=self.left, num_keys=num_keys, blocks=blocks)
            if len(clips.frames) > 1:
                query[span] = clips.pack(sides[0].flatten(-2))
        return query

    def _heads(self, clips: Float[Tensor, "clip frame channel"]) -> Float[Tensor, "clip frame head size"]:
        return clips.view(*clips.shape[:2], self.num_heads, -1)


def attend(
    query: Float[Tensor, "clip frame head size"],
    key: Float[Tensor, "clip frame head size"],
    value: Float[Tensor, "clip frame head size"],
    *,
    table: Float[Tensor, "distance size"],
    left: int,
    num_keys: Sequence[int],
    blocks: Blocks,
) -> None:
    """Replace the queries by what they attend to.

    Args:
        query: overwritten with the result.
        table: one row per distance, from `-left` on.
        num_keys: how many frames of each clip may be attended to, at least 1; what lies behind them is not read into
            the result but must be finite.
    """
    clips, frames, heads, size = query.shape
    longest, rows = max(num_keys), min(blocks.queries, frames)
    width = _aligned(frames + _aligned(left) - left + len(table) - 1)
    at_once = min(heads, max(1, blocks.bias_elements // (clips * rows * width)))
    room = query.new_empty(clips, at_once, rows, width)
    scaled_table = (table * size**-0.5).t()
    padding = _padding(num_keys, longest, query.device)
    for start in range(0, frames, rows):
        for head in range(0, heads, at_once):
            some = slice(head, head + at_once)
            block = query[:, start : start + rows, some].transpose(1, 2)
            bias = _spread(block @ scaled_table, room, first=start, left=left)[..., :longest]
            if padding is not None:
                bias.masked_fill_(padding, float("-inf"))
            keys, values = (side[:, :longest, some].transpose(1, 2) for side in (key, value))
            block.copy_(F.scaled_dot_product_attention(block, keys, values, attn_mask=bias))


def _spread(
    biases: Float[Tensor, "clip head query distance"],
    room: Float[Tensor, "clip _ _ width"],
    *,
    first: int,
    left: int,
) -> Float[Tensor, "clip head query key"]:
    """Lay each query's biases out over the keys: column j is key j, `first` is the place of the first query."""
    clips, heads, rows, num_distances = biases.shape
    base = _aligned(left)
    band = first + base - left
    out = room[:, :heads, :rows]
    before, after = biases[..., :1], biases[..., -1:]
    out[..., :band] = before
    out[..., band:] = after
    below_diagonal = torch.ones(rows, rows, dtype=torch.bool, device=out.device).tril_(-1)
    out[..., band : band + rows] = torch.where(below_diagonal, before, after)
    # Row r of this view starts one column later than row r - 1: it is the band of distances around the diagonal.
    per_clip, per_head, per_row, _ = out.stride()
    shape, strides = (clips, heads, rows, num_distances), (per_clip, per_head, per_row + 1, 1)
    out.as_strided(shape, strides, out.storage_offset() + band).copy_(biases)
    return out[..., base:]


def _padding(num_keys: Sequence[int], longest: int, device: torch.device) -> Tensor | None:
    """True where a key is padding, [clip, 1, 1, key]; None where no clip has any."""
    if min(num_keys) == longest:
        return None
    lengths = torch.tensor(num_keys, device=device)
    return (torch.arange(longest, device=device) >= lengths[:, None])[:, None, None]


def _aligned(columns: int) -> int:
    return -(-columns // ALIGNMENT) * ALIGNMENT

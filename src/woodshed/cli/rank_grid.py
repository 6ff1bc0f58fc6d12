"""Ranks drawn with letters: a table of block x projection, a histogram, an interval as a small bar, and
layers with their numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from woodshed.cli.parts import line_of
from woodshed.cli.quantities import printable
from woodshed.importance.layer_grid import NO_BLOCK, LayerGrid, common_stem, layer_grid
from woodshed.importance.map_view import LayerView

WIDEST_BAR = 40
MOST_BINS = 16


@dataclass(frozen=True, slots=True)
class RankGrid:
    """The ranks of all layers; columns that do not fit beside each other follow below."""

    views: Sequence[LayerView]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from (Text(line, no_wrap=True, overflow="crop") for line in grid_lines(self.views, options.max_width))


@dataclass(frozen=True, slots=True)
class RankHistogram:
    """How many layers have which rank."""

    views: Sequence[LayerView]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ranks = [view.rank for view in self.views]
        yield from (Text(line, no_wrap=True, overflow="crop") for line in histogram_lines(ranks, options.max_width))


def grid_lines(views: Sequence[LayerView], width: int) -> Iterator[str]:
    """Lines of at most `width` characters, unless the width is too small for a single column.

    >>> names = [f"layers.{block}.{part}" for block in range(2) for part in ("attn.q_proj", "attn.v_proj", "mlp.fc1")]
    >>> views = [LayerView(name=name, rank=rank) for name, rank in zip(names, (64, 128, 0, 16, 32, 8))]
    >>> print(*grid_lines(views, 40), sep="\\n")
              attn      mlp
    layers     q   v  fc1
         0    64 128    -
         1    16  32    8
    """
    ranks = {view.name: view.rank for view in views}
    grid = layer_grid(ranks)
    head, labels = _block_labels(grid, most=max(6, width // 3))
    label_width = max(map(len, (head, *labels)), default=0)
    cells = {place: f"{ranks[name] or '-'}" for place, name in grid.cells.items()}
    columns = _columns(grid, cells)
    for shown in _side_by_side(columns, width - label_width):
        yield f"{'':{label_width}}{_group_line(shown)}".rstrip()
        yield f"{head:>{label_width}}{''.join(f'{column.head:>{column.width}}' for column in shown)}"
        for block, label in zip(grid.blocks, labels, strict=True):
            numbers = (f"{cells.get((block, column.projection), ''):>{column.width}}" for column in shown)
            yield f"{label:>{label_width}}{''.join(numbers)}".rstrip()


def histogram_lines(ranks: Sequence[int], width: int) -> Iterator[str]:
    """One line a rank, or a range of ranks where there are many; the longest bar fits `width`.

    >>> print(*histogram_lines([16, 64, 64, 0], 20), sep="\\n")
    none # 1
      16 # 1
      64 ## 2
    """
    counts = Counter(ranks)
    without = counts.pop(0, 0)
    bins = {f"{rank}": counts[rank] for rank in sorted(counts)}
    if len(bins) > MOST_BINS:
        step = math.ceil((max(counts) - min(counts) + 1) / MOST_BINS)
        starts = range(min(counts), max(counts) + 1, step)
        bins = {
            f"{start}-{start + step - 1}": sum(counts[rank] for rank in range(start, start + step)) for start in starts
        }
    bins = ({"none": without} if without else {}) | bins
    if not bins:
        return
    label_width, largest = max(map(len, bins)), max(bins.values())
    room = max(1, min(WIDEST_BAR, width - label_width - 2 - len(f"{largest}")))
    for label, count in bins.items():
        # A layer that stands alone is seen as well.
        bar = math.ceil(count * min(1.0, room / largest))
        yield f"{label:>{label_width}} {'#' * bar}{' ' if bar else ''}{count}"


def interval_bar(value: float, low: float | None, high: float | None, *, scale: tuple[float, float], width: int) -> str:
    """A value with its interval on a logarithmic scale, for tables of several.

    >>> interval_bar(1.0, 0.5, 2.0, scale=(0.25, 4.0), width=9)
    '  --o--  '
    """

    def place(number: float) -> int:
        bounded = min(max(number, scale[0]), scale[1])
        share = math.log(bounded / scale[0]) / math.log(scale[1] / scale[0])
        return round(share * (width - 1))

    cells = [" "] * width
    if low is not None and high is not None:
        for at in range(place(low), place(high) + 1):
            cells[at] = "-"
    cells[place(value)] = "o"
    return "".join(cells)


def layer_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Container[int] = ()) -> Table:
    """Layers and their numbers: where there is no room a name is folded, and a number never.

    Args:
        left: columns, counted from 0, that are aligned to the left besides the first.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(line_of(head[0]), overflow="fold")
    for place, name in enumerate(head[1:], start=1):
        table.add_column(line_of(name), justify="left" if place in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(line_of(cell) for cell in row))
    return table


def times(ratio: float) -> str:
    """A ratio, with two decimals where they say enough.

    >>> times(1.25), times(0.0003), times(12345.6)
    ('1.25', '0.0003', '1.23e+04')
    """
    return f"{ratio:.2f}" if 0.1 <= ratio < 1000 else f"{ratio:.3g}"


def spread_of(ranks: Sequence[int]) -> str:
    """Median and range of the ranks that are given.

    >>> spread_of([16, 64, 0, 128])
    '64 (16 to 128), in 3 of 4 layers'
    """
    given = [rank for rank in ranks if rank]
    if not given:
        return f"none, in 0 of {len(ranks)} layers"
    return f"{median(given):g} ({min(given)} to {max(given)}), in {len(given)} of {len(ranks)} layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One projection."""

    projection: str
    group: str
    head: str
    width: int
    """With the space before it."""


def _columns(grid: LayerGrid, cells: Mapping[tuple[str, str], str]) -> list[_Column]:
    """A column is as wide as its longest number, and those of a group together as the group's name."""
    groups = [printable(projection).rpartition(".")[0] for projection in grid.projections]
    columns: list[_Column] = []
    for projection, group in zip(grid.projections, groups, strict=True):
        leaf = printable(projection).rpartition(".")[2]
        head = leaf.removesuffix("_proj").removeprefix("to_") or leaf
        inside = max(len(head), *(len(cells.get((block, projection), "")) for block in grid.blocks))
        is_first = not columns or columns[-1].group != group
        width = max(inside + (2 if is_first else 1), math.ceil((len(group) + 2) / groups.count(group)))
        columns.append(_Column(projection=projection, group=group, head=head, width=width))
    return columns


def _block_labels(grid: LayerGrid, *, most: int) -> tuple[str, list[str]]:
    """What stands above the blocks, and what each is called."""
    stem = common_stem(grid.blocks)
    names = [block.rpartition(".")[2] if stem is not None else block for block in grid.blocks]
    shown = [printable(name) if name != NO_BLOCK else "none" for name in names]
    return _shortened(printable(stem or "block"), most), [_shortened(name, most) for name in shown]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"..{text[len(text) - most + 2 :]}"


def _side_by_side(columns: Sequence[_Column], width: int) -> Iterator[list[_Column]]:
    """As many columns as fit, and the others after them; a group's name must fit as well."""
    shown: list[_Column] = []
    for column in columns:
        if shown and len(_group_line([*shown, column])) > width:
            yield shown
            shown = []
        shown.append(column)
    if shown:
        yield shown


def _group_line(columns: Sequence[_Column]) -> str:
    """The groups' names, each above its first column; as wide as the columns."""
    line, total, group = "", 0, None
    for column in columns:
        if column.group != group:
            # A group that was broken off has less room than its name may need.
            line, group = f"{line[:total]:{total}}  {column.group}", column.group
        total += column.width
    return f"{line[:total]:{total}}"

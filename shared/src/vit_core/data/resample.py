"""Crop, flip and resize of a batch, each image with its own box, as two batched matrix products.

Resizing along one axis is linear, so a crop of height h resized to S rows is Y = R X with R of shape (S, H):
row i of R holds the weights of the source pixels that make output pixel i. The weights are those of
`torch.nn.functional.interpolate(mode="bilinear", antialias=True)` on the cropped image. Weights that would
fall outside the source are left out, which is zero padding: black.

Shapes: B images, C channels, H×W source pixels, S output pixels a side, U distinct boxes along one axis,
G bands of output rows, K source rows that a band needs.

A row of R has few weights that are not zero (two when enlarging), and a dense product wastes the rest: for
32 to 224 pixels, sixteen in seventeen. So on a CPU the output rows are cut in G bands, and each band is
multiplied with only the K source rows that it needs.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vit_core.data.parallel import for_each_part, one_core, scratch

# One axis of one image's crop: first pixel of the box, its length in source pixels, the first of the resized
# box's pixels that is kept, and whether the result is mirrored.
AxisBox = tuple[float, float, float, bool]

_PART = 8  # images that a thread takes at a time
# Values of a batch that is not worth another thread: 2 MB take 0.3 ms, and a busy core may take longer to ask.
_SMALL = 2**19
_BLOCK = 4  # images whose result, 2.4 MB at 224×224, stays in a core's cache


def resample(
    images: Tensor,
    boxes: Tensor,
    size: int,
    *,
    grid: tuple[int, int] | None = None,
    offsets: Tensor | None = None,
    flip: Tensor | None = None,
    scale: Tensor,
    shift: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Cut `boxes` out of `images`, resize them, flip some, and return value · scale + shift.

    Args:
        images: (B, C, H, W), uint8 or float32.
        boxes: (B, 4) on the CPU: top, left, height, width in whole source pixels; what lies outside the
            image is black.
        size: S, the side of the output.
        grid: (rows, columns) that a box is resized to; the default is (S, S).
        offsets: (B, 2) on the CPU: the S×S window of that grid that is returned, as (row, column); default
            (0, 0).
        flip: (B,) bool on the CPU: which results are mirrored left to right.
        scale, shift: (C,) on the device of `images`: applied to each channel; outside the image the value is
            `shift`, so black stays black whatever the normalisation.
        out: (B, C, S, S) float32, contiguous, to write to.

    Returns: (B, C, S, S) float32.
    """
    B, C, H, W = images.shape
    grid = grid or (size, size)
    offsets = torch.zeros(1, 2).expand(B, 2) if offsets is None else offsets
    flips = [False] * B if flip is None else flip.tolist()
    tops, lefts, heights, widths = boxes.t().tolist()
    row_offsets, column_offsets = offsets.t().tolist()
    rows: list[AxisBox] = list(zip(tops, heights, row_offsets, [False] * B, strict=True))
    columns: list[AxisBox] = list(zip(lefts, widths, column_offsets, flips, strict=True))

    if out is None:
        out = images.new_empty(B, C, size, size, dtype=torch.float32)

    part_size = B if out.numel() <= _SMALL else _PART
    scale, shift = scale.view(C, 1, 1), shift.view(C, 1, 1)
    as_it_is = grid == (H, W) == (size, size) and {r[:3] for r in rows} == {c[:3] for c in columns} == {(0, size, 0)}
    if as_it_is:

        def copy(part: slice) -> None:
            x = images[part]
            if any(flips[part]):
                mirrored = torch.tensor(flips[part], device=x.device).view(-1, 1, 1, 1)
                x = torch.where(mirrored, x.flip(3), x)
            torch.add(x * scale, shift, out=out[part])

        for_each_part(B, images.device, copy, part_size)
        return out

    device = images.device
    G = _bands(size, H) if device.type == "cpu" else 1
    with one_core():
        widest, highest = max(W, *(c[1] for c in columns)), max(H, *(r[1] for r in rows))
        across, _, column_index = _axis(grid[1], size, W, widest, 1, device).lookup(columns)
        across = across[:, 0].transpose(1, 2).contiguous()  # (U, W, S)
        down, first, row_index = _axis(grid[0], size, H, highest, G, device).lookup(rows)
        K = down.shape[3]
        source_rows = first[row_index].view(B, 1, G, 1) + torch.arange(K, device=device)
        planes = (torch.arange(B * C, device=device) * H).view(B, C, 1, 1)

        def left_matrices(part: slice) -> Tensor:
            chosen = down.index_select(0, row_index[part])
            n = len(chosen)
            return chosen.unsqueeze(1).expand(n, C, G, size // G, K).reshape(n * C * G, -1, K)

        shared = left_matrices(slice(0, _BLOCK)) if len(down) == 1 else None

    def work(part: slice) -> None:
        x = images[part] * scale
        n = len(x)
        right = across.expand(n, -1, -1) if len(across) == 1 else across.index_select(0, column_index[part])
        # (n, C·H, W) @ (n, W, S): every source row at the output's width
        x = torch.bmm(x.view(n, -1, W), right)
        if G > 1:
            x = x.view(-1, size).index_select(0, (source_rows[part] + planes[:n]).view(-1))
        x = x.view(n, C * G * K, size)
        # A matrix product that writes to memory is slow; one that writes to the cache and a copy are not.
        step = _BLOCK if device.type == "cpu" else n
        for i in range(0, n, step):
            rows_in = x[i : i + step].reshape(-1, K, size)
            block = out[part][i : i + step]
            result = scratch(block.shape) if device.type == "cpu" else block
            if shared is None or step != _BLOCK:
                left = left_matrices(slice(part.start + i, min(part.start + i + step, part.stop)))
            else:
                left = shared[: len(rows_in)]
            # (b·C·G, S/G, K) @ (b·C·G, K, S)
            torch.bmm(left, rows_in, out=result.view(-1, size // G, size))
            # Added last, so that black outside the image, whose weights are missing, comes out as the shift.
            torch.add(result, shift, out=block)

    for_each_part(B, device, work, part_size)
    return out


def _bands(size: int, length: int) -> int:
    """How many bands to cut `size` output rows in: about four source rows each is fastest."""
    wanted = max(1, length // 4)
    return max(g for g in range(1, min(wanted, size) + 1) if size % g == 0)


class _Axis:
    """Interpolation matrices along one axis, made once for each distinct box.

    A box's matrix (G, S/G, K) holds the weights of the source pixels first[g] … first[g] + K − 1 for band g.
    """

    max_bytes = 64 * 2**20

    def __init__(
        self,
        grid: int,
        size: int,
        length: int,
        extent: float,
        bands: int,
        device: torch.device,
    ) -> None:
        self.grid, self.size, self.length, self.bands = grid, size, length, bands
        self.device = device
        ratio = extent / grid
        self.taps = 2 * math.ceil(max(ratio, 1.0)) + 1
        # The rows of a band reach over (S/G − 1) steps and the support of the filter on both sides.
        self.span = math.ceil((size // bands - 1) * ratio + 2 * max(ratio, 1.0)) if bands > 1 else length
        self.span = min(self.span, length)
        self._made: dict[AxisBox, tuple[Tensor, Tensor]] = {}

    def lookup(self, boxes: Sequence[AxisBox]) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct matrices (U, G, S/G, K), their first (U, G), and each image's own (B,)."""
        distinct = {box: i for i, box in enumerate(dict.fromkeys(boxes))}
        missing = [box for box in distinct if box not in self._made]
        if missing:
            if (len(self._made) + len(missing)) * self.size * self.span * 4 > self.max_bytes:
                self._made.clear()
                missing = list(distinct)
            self._made.update(zip(missing, zip(*self._make(missing), strict=True), strict=True))
        weights, first = zip(*(self._made[box] for box in distinct), strict=True)
        index = torch.tensor([distinct[box] for box in boxes]).to(self.device)
        return torch.stack(weights), torch.stack(first), index

    def _make(self, boxes: Sequence[AxisBox]) -> tuple[Tensor, Tensor]:
        U, G, K = len(boxes), self.bands, self.span
        table = torch.tensor(boxes, dtype=torch.float32, device=self.device)
        start, extent, offset, mirrored = table.view(U, 4, 1, 1).unbind(1)  # (U, 1, 1)
        ratio = extent / self.grid
        support = ratio.clamp(min=1.0)
        pixel = torch.arange(self.size, device=self.device).view(1, -1, 1)
        pixel = torch.where(mirrored > 0, self.size - 1 - pixel, pixel) + offset  # (U, S, 1) of the resized grid
        centre = ratio * (pixel + 0.5)  # in the box
        tap = (centre - support + 0.5).floor() + torch.arange(self.taps, device=self.device)  # (U, S, T)
        weight = (1 - (tap + 0.5 - centre).abs() / support).clamp(min=0)
        # Cropped before it is resized: pixels outside the box do not count, and the rest add up to one.
        weight = weight * ((tap >= 0) & (tap < extent))
        weight = weight / weight.sum(2, keepdim=True).clamp(min=1e-12)
        weight = weight * ((pixel >= 0) & (pixel < self.grid))
        source = (tap + start).long()
        weight = weight * ((source >= 0) & (source < self.length))

        # Taps without weight, but for rounding, may lie outside the band: they move to a pixel inside it.
        low = source.masked_fill(weight < 1e-6, self.length).view(U, G, -1).amin(2)
        first = low.clamp(max=self.length - K)  # (U, G)
        column = (source.view(U, G, self.size // G, -1) - first.view(U, G, 1, 1)).clamp(0, K - 1)
        matrices = torch.zeros(U, G, self.size // G, K, device=self.device)
        matrices.scatter_add_(3, column, weight.view(column.shape))
        return matrices, first


_axis = functools.lru_cache(maxsize=32)(_Axis)

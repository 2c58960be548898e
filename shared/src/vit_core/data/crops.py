"""Where to cut each image: boxes drawn for training, and the fixed window of evaluation.

A crop is described for `vit_core.data.resample` and, image by image, for PIL: a box in source pixels is
resized to a grid, and an S×S window of that grid is kept.
"""

import math
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

CROPS = ("none", "random", "pad", "resized")
_ATTEMPTS = 10  # as torchvision's RandomResizedCrop


class Crops(NamedTuple):
    """The crops of B images of one size."""

    boxes: Tensor  # (B, 4) top, left, height, width in source pixels
    grid: tuple[int, int]  # (rows, columns) that the box is resized to
    offsets: Tensor  # (B, 2) row and column of the S×S window that is kept


class CropRule(NamedTuple):
    """How crops are drawn; the fields of `AugmentConfig` of the same names say what each means."""

    kind: str
    ratio: float = 0.875
    pad: float = 0.125
    scale: tuple[float, float] = (0.08, 1.0)
    aspect: float = 4 / 3

    def draw(self, count: int, source: tuple[int, int], size: int, generator: torch.Generator) -> Crops:
        """Crops for `count` images of height and width `source`, to be S = `size` pixels a side."""
        H, W = source
        full = torch.tensor([[0.0, 0.0, H, W]]).expand(count, 4)
        corner = torch.zeros(1, 2).expand(count, 2)
        if self.kind == "none":
            return Crops(full, (size, size), corner)
        if self.kind == "random":
            grid = short_side_grid(source, round(size / self.ratio))
            room = torch.tensor([grid[0] - size + 1, grid[1] - size + 1])
            return Crops(full, grid, (torch.rand(count, 2, generator=generator) * room).floor())
        if self.kind == "pad":
            reach = torch.tensor([round(self.pad * H), round(self.pad * W)])
            corners = (torch.rand(count, 2, generator=generator) * (2 * reach + 1)).floor() - reach
            return Crops(torch.cat([corners, full[:, 2:]], 1), (size, size), corner)
        return Crops(self._resized_boxes(count, source, generator), (size, size), corner)

    def _resized_boxes(self, count: int, source: tuple[int, int], generator: torch.Generator) -> Tensor:
        """(count, 4): as torchvision's `RandomResizedCrop.get_params`, for all images at once."""
        H, W = source
        area, aspect, top, left = torch.rand(4, count, _ATTEMPTS, generator=generator).unbind(0)
        area = H * W * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
        aspect = (math.log(self.aspect) * (2 * aspect - 1)).exp()
        width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (width >= 1) & (width <= W) & (height >= 1) & (height <= H)
        tops, lefts = (top * (H - height + 1)).floor(), (left * (W - width + 1)).floor()
        boxes = torch.stack([tops, lefts, height, width], 2)  # (count, attempts, 4)
        # ~fits sorts first the attempts that fit, in their order.
        pick = (~fits).int().argsort(dim=1, stable=True)[:, 0]
        chosen = boxes[torch.arange(count), pick]
        return torch.where(fits.any(1, keepdim=True), chosen, self._centre_box(source))

    def _centre_box(self, source: tuple[int, int]) -> Tensor:
        """(4,): the largest centred box within the aspect limits, for images where no attempt fitted."""
        H, W = source
        height, width = H, W
        if W * self.aspect < H:
            height = round(W * self.aspect)
        elif H * self.aspect < W:
            width = round(H * self.aspect)
        return torch.tensor([(H - height) // 2, (W - width) // 2, height, width], dtype=torch.float32)


def centre_crops(count: int, source: tuple[int, int], size: int, crop_pct: float) -> Crops:
    """The window of evaluation: the whole image for crop_pct 1, else the centre."""
    H, W = source
    box = torch.tensor([[0.0, 0.0, H, W]]).expand(count, 4)
    grid = (size, size) if crop_pct == 1 else short_side_grid(source, round(size / crop_pct))
    offset = torch.tensor([[round((grid[0] - size) / 2), round((grid[1] - size) / 2)]], dtype=torch.float32)
    return Crops(box, grid, offset.expand(count, 2))


def short_side_grid(source: tuple[int, int], short: int) -> tuple[int, int]:
    """The (rows, columns) of an image whose shorter side becomes `short`, as torchvision's Resize(int)."""
    H, W = source
    return (short, int(short * W / H)) if H <= W else (int(short * H / W), short)


def crop_image(image: Image.Image, crops: Crops, size: int) -> Image.Image:
    """The first of `crops` cut from one image of any size, resized by PIL's antialiased bilinear filter."""
    top, left, height, width = crops.boxes[0].tolist()
    row, column = crops.offsets[0].tolist()
    if (top, left, height, width) != (0, 0, image.height, image.width):
        # PIL fills what lies outside the image with black.
        image = image.crop((int(left), int(top), int(left + width), int(top + height)))
    step_y, step_x = height / crops.grid[0], width / crops.grid[1]
    window = (column * step_x, row * step_y, (column + size) * step_x, (row + size) * step_y)
    window = (window[0], window[1], min(window[2], image.width), min(window[3], image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=window)

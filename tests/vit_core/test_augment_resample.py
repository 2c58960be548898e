"""The batched crop, flip and resize against torchvision's, image by image."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvf

from vit_core.data.resample import resample

ONE, ZERO = torch.full((3,), 1 / 255), torch.zeros(3)
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


def _images(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def _boxes(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        h = int(torch.randint(1, height + 1, (), generator=generator))
        w = int(torch.randint(1, width + 1, (), generator=generator))
        top = int(torch.randint(height - h + 1, (), generator=generator))
        rows.append([top, int(torch.randint(width - w + 1, (), generator=generator)), h, w])
    return torch.tensor(rows)


def _whole(count: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor([[0, 0, height, width]]).expand(count, 4)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 224), (64, 48, 224), (150, 110, 64), (40, 40, 30), (32, 32, 32), (8, 8, 37), (97, 5, 96)],
)
def test_crop_and_flip_equal_torchvision(height: int, width: int, size: int) -> None:
    images, boxes = _images(19, height, width), _boxes(19, height, width)
    flip = torch.arange(19) % 3 == 0
    ours = resample(images, boxes, size, flip=flip, scale=ONE, shift=ZERO)
    for image, box, mirrored, result in zip(images, boxes.tolist(), flip, ours, strict=True):
        theirs = tvf.resized_crop(image.float() / 255, *box, [size, size], antialias=True)
        theirs = tvf.horizontal_flip(theirs) if mirrored else theirs
        torch.testing.assert_close(result, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 224), (300, 200, 96), (64, 64, 64)])
def test_plain_resize_equals_interpolate(height: int, width: int, size: int) -> None:
    images = _images(9, height, width)
    ours = resample(images, _whole(9, height, width), size, scale=ONE, shift=ZERO)
    theirs = F.interpolate(images.float() / 255, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_normalisation_is_folded_in() -> None:
    images = _images(5, 32, 32)
    ours = resample(images, _whole(5, 32, 32), 48, scale=1 / (255 * STD), shift=-MEAN / STD)
    theirs = tvf.normalize(tvf.resize(images.float() / 255, [48, 48], antialias=True), MEAN, STD)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


@pytest.mark.parametrize("size", [32, 224])
def test_box_outside_the_image_is_black_padding(size: int) -> None:
    images = _images(25, 32, 32)
    corners = torch.cartesian_prod(torch.tensor([-4, -1, 0, 3, 4]), torch.tensor([-4, -2, 0, 2, 4]))
    boxes = torch.cat([corners, torch.full((25, 2), 32)], 1)
    flip = torch.arange(25) % 2 == 0
    ours = resample(images, boxes, size, flip=flip, scale=1 / (255 * STD), shift=-MEAN / STD)
    padded = F.pad(images, (4, 4, 4, 4))
    for image, (top, left), mirrored, result in zip(padded, corners.tolist(), flip, ours, strict=True):
        crop = tvf.crop(image, top + 4, left + 4, 32, 32).float() / 255
        theirs = tvf.normalize(tvf.resize(crop, [size, size], antialias=True), MEAN, STD)
        torch.testing.assert_close(result, tvf.horizontal_flip(theirs) if mirrored else theirs, rtol=0, atol=3e-5)


def test_window_of_a_larger_grid_is_resize_then_crop() -> None:
    images = _images(6, 40, 30)
    offsets = torch.tensor([[0, 0], [3, 1], [16, 0], [5, 5], [21, 0], [10, 4]])
    flip = torch.tensor([True, False] * 3)
    ours = resample(
        images,
        _whole(6, 40, 30),
        64,
        grid=(85, 69),
        offsets=offsets,
        flip=flip,
        scale=ONE,
        shift=ZERO,
    )
    big = tvf.resize(images.float() / 255, [85, 69], antialias=True)
    for image, (row, column), mirrored, result in zip(big, offsets.tolist(), flip, ours, strict=True):
        theirs = tvf.crop(image, row, column, 64, 64)
        torch.testing.assert_close(result, tvf.horizontal_flip(theirs) if mirrored else theirs, rtol=0, atol=2e-6)


def test_each_image_is_the_same_bit_for_bit_in_any_batch_and_with_any_number_of_threads() -> None:
    images, boxes = _images(23, 32, 32), _boxes(23, 32, 32)
    together = resample(images, boxes, 64, scale=ONE, shift=ZERO)
    alone = torch.cat([resample(images[i : i + 1], boxes[i : i + 1], 64, scale=ONE, shift=ZERO) for i in range(23)])
    assert torch.equal(together, alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(together, resample(images, boxes, 64, scale=ONE, shift=ZERO))
    finally:
        torch.set_num_threads(threads)


def test_writes_to_out_and_works_in_inference_mode() -> None:
    images = _images(20, 32, 32)
    expected = resample(images, _whole(20, 32, 32), 64, scale=ONE, shift=ZERO)
    with torch.inference_mode():
        out = torch.empty(20, 3, 64, 64)
        assert resample(images, _whole(20, 32, 32), 64, scale=ONE, shift=ZERO, out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    images, boxes = _images(9, 32, 32), _boxes(9, 32, 32)
    flip = torch.arange(9) % 2 == 0
    cpu = resample(images, boxes, 64, flip=flip, scale=ONE, shift=ZERO)
    gpu = resample(images.cuda(), boxes, 64, flip=flip, scale=ONE.cuda(), shift=ZERO.cuda())
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=1e-5)

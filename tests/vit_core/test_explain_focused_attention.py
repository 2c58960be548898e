"""FAP against counting by hand, its chance level and its ties; the measurement over a loader."""

import math
import time

import pytest
import timm
import torch
from torch.testing import assert_close

from vit_core.data import BatchLoader, EvalTransform, load_dataset
from vit_core.explain import (
    chance_level,
    class_token_attention,
    focused_attention,
    grad_cam,
    measure_focus,
    random_control,
)


def noise(B=20, H=8, W=8, seed=0):
    return torch.rand(B, H, W, generator=torch.Generator().manual_seed(seed))


def vit(**options):
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, patch_size=4, num_classes=10, **options).eval()


@pytest.mark.parametrize(("H", "W", "share"), [(8, 8, 0.15), (14, 14, 0.15), (3, 5, 0.01), (4, 4, 1.0)])
def test_definition_by_counting(H, W, share):
    attention, cam = noise(20, H, W), noise(20, H, W, seed=1)
    k = max(1, round(share * H * W))
    expected = []
    for a, g in zip(attention.flatten(1).tolist(), cam.flatten(1).tolist(), strict=True):
        A, G = (set(sorted(range(H * W), key=m.__getitem__)[-k:]) for m in (a, g))
        expected.append(100 * len(A & G) / len(G))
    assert_close(focused_attention(attention, cam, share), torch.tensor(expected))


def test_the_same_and_the_opposite_map():
    m = noise()
    assert focused_attention(m, m).tolist() == [100.0] * 20
    assert focused_attention(1 - m, m).tolist() == [0.0] * 20


def test_threshold_selects_by_value():
    attention, cam = torch.tensor([[[9.0, 5.0, 4.0, 0.0]]]), torch.tensor([[[2.0, 0.0, 1.0, 1.1]]])
    assert_close(focused_attention(attention, cam, threshold=0.5), torch.tensor([100 / 3]))
    assert focused_attention(0 * attention, cam, threshold=0.5).item() == 0  # nothing is selected, not all


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_ties_score_the_chance_level_wherever_they_lie(constant):
    flat, cam = torch.full((20, 8, 8), constant), noise()
    assert_close(focused_attention(flat, cam), torch.full((20,), chance_level(64)))
    assert_close(focused_attention(cam, flat + 1), torch.full((20,), chance_level(64)))
    assert_close(focused_attention(flat, flat + 1), torch.full((20,), chance_level(64)))


def test_ties_are_the_mean_over_all_ways_to_break_them():
    attention, cam = noise(1, 4, 5), noise(1, 4, 5, seed=2)
    cam = (cam - cam.flatten().topk(2).values[1]).relu()  # one positive place, k = 3
    assert (cam > 0).sum() == 1
    draws = cam + 1e-6 * torch.rand(4000, 4, 5, generator=torch.Generator().manual_seed(0))
    mean = focused_attention(attention.expand(4000, -1, -1), draws).mean()
    assert_close(focused_attention(attention, cam)[0], mean, rtol=0, atol=1.5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    moved = [m.flatten(1)[:, order].view(1, 4, 5) for m in (attention, cam)]
    assert_close(focused_attention(*moved), focused_attention(attention, cam))


def test_chance_level_is_what_random_maps_reach():
    assert chance_level(64) == 100 * 10 / 64
    assert chance_level(196) == 100 * 29 / 196
    cam = noise(4000)
    control = random_control(cam, generator=torch.Generator().manual_seed(7))
    standard_error = control.std() / 4000**0.5
    assert abs(control.mean() - chance_level(64)) < 4 * standard_error
    again = random_control(cam, generator=torch.Generator().manual_seed(7))
    assert torch.equal(control, again)
    shuffled = random_control(cam, 0.15, torch.Generator().manual_seed(7), attention=noise(4000, seed=3))
    assert abs(shuffled.mean() - chance_level(64)) < 4 * standard_error


def test_attention_of_another_grid_is_resampled_cell_over_cell():
    cam = torch.zeros(1, 14, 14)
    cam[:, 10:, :4] = 1 + noise(1, 4, 4)
    attention = torch.zeros(1, 7, 7)
    attention[:, 5:, :2] = 1
    assert focused_attention(attention, cam, 16 / 196).item() > 90
    assert focused_attention(attention.flip(1), cam, 16 / 196).item() == 0
    assert focused_attention(attention.transpose(1, 2), cam, 16 / 196).item() == 0


def test_an_empty_cam_has_no_score():
    cam = noise(3)
    cam[1] = 0
    assert focused_attention(noise(3), cam).isnan().tolist() == [False, True, False]
    assert random_control(cam).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("attention", "cam", "options", "message"),
    [
        (noise(2), noise(3), {}, "same B"),
        (noise(2)[0], noise(2), {}, "same B"),
        (noise(2), noise(2), {"share": 0.0}, "share and threshold"),
        (noise(2), noise(2), {"threshold": 1.5}, "share and threshold"),
        (noise(2) / 0, noise(2), {}, "NaN or infinity"),
    ],
)
def test_bad_maps_are_refused(attention, cam, options, message):
    with pytest.raises(ValueError, match=message):
        focused_attention(attention, cam, **options)


def test_class_token_attention_is_the_last_blocks_first_row():
    model, x, seen = vit().train(), torch.randn(2, 3, 32, 32), []
    handle = model.blocks[-1].norm1.register_forward_hook(lambda m, a, out: seen.append(out))
    maps = class_token_attention(model, x)
    handle.remove()
    attn = model.blocks[-1].attn
    q, k, _ = attn.qkv(seen[0]).view(2, 65, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    row = (q[:, :, :1] @ k.transpose(2, 3) * attn.scale).softmax(-1)[:, :, 0, 1:].mean(1)
    assert_close(maps, row.view(2, 8, 8))
    assert model.training
    assert not maps.requires_grad
    with pytest.raises(ValueError, match="pass attention_maps="):
        class_token_attention(vit(class_token=False, global_pool="avg"), x)


def test_summary_is_that_of_the_images_one_by_one():
    model = vit()
    batches = [
        (torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])),
        (torch.randn(3, 3, 32, 32), torch.ones(3).long()),
    ]
    one_by_one = torch.cat(
        [
            focused_attention(class_token_attention(model, x[None]), grad_cam(model, x[None], y[None]))
            for images, labels in batches
            for x, y in zip(images, labels, strict=True)
        ]
    )
    summary = measure_focus(model, batches)
    counted = one_by_one[~one_by_one.isnan()]
    assert summary.num_images == 7
    assert summary.empty_cams == 7 - len(counted)
    assert summary.fap == pytest.approx(counted.mean().item(), rel=1e-5)
    assert summary.standard_error == pytest.approx((counted.std() / len(counted) ** 0.5).item(), rel=1e-5)
    assert summary.chance == pytest.approx(chance_level(64))
    assert measure_focus(model, batches) == summary
    assert "7 images" in str(summary)


def test_empty_cams_are_counted_and_in_no_mean():
    class Dark(torch.nn.Module):
        """Black images have a negative Grad-CAM everywhere."""

        def __init__(self):
            super().__init__()
            self.grad_cam_layer, self.gain = torch.nn.Identity(), torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            total = self.grad_cam_layer(self.gain * x).mean((2, 3)).sum(1, keepdim=True)
            return torch.cat([total, -total], 1)

    images = torch.rand(6, 3, 8, 8) + 0.1
    images[[1, 4]] *= -1
    labels = torch.zeros(6, dtype=torch.int64)
    summary = measure_focus(Dark(), [(images, labels)], lambda model, x: x.mean(1))
    assert (summary.num_images, summary.empty_cams) == (6, 2)
    assert summary.fap == pytest.approx(100.0)
    assert "2 with an empty Grad-CAM" in str(summary)
    nothing = measure_focus(Dark(), [(images[1:2], labels[:1])], lambda model, x: x.mean(1))
    assert math.isnan(nothing.fap)
    assert nothing.empty_cams == nothing.num_images == 1


def test_a_threshold_has_its_own_chance_level():
    summary = measure_focus(vit(), [(torch.randn(64, 3, 32, 32), torch.zeros(64).long())], threshold=0.8)
    assert summary.chance != pytest.approx(chance_level(64))
    assert summary.random == pytest.approx(summary.chance, abs=5)


def test_360_digits_in_well_under_ten_seconds():
    data = load_dataset("digits", img_size=32)
    loader = BatchLoader(
        data.val, batch_size=120, train=False, transform=EvalTransform(img_size=32, mean=data.mean, std=data.std)
    )
    start = time.perf_counter()
    summary = measure_focus(vit(), loader)
    assert summary.num_images == 360
    assert time.perf_counter() - start < 10

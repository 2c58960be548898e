"""What the original's code has and parity of converted weights does not show: initial values, recipes, pictures.

Recorded from github.com/Shirel25/ZoomViT-Study at d503b63, with timm 1.0.31 and torch 2.15.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision import transforms

import zoom_vit  # noqa: F401 -- registers the models with timm
from vit_core.commands.settings import settle
from vit_core.data import EvalTransform
from vit_core.data.augment import Augment
from zoom_vit import examples
from zoom_vit.alignment import Judgment
from zoom_vit.importance import importance_map, see
from zoom_vit.recipe import CIFAR, FLOWERS
from zoom_vit.zoom import attenuate_background, crop_zoom, zoom_mask

# Of each group of parameters of a new model, all blocks together: (mean, standard deviation, largest magnitude) in the
# original's ViTBaseline(102, 224, 16) and ViTBaseline(10, 32, 8) after torch.manual_seed(0).
ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 0.0, 1.0)
NORMS = {
    f"{n}.{p}": v for n in ("blocks.norm1", "blocks.norm2", "norm") for p, v in (("weight", ONES), ("bias", ZEROS))
}
BIASES = dict.fromkeys(
    (*(f"blocks.{n}.bias" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")), "head.bias"), ZEROS
)
INITIAL = {
    "zoom_vit_tiny_patch16_224": NORMS | BIASES | {
        "cls_token": ZEROS, "pos_embed": (-7e-05, 0.02004, 0.0836),
        "patch_embed.proj.weight": (4e-05, 0.02083, 0.0361), "patch_embed.proj.bias": (-0.00075, 0.02117, 0.0358),
        "blocks.attn.qkv.weight": (-1e-05, 0.02001, 0.1033), "blocks.attn.proj.weight": (1e-05, 0.02001, 0.1033),
        "blocks.mlp.fc1.weight": (1e-05, 0.01999, 0.0991), "blocks.mlp.fc2.weight": (-2e-05, 0.02, 0.0948),
        "head.weight": (0.00014, 0.01978, 0.077),
    },
    "zoom_vit_tiny_patch8_32": NORMS | BIASES | {
        "cls_token": ZEROS, "pos_embed": (0.00102, 0.02003, 0.0827),
        "patch_embed.proj.weight": (0.0002, 0.04158, 0.0722), "patch_embed.proj.bias": (0.00348, 0.04264, 0.0722),
        "blocks.attn.qkv.weight": (-1e-05, 0.01999, 0.0991), "blocks.attn.proj.weight": (-2e-05, 0.02, 0.0907),
        "blocks.mlp.fc1.weight": (-2e-05, 0.02002, 0.1033), "blocks.mlp.fc2.weight": (1e-05, 0.01999, 0.0971),
        "head.weight": (-0.0004, 0.01977, 0.0715),
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "classes"), [("zoom_vit_tiny_patch16_224", 102), ("zoom_vit_tiny_patch8_32", 10)])
def test_initial_values_are_the_originals(name, classes):
    """Another seed than the record's: statistics agree, as closely as so many draws do."""
    torch.manual_seed(1)
    groups: dict[str, list[torch.Tensor]] = {}
    for key, value in timm.create_model(name, num_classes=classes).state_dict().items():
        parts = key.split(".")
        group = ".".join(["blocks", *parts[2:]] if parts[0] == "blocks" else parts)
        groups.setdefault(group, []).append(value.flatten())
    assert groups.keys() == INITIAL[name].keys()
    for group, values in groups.items():
        mean, std, largest = INITIAL[name][group]
        drawn = torch.cat(values).double()
        error = std / len(drawn) ** 0.5
        assert float(drawn.mean()) == pytest.approx(mean, abs=6 * error + 1e-6), group
        # the class token is drawn with a deviation of 1e-6
        assert float(drawn.std()) == pytest.approx(std, rel=6 / len(drawn) ** 0.5 + 1e-3, abs=2e-6), group
        assert float(drawn.abs().max()) == pytest.approx(largest, rel=0.35, abs=5e-6), group


# Of the original's ViTBaseline as its scripts make it; with keep 0.3 after block 6 of forward_with_pruning.
SIZES = {
    "zoom_vit_tiny_patch16_224": {
        "parameters": 5_544_102, "blocks": 12, "heads": 3, "positions": 197, "cells": (14, 14), "kept": 58,
    },
    "zoom_vit_tiny_patch8_32": {
        "parameters": 5_381_194, "blocks": 12, "heads": 3, "positions": 17, "cells": (4, 4), "kept": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "classes"), [("zoom_vit_tiny_patch16_224", 102), ("zoom_vit_tiny_patch8_32", 10)])
def test_sizes_are_the_originals(name, classes):
    model = timm.create_model(name, num_classes=classes).eval()
    side = 224 if classes == 102 else 32
    with torch.no_grad():
        pruned = model.forward_pruned(torch.randn(1, 3, side, side))
    assert SIZES[name] == {
        "parameters": sum(p.numel() for p in model.parameters()),
        "blocks": len(model.blocks),
        "heads": model.blocks[0].attn.num_heads,
        "positions": model.pos_embed.shape[1],
        "cells": model.patch_embed.grid_size,
        "kept": pruned.num_kept,
    }


# What the original's scripts say: cifar_train.py and datasets/cifar.py; flowers_train.py and datasets/flowers.py.
RECIPES = {
    "dataset": ("cifar10", "flowers102"), "model": ("zoom_vit_tiny_patch8_32", "zoom_vit_tiny_patch16_224"),
    "optimizer": ("adam", "adam"), "lr": (1e-4, 1e-4), "beta1": (0.9, 0.9), "beta2": (0.999, 0.999),
    "weight_decay": (0, 0), "schedule": ("constant", "constant"), "warmup_epochs": (0, 0), "grad_clip": (0, 0),
    "label_smoothing": (0, 0), "batch_size": (64, 32), "epochs": (3, 5), "normalize": ("half", "imagenet"),
    "crop": ("none", "none"), "hflip": (0.0, 0.5), "jitter": ((0, 0, 0, 0),) * 2, "randaugment": (0, 0),
    "erasing": (0, 0), "mixup": (0, 0), "cutmix": (0, 0), "pretrained": (False, False), "img_size": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("which", [0, 1], ids=["cifar", "flowers"])
def test_recipes_are_the_originals(which):
    run = settle((CIFAR, FLOWERS)[which], {}, None)
    values = {"model": run.model} | vars(run.data) | vars(run.train) | vars(run.augment) | run.start
    known = {name: pair[which] for name, pair in RECIPES.items() if name in values}
    assert {name: values[name] for name in known} == known
    assert {"optimizer", "lr", "beta2", "batch_size", "epochs", "normalize", "hflip", "crop"} <= known.keys()


@pytest.mark.parametrize(("recipe", "size"), [(CIFAR, 32), (FLOWERS, 224)])
def test_images_reach_the_model_as_in_the_original(recipe, size):
    """Resize((S, S)) without regard to the aspect, ToTensor, Normalize; in training a flip for Flowers-102 alone."""
    run = settle(recipe, {}, None)
    half = run.data.normalize == "half"
    mean, std = ([0.5] * 3, [0.5] * 3) if half else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((32, 32) if half else (320, 240), Image.Resampling.BICUBIC)
    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(mean, std)]
    expected = transforms.Compose(steps)(picture)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].contiguous()
    rounding = {"rtol": 0, "atol": 1.5 / 255 / min(std)}  # PIL rounds to whole values after each of two passes
    assert_close(EvalTransform(size, mean, std, run.augment.eval_crop_pct)(pixels)[0], expected, **rounding)
    train = Augment(run.augment, size, mean, std)
    seen = [train.finish(train.image(picture, seed)[None], torch.rand)[0] for seed in range(40)]
    kept = sum(bool((t - expected).abs().max() <= rounding["atol"]) for t in seen)
    flipped = sum(bool((t - expected.flip(2)).abs().max() <= rounding["atol"]) for t in seen)
    assert kept + flipped == 40
    assert flipped == 0 if half else 8 <= flipped <= 32


# (sum, sum of squares, sum of value · cos i) of what code/utils.py gives for image and map of seed 7.
PICTURES = {
    "mask": (14848.0, 14848.0, 5.484), "background": (-191.922, 54146.985, -142.865),
    "crop 0.3": (-227.967, 150433.45, -55.509), "crop 0.01": (-1219.81, 66343.849, 9.317),
}  # fmt: skip


def test_masks_backgrounds_and_crops_are_the_originals():
    draw = torch.Generator().manual_seed(7)
    image, heat = torch.randn(1, 3, 224, 224, generator=draw), torch.rand(1, 14, 14, generator=draw)
    mask = zoom_mask(heat, 0.3, (224, 224))
    found = {
        "mask": mask[0, 0],
        "background": attenuate_background(image, mask)[0],
        "crop 0.3": crop_zoom(image, heat, 0.3)[0],
        "crop 0.01": crop_zoom(image, heat, 0.01)[0],  # 64 pixels at least
    }
    for name, t in found.items():
        t = t.double()
        waves = torch.arange(t.numel()).double().view(t.shape).cos()
        sums = (float(t.sum()), float(t.square().sum()), float((t * waves).sum()))
        assert sums == pytest.approx(PICTURES[name], rel=1e-5, abs=0.02), name


class Shown:
    """An experiment with a random model, whose pictures are normalized by a half."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = timm.create_model("zoom_vit_micro", num_classes=4).eval()
        self.trained = type("Trained", (), {"class_names": ["a", "b", "c", "d"]})

    picture = staticmethod(lambda image: (image / 2 + 0.5).clamp(0, 1))
    says = staticmethod(lambda logits: f"{int(logits.argmax())}")


def test_the_studys_pictures_are_drawn(monkeypatch):
    """Of each image: the image, its mask over it, and the faded background or what is in the box."""
    drawn = {}
    monkeypatch.setattr(
        examples, "_draw", lambda panels, path, title, box=None: drawn.update({path.name: (panels, box)})
    )
    shown, image = Shown(), torch.rand(1, 3, 32, 32) * 2 - 1
    by = Judgment(importance="token_norm", keep_ratio=0.3, prune_layer=2)
    example = examples.Example(0, image, 1, 0, 0.5)
    said = examples.draw_attenuation(shown, example, by, Path("background"))
    assert said.keys() == {"whole", "background × 0.3"}
    assert examples.draw_crop(shown, example, by, Path("crop")).keys() == {"whole", "zoom", "mean of both"}
    heat = importance_map(shown.model, image)
    mask = zoom_mask(heat, 0.3, (32, 32))
    for panels, _ in drawn.values():
        assert_close(panels[0][1], shown.picture(image[0]))
        covered = panels[1][1] - 0.6 * panels[0][1]  # 0.4 of the mask's color: red where it is kept, else blue
        assert_close(covered.argmax(0) == 0, mask[0, 0].bool())
    gray = torch.full_like(image[0], 0.5)
    expected = torch.where(mask[0].bool(), shown.picture(image[0]), torch.lerp(gray, shown.picture(image[0]), 0.3))
    assert_close(drawn["background"][0][2][1], expected)
    assert_close(drawn["crop"][0][2][1], shown.picture(crop_zoom(image, heat, 0.3)[0]))
    top, left, height, width = drawn["crop"][1]
    rows, columns = torch.nonzero(mask[0, 0], as_tuple=True)
    assert (top, left) == (int(rows.min()), int(columns.min()))
    assert (top + height, left + width) == (int(rows.max()) + 1, int(columns.max()) + 1)


MODELS = timm.list_models("zoom_vit*")


@pytest.mark.parametrize("name", MODELS)
def test_features_only(name):
    """timm's backbone interface: maps of the blocks that are asked for, by default the last three."""
    assert len(MODELS) == 3
    size = 224 if name.endswith("224") else 32
    image = torch.randn(1, 3, size, size)
    for wanted, count in (({}, 3), ({"out_indices": (0, 2)}, 2), ({"out_indices": (-1,)}, 1)):
        torch.manual_seed(0)
        backbone = timm.create_model(name, features_only=True, **wanted).eval()
        torch.manual_seed(0)
        whole = timm.create_model(name).eval()
        with torch.no_grad():
            maps = backbone(image)
            states = see(whole, image).states[1:]
        assert len(maps) == len(backbone.feature_info.channels()) == count
        indices = wanted.get("out_indices", tuple(range(len(states) - 3, len(states))))
        for found, index, width in zip(maps, indices, backbone.feature_info.channels(), strict=True):
            assert found.shape[1] == width
            assert_close(found.flatten(2).transpose(1, 2), states[index][:, 1:])

"""The original study's outputs, and its checkpoints."""

import pytest
import torch
from torch.testing import assert_close

import zoom_vit.recipe
from vit_core.commands.trained_model import load_trained
from zoom_vit import ZoomViT, importance_map
from zoom_vit.convert import model_from_original
from zoom_vit.convert_checkpoint import main as convert
from zoom_vit.zoom import crop_zoom, zoom_mask

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def original(reference):
    """(model, tensors, metadata)."""
    tensors, config = reference("zoom_vit")
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    return model_from_original(weights, config), tensors, config


def test_logits_and_importance(original):
    model, tensors, _ = original
    images = tensors["input"]
    outputs = []
    model.blocks[-1].attn.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        assert_close(model(images), tensors["eval_logits"], **CLOSE)
    assert_close(outputs[0], tensors["last_attention_output"], **CLOSE)
    assert_close(importance_map(model, images), tensors["importance_map"], **CLOSE)


@pytest.mark.parametrize(("keep", "layer"), [(0.3, 2), (0.5, 1)])
def test_pruned_logits(original, keep, layer):
    model, tensors, _ = original
    with torch.no_grad():
        out = model.forward_pruned(tensors["input"], keep, layer)
    assert_close(out.logits, tensors[f"pruned_logits_keep{keep}_layer{layer}"], **CLOSE)
    assert out.kept.shape == (2, out.num_kept) == (2, int(keep * 64))


def test_image_functions(original):
    _, tensors, config = original
    images, maps = tensors["input"], tensors["importance_map"]
    assert_close(zoom_mask(maps, 0.3, (32, 32))[0, 0], tensors["zoom_mask_keep0.3"])
    assert_close(crop_zoom(images, maps, 0.15, config["min_crop_size"])[0], tensors["crop_zoom_keep0.15"], **CLOSE)


def test_checkpoints_as_they_are_saved(original):
    model, tensors, config = original
    weights = {f"module.{k.removeprefix('weights.')}": v for k, v in tensors.items() if k.startswith("weights.")}
    as_text = {k: str(v) for k, v in config.items()}
    with torch.no_grad():
        assert torch.equal(model_from_original(weights, as_text)(tensors["input"]), model(tensors["input"]))
    broken = dict(weights)
    del broken["module.model.norm.bias"]
    broken["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing norm\.bias.*extra|extra.*norm\.bias"):
        model_from_original(broken, config)
    with pytest.raises(ValueError, match="pos_embed"):
        model_from_original(weights, {**config, "img_size": 64})
    with pytest.raises(ValueError, match=r"missing patch_embed\.proj\.weight"):
        model_from_original({}, {})


@pytest.mark.parametrize(("size", "patch", "recipe", "classes"), [(32, 8, "CIFAR", 10), (64, 16, "FLOWERS", 102)])
def test_a_checkpoint_of_the_study_is_converted_and_read(size, patch, recipe, classes, tmp_path, capsys):
    torch.manual_seed(0)
    model = ZoomViT(size, patch, num_classes=classes, embed_dim=48, depth=2, num_heads=3).eval()
    theirs, ours = tmp_path / "theirs.pth", tmp_path / "ours.pth"
    torch.save({f"model.{k}": v for k, v in model.state_dict().items()}, theirs)
    assert convert(["--checkpoint", str(theirs), "--output", str(ours), "--num-heads", "3"]) == 0
    assert f"zoom-vit-{recipe.lower()}-evaluate" in capsys.readouterr().out
    trained = load_trained(getattr(zoom_vit.recipe, recipe), ours, torch.device("cpu"))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(trained.model(images), model(images))
    assert trained.settings["mean"][0] == (0.5 if recipe == "CIFAR" else 0.485)

"""A state dict of the original's notebook becomes a checkpoint that our scripts read."""

import pytest
import torch
from timm.models import VisionTransformer
from torch.testing import assert_close

from selective_vit import make_selective
from selective_vit.convert_checkpoint import main as convert
from selective_vit.recipe import RECIPE
from vit_core.commands.trained_model import load_trained


@pytest.mark.parametrize("model", ["selective", "vit"])
def test_a_state_dict_is_converted_and_read(model, tmp_path, capsys):
    torch.manual_seed(0)
    vit = VisionTransformer(32, 8, num_classes=10, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2.0)
    theirs, ours = tmp_path / "theirs.pth", tmp_path / "ours.pth"
    torch.save({f"model.{k}": v for k, v in vit.state_dict().items()}, theirs)
    if model == "selective":
        make_selective(vit, 0.05, "hard", "zero")
    flags = ["--model", model, "--threshold", "0.05", "--num-heads", "4"]
    assert convert(["--checkpoint", str(theirs), "--output", str(ours), *flags]) == 0
    assert f"SelectiveViT, {model}, " in capsys.readouterr().out
    trained = load_trained(RECIPE, ours, torch.device("cpu"), model=model)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(trained.model(images), vit.eval()(images))
    assert tuple(trained.settings["std"]) == (0.2023, 0.1994, 0.2010)  # by which the notebook normalizes


def test_what_is_none_of_its_models(tmp_path, capsys):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert convert(["--checkpoint", str(tmp_path / "other.pth"), "--output", str(tmp_path / "ours.pth")]) == 2
    assert "not a checkpoint of this SelectiveViT: missing patch_embed.proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "ours.pth").exists()

"""The four published models' numbers, from $VIT_REFERENCE_DIR, and the conversion of their checkpoints."""

import pytest
import torch
from torch.testing import assert_close

from clear_vit import convert_checkpoint
from clear_vit.convert import config_of, model_from_original, variant_of
from clear_vit.evaluate import main as evaluate
from clear_vit.recipe import RECIPE
from vit_core.commands.trained_model import load_trained

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
VARIANT = {
    "clear_baseline": "baseline",
    "clear_suppression": "suppression",
    "clear_rope_mixed": "rope",
    "clear_rope_mixed_ape": "rope_mixed_ape",
}


@pytest.fixture(params=VARIANT)
def original(reference, request):
    tensors, config = reference(request.param)
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    return request.param, tensors, weights, config


@pytest.mark.parametrize("prefix", ["", "module."])
def test_logits(original, prefix):
    name, tensors, weights, config = original
    theirs = {prefix + k: v for k, v in weights.items()}
    assert variant_of(theirs) == VARIANT[name]
    model = model_from_original(theirs, config)
    with torch.no_grad():
        assert_close(model(tensors["input"]), tensors["eval_logits"], **TOLERANCE)
    text = {k: str(v) for k, v in config.items()}  # as safetensors' metadata has them
    with torch.no_grad():
        assert_close(model_from_original(theirs, text)(tensors["input"]), tensors["eval_logits"], **TOLERANCE)


def test_the_weights_tell_the_sizes(original):
    _, _, weights, config = original
    expected = {k: v for k, v in config.items() if k != "rope_theta"}
    assert config_of(weights, num_heads=config["num_heads"]) == expected


def test_wrong_keys_and_arguments_are_listed(original):
    name, _, weights, config = original
    broken = dict(weights)
    del broken["cls_token"]
    broken["extra"] = torch.zeros(1)
    broken["heads.head.bias"] = torch.zeros(3)
    message = r"missing cls_token; unexpected extra; head.bias has shape \(3,\), expected \(10,\)"
    with pytest.raises(ValueError, match=message):
        model_from_original(broken, config)
    with pytest.raises(ValueError, match="config: missing num_heads; unexpected heads"):
        model_from_original(weights, {**{k: v for k, v in config.items() if k != "num_heads"}, "heads": 3})
    if name == "clear_suppression":
        extra = {**weights, "encoder.layers.encoder_layer_0.self_attention.suppression_conv.bias": torch.zeros(3)}
        with pytest.raises(
            ValueError, match=r"unexpected encoder.layers.encoder_layer_0.self_attention.suppression_conv"
        ):
            model_from_original(extra, config)
    if name != "clear_baseline":  # three projections, of which one is missing and one is too wide
        part = "encoder.layers.encoder_layer_1.self_attention."
        broken = dict(weights)
        del broken[f"{part}w_q.weight"]
        broken[f"{part}w_k.weight"] = torch.zeros(49, 48)
        with pytest.raises(ValueError, match=rf"missing {part}w_q.weight; {part}w_k.weight has shape \(49, 48\)"):
            model_from_original(broken, config)


def test_a_converted_checkpoint_gives_the_same_logits(original, tmp_path, capsys):
    name, tensors, weights, _ = original
    torch.save(
        {"model_state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}, tmp_path / "theirs.pth"
    )
    ours = tmp_path / "ours.pth"
    assert convert_checkpoint.main(["--checkpoint", str(tmp_path / "theirs.pth"), "--output", str(ours)]) == 0
    assert f"{VARIANT[name]}, " in capsys.readouterr().out
    trained = load_trained(RECIPE, ours, torch.device("cpu"))
    with torch.no_grad():
        assert_close(trained.model(tensors["input"]), tensors["eval_logits"], **TOLERANCE)
    for wrong, message in (
        (["--num-heads", "5"], "multiple of num_heads"),
        (["--image-size", "17"], "multiple of patch"),
    ):
        argv = ["--checkpoint", str(tmp_path / "theirs.pth"), "--output", str(tmp_path / "wrong.pth"), *wrong]
        assert convert_checkpoint.main(argv) == 2
        assert message in capsys.readouterr().err
    if name == "clear_rope_mixed":  # the digits have as many classes; their names differ, and a note says so
        assert evaluate(["--checkpoint", str(ours), "--dataset", "digits", "--device", "cpu"]) == 0
        assert "note: 10 class names differ" in capsys.readouterr().out


def test_what_is_no_original_checkpoint(tmp_path, capsys):
    file = tmp_path / "other.pth"
    output = ["--output", str(tmp_path / "ours.pth")]
    torch.save({"weight": torch.zeros(3)}, file)
    assert convert_checkpoint.main(["--checkpoint", str(file), *output]) == 2
    assert "not a checkpoint of this clear-vit: missing conv_proj.weight" in capsys.readouterr().err
    torch.save({"conv_proj.weight": torch.zeros(4, 3, 2, 2, dtype=torch.complex64)}, file)
    assert convert_checkpoint.main(["--checkpoint", str(file), *output]) == 2
    assert "contains complex tensors" in capsys.readouterr().err
    assert convert_checkpoint.main(["--checkpoint", str(file), *output, "--num-heads", "0"]) == 2
    file.write_bytes(b"nothing")
    assert convert_checkpoint.main(["--checkpoint", str(file), *output]) == 2
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    assert convert_checkpoint.main(["--checkpoint", str(tmp_path / "broken.safetensors"), *output]) == 2
    assert "cannot be read as a safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "ours.pth").exists()

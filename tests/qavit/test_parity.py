"""The published implementation's numbers, from $VIT_REFERENCE_DIR/qavit.safetensors."""

import pytest
import torch
from torch.testing import assert_close

from qavit.convert import model_from_original

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def original(reference):
    tensors, metadata = reference("qavit")
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    return tensors, weights, metadata["config"]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_features_and_logits(original, prefix):
    tensors, weights, config = original
    model = model_from_original({prefix + k: v for k, v in weights.items()}, config)
    with torch.no_grad():
        features = model.forward_features(tensors["input"])
        logits = model(tensors["input"])
    assert_close(features, tensors["eval_features"], **TOLERANCE)
    assert_close(logits, tensors["eval_logits"], **TOLERANCE)


@pytest.mark.parametrize("branch", ["swa", "msda", "cga", "cross_attn", "fusion", "bottleneck_mlp", "ccf_ffn"])
def test_each_part_of_the_first_block(original, branch):
    tensors, weights, config = original
    model = model_from_original(weights, config)
    outputs = []
    model.blocks[0].get_submodule(branch).register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        model(tensors["input"])
    assert_close(outputs[0], tensors[f"block0.{branch}"], **TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_writes_the_bank(original, checkpointing):
    tensors, weights, config = original
    model = model_from_original(weights, config).train()
    model.set_grad_checkpointing(checkpointing)
    logits = model(tensors["input"])
    assert_close(logits, tensors["train_logits"], **TOLERANCE)
    logits.sum().backward()  # with checkpointing, the second forward pass must not write again
    assert_close(model.global_bank.global_k, tensors["bank_after_train.global_k"], **TOLERANCE)
    assert_close(model.global_bank.global_v, tensors["bank_after_train.global_v"], **TOLERANCE)


def test_wrong_keys_shapes_and_arguments_are_listed(original):
    _, weights, config = original
    broken = dict(weights)
    del broken["pos_embed"]
    broken["extra.weight"] = torch.zeros(1)
    broken["head.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"missing pos_embed; unexpected extra.weight; head.bias has shape \(3,\), expected \(10,\)"
    ):
        model_from_original(broken, config)
    with pytest.raises(ValueError, match="windows"):
        model_from_original(weights, {**config, "windows": 7})

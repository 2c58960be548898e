"""Schedules against the seed's formula and torch's own rules; parameter groups."""

import math

import pytest
import timm
import torch

from vit_core.training.config import TrainConfig
from vit_core.training.optimization import Schedule, build_optimizer


def schedule(steps_per_epoch=10, **values):
    config = TrainConfig(**{"epochs": 10, "warmup_epochs": 2, "lr": 0.1, "min_lr": 0.001, **values})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    s = Schedule(optimizer, config, steps_per_epoch)

    def rate(step):
        s.set_step(step)
        return optimizer.param_groups[0]["lr"]

    return s, rate


def test_cosine_is_the_seeds_formula():
    _, rate = schedule()
    for step in range(20):
        assert rate(step) == pytest.approx(0.1 * step / 20)
    for step in range(20, 100):
        progress = (step - 20) / 80
        assert rate(step) == pytest.approx(0.001 + 0.5 * (0.1 - 0.001) * (1 + math.cos(math.pi * progress)))


def test_by_epoch_holds_the_rate_and_starts_above_zero():
    _, rate = schedule(schedule_by="epoch")
    _, by_step = schedule()
    assert rate(0) == rate(9) == pytest.approx(by_step(9))
    assert rate(0) > 0
    assert rate(50) == rate(59) == pytest.approx(by_step(50))


def test_constant_and_warmup_in_steps():
    _, rate = schedule(schedule="constant", warmup_steps=5)
    assert [rate(s) for s in (0, 4, 5, 99)] == pytest.approx([0.0, 0.08, 0.1, 0.1])


def test_plateau_follows_torchs_rule_after_the_warmup_and_survives_a_restart():
    values = {"schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.5, "min_lr": 0.03}
    s, rate = schedule(**values)
    parameter = torch.zeros(1, requires_grad=True)
    oracle_optimizer = torch.optim.SGD([parameter], lr=0.1)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        oracle_optimizer, mode="max", patience=1, factor=0.5, min_lr=0.03
    )
    for epoch, acc in enumerate([90.0, 95.0, 50.0, 60.0, 55.0, 54.0, 53.0, 52.0, 51.0, 50.0]):
        if epoch >= 2:  # the two epochs of warm-up do not count
            oracle.step(acc)
        s.end_epoch(acc, 10 * (epoch + 1))
        fresh, fresh_rate = schedule(**values)
        fresh.load_state_dict(s.state_dict())
        s, rate = fresh, fresh_rate
        if epoch >= 2:
            assert rate(10 * (epoch + 1)) == pytest.approx(oracle_optimizer.param_groups[0]["lr"])
    assert rate(100) == pytest.approx(0.03)


def test_biases_norms_and_named_parameters_are_not_decayed():
    model = timm.create_model("test_vit", num_classes=10)
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.3))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1 and name not in model.no_weight_decay()), name


def test_every_parameter_is_decayed_where_that_is_asked_for():
    model = timm.create_model("test_vit", num_classes=10)
    (group,) = build_optimizer(model, TrainConfig(weight_decay=0.3, decay_all=True)).param_groups
    assert group["weight_decay"] == 0.3
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="cannot be combined with --layer-decay"):
        TrainConfig(decay_all=True, layer_decay=0.5)


def test_layer_decay_scales_the_rate_by_depth():
    model = timm.create_model("test_vit", num_classes=10)
    optimizer = build_optimizer(model, TrainConfig(layer_decay=0.5, lr=0.1))
    Schedule(optimizer, TrainConfig(layer_decay=0.5, lr=0.1, epochs=2, warmup_epochs=1), 10).set_step(10)  # the peak
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    first, last = model.blocks[0].mlp.fc1.weight, model.blocks[-1].mlp.fc1.weight
    assert rate[id(model.head.weight)] == pytest.approx(0.1)
    assert rate[id(last)] == pytest.approx(rate[id(first)] / 0.5 ** (len(model.blocks) - 1))


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"lr": -1.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"label_smoothing": 1.0}, "--label-smoothing"),
        ({"ema_decay": 1.5}, "--ema-decay"),
        ({"grad_clip": -1.0}, "--grad-clip"),
        ({"early_stopping": 0}, "--early-stopping"),
    ],
)
def test_impossible_values_name_the_flag(values, flag):
    with pytest.raises(ValueError, match=flag):
        TrainConfig(**values)

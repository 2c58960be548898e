"""What converted weights cannot show: initial values, recipes, the original's configuration file, the notebooks' model.

Recorded from the original's train.py, configs/cifar100.yaml and notebooks at commit 2468cd3.
"""

import re

import pytest
import timm
import torch
import yaml
from torch import nn

from hthta_vit.ablation_study import rows_of
from hthta_vit.notebook import NotebookHead
from hthta_vit.recipe import RECIPE
from vit_core.commands.settings import parse, settle
from vit_core.errors import UserError


def settled(*flags):
    return settle(RECIPE, parse(RECIPE, flags), None)


# Parameters of the paper's parts, two GRU layers -> largest absolute value; all are uniform (torch's defaults), so the
# deviation is that over √3. In the original the pooling heads are Linear layers of their own.
INITIAL = {
    r"bigru\.bigru\..*": 768**-0.5, r"bigru\.projection\..*": 1536**-0.5, r"attention_pooling\.proj\..*": 768**-0.5,
    r"attention_pooling\.score.*": 96**-0.5, r"cls_fusion\.projection\..*": 6144**-0.5,
}  # fmt: skip


def test_each_group_of_parameters_starts_as_in_the_original():
    torch.manual_seed(0)
    guided = timm.create_model("hthta_vit_base_patch16_224_gru2", depth=1).guided
    assert (guided.cls_fusion.gamma.item(), round(guided.cls_fusion.beta.item(), 6)) == (0.5, 0.1)
    groups = {pattern: [] for pattern in INITIAL}
    for name, parameter in guided.named_parameters():
        if name.rpartition(".")[2] not in ("gamma", "beta"):
            groups[next(p for p in INITIAL if re.fullmatch(p, name))].append(parameter.detach().flatten())
    for pattern, parameters in groups.items():
        values, bound = torch.cat(parameters), INITIAL[pattern]
        assert float(values.abs().max()) <= bound + 1e-6, pattern
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.05), pattern


def test_the_baselines_are_torchvisions():
    """Parameters of timm's ViT-B/16 and ConvNeXt-B, which the paper's table is held against, are torchvision's."""
    from torchvision.models import convnext_base, vit_b_16

    with torch.device("meta"):
        pairs = [
            (timm.create_model("vit_base_patch16_224"), vit_b_16()),
            (timm.create_model("convnext_base"), convnext_base()),
        ]
    for ours, theirs in pairs:
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


# ── the notebooks' model ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_notebooks_head_is_its_formula():
    """Against the formula token by token: concat(W_c cls + b, ReLU(W mean(LN(x + attention(x))) + b)), x of the GRU."""
    torch.manual_seed(0)
    head = NotebookHead(12, states=4, heads=2).double().eval()
    patches, cls = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    with torch.no_grad():
        x = head.gru(patches)[0]
        q, k, v = nn.functional.linear(x, head.attn.in_proj_weight, head.attn.in_proj_bias).chunk(3, -1)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = (q[..., part] @ k[..., part].mT / 2.0).softmax(-1)
            heads.append(weights @ v[..., part])
        attended = head.attn.out_proj(torch.cat(heads, -1))
        pooled = nn.functional.layer_norm(x + attended, (8,), head.norm.weight, head.norm.bias).mean(1)
        expected = torch.cat([head.cls_proj(cls), head.bottleneck[0](pooled).clamp_min(0)], 1)
        torch.testing.assert_close(head(patches, cls), expected)


def test_the_notebooks_sizes_are_theirs():
    """GRU 768 -> 2 x 256, attention of 4 heads over 512, 512 -> 256, 768 -> 256, a classifier of 512."""
    with torch.device("meta"):
        model = timm.create_model("hthta_vit_notebook", num_classes=6)
    guided = model.guided
    gru = guided.gru
    assert (gru.input_size, gru.hidden_size, gru.num_layers, gru.bidirectional) == (768, 256, 1, True)
    assert (guided.attn.embed_dim, guided.attn.num_heads) == (512, 4)
    assert (guided.cls_proj.out_features, guided.bottleneck[0].out_features, guided.bottleneck[2].p) == (256, 256, 0.3)
    assert (model.head.in_features, model.head.out_features) == (512, 6)
    assert sum(p.numel() for p in guided.parameters()) == 1_575_936 + 1_050_624 + 1_024 + 196_864 + 131_328


def test_the_notebooks_model_keeps_timms_contract():
    model = timm.create_model("hthta_vit_notebook", num_classes=6, depth=2, frozen_blocks=1).eval()
    images = torch.randn(2, 3, 224, 224)
    assert model(images).shape == (2, 6)
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (2, 512)
    frozen = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed", "cls_token", "pos_embed", "blocks"}
    assert all(p.requires_grad for p in model.blocks[1].parameters())
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    with pytest.raises(ValueError, match="multiple of heads"):
        timm.create_model("hthta_vit_notebook", heads=3)


@pytest.mark.parametrize(
    "name", ["hthta_vit_micro", "hthta_vit_base_patch16_224", "hthta_vit_base_patch16_224_gru2", "hthta_vit_notebook"]
)
def test_features_only(name):
    model = timm.create_model(name, features_only=True, out_indices=(0, 1), depth=2)
    size = 32 if name == "hthta_vit_micro" else 224
    features = model(torch.randn(1, 3, size, size))
    assert model.feature_info.channels() == [f.shape[1] for f in features]
    assert [size // r for r in model.feature_info.reduction()] == [f.shape[-1] for f in features]


# ── recipes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_papers_text():
    train, augment = settled("--model", "base_gru2").train, settled("--model", "base_gru2").augment
    assert (train.optimizer, train.lr, train.weight_decay, train.decay_all) == ("adamw", 2e-5, 0.01, True)
    assert (train.schedule, train.warmup_steps, train.epochs, train.batch_size) == ("cosine", 500, 30, 32)
    assert (augment.crop, augment.hflip, augment.rotation) == ("none", 0.5, 10)
    assert (augment.color_jitter, augment.hue_jitter) == (0.2, 0.1)
    assert settled("--model", "base", "--dataset", "intel").augment.rotation == 15


def test_train_py():
    run = settled("--model", "base_gru2", "--preset", "train.py")
    assert (run.train.warmup_steps, run.train.amp, run.train.grad_clip, run.train.early_stopping) == (
        0,
        "off",
        0.0,
        None,
    )
    assert (run.train.schedule, run.train.schedule_by, run.train.min_lr) == ("cosine", "epoch", 0.0)
    assert run.data.normalize == "imagenet"


@pytest.mark.parametrize("dataset", ["cifar10", "intel"])
def test_the_notebooks(dataset):
    run = settled("--preset", "notebook", "--dataset", dataset)
    assert run.model == "hthta_vit_notebook"
    assert (run.train.lr, run.train.weight_decay, run.train.epochs, run.train.batch_size) == (3e-5, 1e-4, 5, 32)
    assert (run.train.mixup, run.train.label_smoothing) == ((1.0, 0.1) if dataset == "intel" else (0.0, 0.0))
    assert (run.augment.hflip, run.augment.rotation, run.augment.color_jitter) == (0.0, 0.0, 0.0)
    assert run.data.normalize == "none"


PUBLISHED = """
model:
  name: "hthta_vit_plus_plus"
  backbone: {model_name: "vit_base_patch16_224", embed_dim: 768, num_heads: 12, num_layers: 12, patch_size: 16,
             img_size: 224, dropout: 0.1, attention_dropout: 0.1, drop_path_rate: 0.1}
  bigru: {num_layers: 2, hidden_size: 768, dropout: 0.1, bidirectional: true}
  attention_pooling: {num_heads: 8, context_dim: 96, dropout: 0.1}
  cls_fusion: {gamma: 0.5, beta: 0.3, learnable_params: true}
  classifier: {num_classes: 100, dropout: 0.1}
dataset:
  name: "cifar100"
  download: true
  augmentation:
    train:
      - {type: "RandomResizedCrop", size: 224, scale: [0.8, 1.0]}
      - {type: "RandomHorizontalFlip", p: 0.5}
      - {type: "ColorJitter", brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.1}
      - {type: "RandomRotation", degrees: 15}
      - {type: "Normalize", mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
training:
  epochs: 30
  batch_size: 32
  optimizer: {name: "AdamW", lr: 2e-5, weight_decay: 0.01, betas: [0.9, 0.999], eps: 1e-8}
  scheduler: {name: "CosineAnnealingLR", T_max: 30, eta_min: 1e-6}
  warmup: {enabled: true, steps: 500, start_lr: 1e-6}
  mixed_precision: {enabled: true}
  gradient_clipping: {enabled: true, max_norm: 1.0}
  early_stopping: {enabled: true, patience: 10, min_delta: 0.001}
reproducibility: {seed: 42, deterministic: true}
"""
README_EXAMPLE = """
model: {embed_dim: 768, num_heads: 12, num_layers: 12, gru_layers: 2, attention_heads: 8,
        fusion_params: {gamma: 0.5, beta: 0.3}}
training: {epochs: 30, batch_size: 32, learning_rate: 2e-5, weight_decay: 0.01, warmup_steps: 500}
"""


def of_file(tmp_path, text, *flags):
    file = tmp_path / "original.yaml"
    file.write_text(text)
    return settled("--config", str(file), *flags)


def test_the_originals_file_is_read_and_is_the_shipped_one(tmp_path, capsys):
    run, shipped = of_file(tmp_path, PUBLISHED), settled("--config", "cifar100")
    said = capsys.readouterr().out
    assert "model.bigru.dropout, model.attention_pooling.dropout" in said, "what has no counterpart is named"
    for part in ("train", "augment"):
        assert getattr(run, part) == getattr(shipped, part)
    kwargs = {**shipped.model_kwargs, "gru_layers": 2, "pool_heads": 8, "pool_head_dim": 96}
    assert run.model_kwargs == kwargs
    assert (run.model_kwargs["gamma"], run.model_kwargs["beta"]) == (0.5, 0.3)
    assert (run.augment.rotation, run.augment.hue_jitter, run.augment.crop_scale_min) == (15, 0.1, 0.8)
    assert (run.train.min_lr, run.train.warmup_steps, run.train.grad_clip, run.train.early_stopping) == (
        1e-6,
        500,
        1.0,
        10,
    )
    assert of_file(tmp_path, PUBLISHED, "--learning_rate", "1e-4").train.lr == 1e-4, "a flag overrides the file"


def test_the_readmes_example_is_read(tmp_path):
    run = of_file(tmp_path, README_EXAMPLE)
    assert run.model_kwargs == {"gru_layers": 2, "pool_heads": 8, "gamma": 0.5, "beta": 0.3}
    assert (run.train.lr, run.train.warmup_steps) == (2e-5, 500)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ("model", "bigru", "hidden_size", 256),
            "model.bigru.hidden_size must be 768, as in the published model or recipe, got 256",
        ),
        (("training", "optimizer", "name", "SGD"), "training.optimizer.name"),
        (("dataset", "augmentation", "train", [{"type": "CutOut"}]), "transform 'CutOut' is not supported"),
    ],
)
def test_another_model_or_recipe_is_refused_in_one_line(tmp_path, change, says):
    content = yaml.safe_load(PUBLISHED)
    *place, last, value = change
    part = content
    for key in place:
        part = part[key]
    part[last] = value
    with pytest.raises(UserError, match=re.escape(says)):
        of_file(tmp_path, yaml.safe_dump(content))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "intel", "tiny_imagenet"])
def test_the_shipped_files(name):
    from importlib.resources import files

    run = settled("--config", name, "--data_dir", "images")
    assert (run.model, run.data.dataset, run.data.data_path) == ("hthta_vit_base_patch16_224_gru2", name, "images")
    text = (files("hthta_vit") / "configs" / f"{name}.yaml").read_text()
    assert text.startswith("# The original's" if name == "cifar100" else "# Ours:")


def test_the_originals_spelling_of_components():
    all_rows = ["none", "bigru", "bigru+pooling", "bigru+pooling+fusion"]
    assert rows_of(["bigru", "attention_pooling", "cls_fusion"]) == all_rows
    assert rows_of(["attention_pooling"]) == ["none", "bigru", "bigru+pooling"]
    assert rows_of(["none", "bigru"]) == ["none", "bigru"]
    with pytest.raises(UserError, match="give one or the other"):
        rows_of(["none", "cls_fusion"])

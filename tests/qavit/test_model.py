"""QAViT's invariants: counts, the three banks, MSDA's two readings, timm's contract."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from qavit import QAViT, QAViTConfig, qavit_micro, qavit_small, qavit_tiny
from qavit.model import Bank


def micro(**fields):
    torch.manual_seed(0)
    fields = {"num_classes": 10, "depth": 2, "dropout": 0.0, "drop_path": 0.0, **fields}
    model = qavit_micro(**fields)
    with torch.no_grad():  # away from the symmetric start, so that every path carries something
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def images(count=3, seed=1):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


# ── size ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("build", "depth", "count"),
    [
        (qavit_tiny, None, 13_054_564),
        (qavit_small, None, 38_125_636),
        (qavit_tiny, 2, 2_469_404),  # the seed's "2.47M"
        (qavit_small, 2, 5_287_292),  # the seed's "5.29M"
    ],
)
def test_parameter_counts(build, depth, count):
    with torch.device("meta"):
        model = build(num_classes=100, **({} if depth is None else {"depth": depth}))
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_seeds_custom_configuration():
    config = QAViTConfig(
        img_size=224,
        patch_size=16,
        num_classes=1000,
        embed_dim=256,
        depth=12,
        num_heads=4,
        compress_ratio=4,
        bottleneck_ratio=2,
        mlp_ratio=0.5,
        global_bank_size=16,
        window_size=7,
        dilation_factors=(1, 2, 3),
        num_channel_groups=8,
    )
    model = QAViT(config.replace(depth=1)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"num_channel_groups": 3}, "multiple of 2 x num_channel_groups"),
        ({"num_channel_groups": 32, "num_heads": 8}, "a channel group's width"),
        ({"img_size": 225}, "multiple of patch_size"),
        ({"compress_ratio": 3}, "multiple of compress_ratio"),
        ({"bottleneck_ratio": 3}, "multiple of bottleneck_ratio"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"dilation_factors": ()}, "dilation_factors must be positive"),
        ({"landmark_pooling_stride": 500}, "leaves no token"),
        ({"bank_update": "sometimes"}, "bank_update must be"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_impossible_configurations_name_the_rule(fields, rule):
    with pytest.raises(ValueError, match=rule):
        QAViTConfig(**fields)


@pytest.mark.parametrize("grid", [3, 5, 7, 9])
def test_grids_that_windows_and_strides_do_not_divide(grid):
    model = micro(img_size=4 * grid, window_size=4).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 4 * grid, 4 * grid)).isfinite().all()


# ── attention, against the formulas written out ──────────────────────────────────────────────────────────────────


def random_bank(model, B):
    M, d = model.config.global_bank_size, model.config.embed_dim
    return Bank(torch.randn(B, M, d), torch.randn(B, M, d))


@pytest.mark.parametrize("B_bank", [1, 3])
def test_cross_attention_is_the_unfolded_formula(B_bank):
    model = micro().eval()
    a = model.blocks[0].cross_attn
    x, bank, h = torch.randn(3, 64, 64), random_bank(model, B_bank), 2
    q, k, v = (t.unflatten(-1, (h, -1)).transpose(1, 2) for t in (a.q_proj(x), a.k_proj(bank.k), a.v_proj(bank.v)))
    out = F.scaled_dot_product_attention(q, k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1))
    assert_close(a(x, bank), a.proj(out.transpose(1, 2).flatten(2)), rtol=1e-4, atol=1e-5)


def msda_by_the_book(a, config, x, bank, length):
    """Sample, pool, project, pad or cut to `length`, compress, append the bank: as the spec says it."""
    B, _, d = x.shape
    h, grid = config.num_heads, config.grid
    g = x.view(B, grid, grid, d)
    s = torch.cat([g[:, ::r, ::r].reshape(B, -1, d) for r in config.dilation_factors], 1)
    s = F.avg_pool1d(s.transpose(1, 2), config.landmark_pooling_stride).transpose(1, 2)
    q = a.qkv(x)[..., :d]
    k, v = a.qkv(s)[..., d:].chunk(2, -1)
    k, v = (F.pad(t, (0, 0, 0, max(length - t.shape[1], 0)))[:, :length] for t in (k, v))
    k = torch.cat([a.linformer.E_k.T @ k, bank.k.expand(B, -1, -1)], 1)
    v = torch.cat([a.linformer.E_v.T @ v, bank.v.expand(B, -1, -1)], 1)
    q, k, v = (t.unflatten(-1, (h, -1)).transpose(1, 2) for t in (q, k, v))
    return a.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("img_size", [32, 48, 56, 64])  # 44, 98, 135 and 173 landmarks against 128 rows
def test_truncated_msda_is_the_published_one(img_size):
    model = micro(img_size=img_size, msda_truncate=True).eval()
    a, x, bank = model.blocks[0].msda, torch.randn(2, (img_size // 4) ** 2, 64), random_bank(model, 1)
    assert_close(a(x, bank), msda_by_the_book(a, model.config, x, bank, 128), rtol=1e-4, atol=1e-5)


def test_msda_keeps_every_landmark_unless_told_to_cut():
    short = [micro(img_size=32, msda_truncate=truncate).eval() for truncate in (True, False)]
    with torch.no_grad():
        assert torch.equal(*(model(images()) for model in short))  # 44 landmarks: nothing to cut there
    for truncate, lost in ((False, 0), (True, 7)):
        model = micro(img_size=56, msda_truncate=truncate)
        a = model.blocks[0].msda
        landmarks = a.landmarks(torch.eye(196)[None])[0]  # (135, 196): of which tokens each is the mean
        assert landmarks.shape == (model.config.msda_length, 196) == (135, 196)
        assert (landmarks.sum(1) == 1).all()
        assert (landmarks.count_nonzero(1) <= 2).all()
        keys = torch.eye(135).unsqueeze(0).requires_grad_()  # one landmark each
        torch.nn.init.normal_(a.linformer.E_k)
        a.linformer(keys, keys)[0].square().sum().backward()
        assert int((keys.grad.abs().sum(2) == 0).sum()) == lost


def test_stretched_compression_weighs_every_landmark():
    linformer = micro(img_size=56).blocks[0].msda.linformer
    k, v = linformer(torch.eye(135)[None], torch.eye(135)[None])  # E's rows as they are used
    for used, E in ((k, linformer.E_k), (v, linformer.E_v)):
        assert (used[0].abs().sum(0) > 0).all()
        assert_close(used[0], F.interpolate(E.T[None], size=135, mode="linear")[0])


def test_windows_do_not_see_each_other():
    model = micro().eval()
    a, bank = model.blocks[0].swa, random_bank(model, 1)
    x = torch.randn(1, 64, 64)
    changed = x.clone()
    changed[0, 0] += 1.0  # top left token
    moved = (a(x, bank) != a(changed, bank)).any(-1).view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(moved, expected)


def test_channel_groups_share_projections_and_do_not_mix_before_the_last():
    model = micro().eval()
    a, bank = model.blocks[0].cga, random_bank(model, 1)
    a.proj = torch.nn.Identity()
    x = torch.randn(1, 64, 64)
    changed = x.clone()
    changed[..., :16] += 1.0  # the first of four groups
    moved = (a(x, bank) - a(changed, bank)).abs().amax((0, 1)) > 1e-6
    assert moved.tolist() == [True] * 8 + [False] * 24
    same = torch.randn(1, 64, 16).repeat(1, 1, 4)  # the same channels in each group give the same output
    out = a(same, bank).unflatten(-1, (4, 8))
    assert_close(out, out[:, :, :1].expand_as(out))


# ── the bank ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_inplace_bank_is_written_in_training_only():
    model = micro()
    before = model.global_bank.global_k.clone()
    model.eval()(images())
    assert torch.equal(model.global_bank.global_k, before)
    model.train()(images())
    step = (model.global_bank.global_k - before).abs().max().item()
    assert 0.0 < step <= 2 * 3 * 0.1 * 0.5 + 1e-6  # two blocks, three writes each, 0.1 of at most 0.5


def test_a_gradient_is_taken_at_the_bank_that_was_read():
    """As published the bank changes under autograd's saved tensors; here numbers and gradients must agree."""
    model = micro(depth=1).double().train()
    x = images(2).double()
    bank = model.global_bank
    state = {k: v.clone() for k, v in model.state_dict().items()}
    weight = model.blocks[0].cross_attn.k_proj.weight

    def loss():
        model.load_state_dict(state)
        return model(x).square().sum()

    loss().backward()
    analytic = weight.grad[3, 5].item()
    eps = 1e-5
    values = []
    for sign in (1, -1):
        state["blocks.0.cross_attn.k_proj.weight"][3, 5] += sign * eps
        values.append(loss().item())
        state["blocks.0.cross_attn.k_proj.weight"][3, 5] -= sign * eps
    assert analytic == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-4)
    assert bank.global_k.grad is not None


def test_functional_bank_is_independent_of_the_batch_and_changes_nothing():
    model = micro(bank_update="functional").train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = images(4)
    together = model(x)
    apart = torch.cat([model(x[i : i + 1]) for i in range(4)])
    assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert_close(model.eval()(x), together, rtol=1e-4, atol=1e-5)  # and in evaluation


@pytest.mark.parametrize(("mode", "learns"), [("functional", True), ("inplace", False), ("frozen", False)])
def test_the_gateway_learns_only_when_functional(mode, learns):
    model = micro(bank_update=mode)
    model(images()).square().sum().backward()
    branch_norms = tuple(f"{b}.norm.{p}" for b in ("swa", "msda", "cga") for p in ("weight", "bias"))
    gateway = [n for n, _ in model.named_parameters() if "write_" in n or n.endswith(branch_norms)]
    assert len(gateway) == 6 + 2 * 3 * 2
    for name, p in model.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == (learns or name not in gateway), name
        assert p.requires_grad == (learns or name not in gateway), name


def test_frozen_bank_is_never_written_but_learns():
    model = micro(bank_update="frozen").train()
    before = model.global_bank.global_k.clone()
    model(images()).sum().backward()
    assert torch.equal(model.global_bank.global_k, before)
    assert model.global_bank.global_k.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["inplace", "functional"])
def test_grad_checkpointing_changes_nothing(mode):
    results = []
    for enable in (False, True):
        model = micro(bank_update=mode, dropout=0.1, drop_path=0.2).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(images()).square().sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((grads, model.global_bank.global_v.detach().clone()))
    (grads, bank), (grads_checkpointed, bank_checkpointed) = results
    assert torch.equal(bank, bank_checkpointed)
    assert grads.keys() == grads_checkpointed.keys()
    for name in grads:
        assert_close(grads_checkpointed[name], grads[name], msg=name)


def test_autocast_keeps_the_bank_in_float32():
    model = micro().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images())
    assert model.global_bank.global_k.dtype == torch.float32
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# ── timm's contract ──────────────────────────────────────────────────────────────────────────────────────────────


def test_timm_creates_every_size_with_every_field():
    assert {"qavit_micro", "qavit_small", "qavit_tiny"} <= set(timm.list_models("qavit*"))
    with torch.device("meta"):
        model = timm.create_model("qavit_tiny", depth=2, num_classes=7, bank_update="frozen", drop_rate=0.2)
    assert (len(model.blocks), model.num_classes, model.config.dropout) == (2, 7, 0.2)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)


def test_head_can_be_replaced_and_removed():
    model = micro().eval()
    with torch.no_grad():
        features = model.forward_features(images())
        assert_close(model.forward_head(features), model(images()))
        pooled = model.forward_head(features, pre_logits=True)
        assert_close(pooled, features.mean(1))
        model.reset_classifier(0)
        assert_close(model(images()), pooled)
        model.reset_classifier(0, "")
        assert model(images()).shape == (3, 64, 64)
        model.reset_classifier(5, "avg")
        assert model(images()).shape == (3, 5)
    assert model.get_classifier() is model.head
    assert model.num_features == model.head_hidden_size == 64


def test_forward_intermediates():
    model = micro(depth=3).eval()
    with torch.no_grad():
        final, grids = model.forward_intermediates(images())
        assert_close(final, model.forward_features(images()))
        assert [g.shape for g in grids] == [(3, 64, 8, 8)] * 3
        tokens = model.forward_intermediates(images(), [0, 2], norm=True, output_fmt="NLC", intermediates_only=True)
        assert_close(tokens[1], final)
        early = model.forward_intermediates(images(), [1], stop_early=True, intermediates_only=True)
        assert_close(early[0], grids[1])
        assert [info["num_chs"] for info in model.feature_info] == [64, 64, 64]
        assert model.prune_intermediate_layers(1) == [2]
    grid = torch.zeros(1, 3, 32, 32)
    grid[..., 0:4, 28:32] = 1.0  # top right patch: the grid's first row, last column
    assert model.patch_embed.proj(grid).sub(model.patch_embed.proj(grid * 0)).abs().sum(1)[0].nonzero().tolist() == [
        [0, 7]
    ]


def test_weight_decay_and_layer_depth_names_exist():
    model = micro()
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    from timm.optim import param_groups_layer_decay

    scales = {
        n: g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.5) for n in [g["params"][0].shape]
    }
    assert len(set(scales.values())) > 2


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match="takes 32 x 32 images"):
        micro()(torch.randn(1, 3, 64, 64))


@pytest.mark.slow
def test_torch_compile_gives_the_same_logits():
    model = micro().eval()
    with torch.no_grad():
        expected = model(images())
        assert_close(torch.compile(model, backend="aot_eager")(images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_agrees_with_the_cpu(dtype):
    model = micro().eval()
    with torch.no_grad():
        expected = model(images())
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            found = model.cuda()(images().cuda())
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    assert_close(found.float().cpu(), expected, rtol=tolerance, atol=tolerance)

"""Weights of others: the published modules' numbers, whole checkpoints of the original, timm's ViTs."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from hthta_vit import hthta_vit_micro
from hthta_vit.convert import head_from_original, model_from_original
from hthta_vit.convert_checkpoint import main as convert
from hthta_vit.evaluate import main as evaluate
from hthta_vit.recipe import OWN, RECIPE, initialize
from vit_core.commands.trained_model import load_trained
from vit_core.errors import UserError
from vit_core.models import timm_weights
from vit_core.models.timm_weights import StartOptions, load_backbone

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def original(reference):
    tensors, metadata = reference("hthta_head")
    return tensors, {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}, metadata


def test_the_published_modules(original):
    tensors, weights, config = original
    head = head_from_original(weights, config)
    with torch.no_grad():
        fused, alpha = head(tensors["patch_tokens"], tensors["cls_token"])
        h = head.bigru(tensors["patch_tokens"])
        pooled, _ = head.attention_pooling(h)
    assert_close(h, tensors["bigru_out"], **TOLERANCE)
    assert_close(pooled, tensors["pooled"], **TOLERANCE)
    assert_close(alpha, tensors["attention_weights"], **TOLERANCE)
    assert_close(fused, tensors["fused"], **TOLERANCE)


def test_wrong_keys_shapes_and_arguments_are_listed(original):
    _, weights, config = original
    broken = dict(weights)
    del broken["bigru.projection.bias"]
    broken["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing bigru.projection.bias; unexpected extra"):
        head_from_original(broken, config)
    with pytest.raises(ValueError, match=r"missing attention_pooling.attention_heads.4.0.weight"):
        head_from_original(weights, {**config, "heads": 5})
    with pytest.raises(ValueError, match=r"config: missing dim; unexpected width"):
        head_from_original(weights, {"width": 32, **{k: v for k, v in config.items() if k != "dim"}})


class Original(nn.Module):
    """The original's composition, with torch's GRU and a loop over the heads."""

    def __init__(self, vit, dim, heads, head_dim, gru_layers, classes):
        super().__init__()
        self.vit = vit
        self.bigru = nn.Module()
        self.bigru.bigru = nn.GRU(dim, dim, gru_layers, batch_first=True, bidirectional=True)
        self.bigru.projection = nn.Linear(2 * dim, dim)
        self.attention_pooling = nn.Module()
        self.attention_pooling.attention_heads = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, head_dim), nn.Tanh(), nn.Linear(head_dim, 1)) for _ in range(heads)
        )
        self.cls_fusion = nn.Module()
        self.cls_fusion.projection = nn.Linear(heads * dim, dim)
        self.cls_fusion.gamma = nn.Parameter(torch.tensor(0.4))
        self.cls_fusion.beta = nn.Parameter(torch.tensor(0.2))
        self.classifier = nn.Linear(dim, classes)

    def forward(self, images):
        x = self.vit._process_input(images)
        x = self.vit.encoder(torch.cat([self.vit.class_token.expand(len(x), -1, -1), x], 1))
        h = self.bigru.projection(self.bigru.bigru(x[:, 1:])[0])
        alphas = [head(h).softmax(1) for head in self.attention_pooling.attention_heads]
        p = self.cls_fusion.projection(torch.cat([(a * h).sum(1) for a in alphas], 1))
        gamma, beta = self.cls_fusion.gamma, self.cls_fusion.beta
        return self.classifier(gamma * x[:, 0] + (1 - gamma) * p + beta * (x[:, 0] * p)), torch.cat(alphas, 2).mT


def compare(original, config, img_size):
    with torch.no_grad():
        for p in original.parameters():  # away from the zeros that torchvision starts some with
            p.add_(0.02 * torch.randn_like(p))
    original.eval()
    images = torch.randn(2, 3, img_size, img_size)
    with torch.no_grad():
        expected, expected_alpha = original(images)
        for prefix in ("", "module."):
            model = model_from_original({prefix + k: v for k, v in original.state_dict().items()}, config)
            logits, alpha = model(images, return_attention=True)
            assert_close(logits, expected, **TOLERANCE)
            assert_close(alpha, expected_alpha, **TOLERANCE)


def small():
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=80, num_classes=5)
    return Original(vit, 48, 3, 7, 2, 6), {"dim": 48, "heads": "3", "head_dim": 7, "gru_layers": 2, "vit_heads": 4}


def test_a_whole_checkpoint():
    compare(*small(), 32)


def test_a_whole_checkpoint_under_torchvisions_older_names():
    original, config = small()
    state = {
        k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
        for k, v in original.state_dict().items()
    }
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(model_from_original(state, config)(images), original.eval()(images)[0], **TOLERANCE)


def test_wrong_keys_of_a_whole_checkpoint_are_listed():
    original, config = small()
    state = original.state_dict()
    del state["vit.encoder.ln.bias"]
    state["vit.encoder.more"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing norm.bias; unexpected vit.encoder.more"):
        model_from_original(state, config)
    with pytest.raises(ValueError, match=r"missing vit.conv_proj.weight; missing vit.encoder.pos_embedding"):
        model_from_original({}, config)


@pytest.mark.slow
def test_a_whole_vit_b_16():
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    compare(Original(vit_b_16(), 768, 8, 96, 1, 10), {"dim": 768, "heads": 8, "head_dim": 96, "gru_layers": 1}, 224)


# ── timm's weights ───────────────────────────────────────────────────────────────────────────────────────────────


def timm_vit(**fields):
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0}
    return timm.models.VisionTransformer(**{**sizes, **fields})


def test_a_timm_file_fills_the_backbone_and_nothing_else(tmp_path):
    vit, model = timm_vit(num_classes=7), hthta_vit_micro(num_classes=10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    initialize(model, StartOptions(weights=str(tmp_path / "vit.safetensors")))
    for k, v in model.state_dict().items():
        expected = before[k] if k.startswith(("guided.", "head.")) else vit.state_dict()[k]
        assert torch.equal(v, expected), k


def test_position_embeddings_of_another_grid_are_resized():
    model = hthta_vit_micro()
    load_backbone(model, timm_vit(img_size=48).state_dict(), OWN)
    assert model.pos_embed.shape == (1, 65, 64)


def test_what_does_not_fit_is_said_in_one_line(tmp_path):
    model = hthta_vit_micro()
    path = tmp_path / "vit.safetensors"
    save_file(timm_vit(depth=3).state_dict(), path)
    with pytest.raises(UserError, match=r"does not fit the backbone: .*missing blocks.3.norm1.weight; .*and \d+ more"):
        initialize(model, StartOptions(weights=str(path)))
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"does not fit the backbone"):
        initialize(model, StartOptions(weights=str(path)))
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"cannot be read as a safetensors file"):
        initialize(model, StartOptions(weights=str(path)))
    with pytest.raises(UserError, match=r"no such file"):
        initialize(model, StartOptions(weights=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"there are no pretrained weights for this model size; use --weights"):
        initialize(model, StartOptions(pretrained=True))


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def refuse(*args):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm_weights, "download", refuse)
    with torch.device("meta"):
        model = timm.create_model("hthta_vit_base_patch16_224")
    with pytest.raises(UserError, match=r"no route to host\); use --weights FILE.safetensors, or --no-pretrained"):
        initialize(model, StartOptions(pretrained=True))


def test_a_checkpoint_of_the_original_is_converted_and_read(tmp_path, capsys):
    original, _ = small()
    theirs, ours = tmp_path / "theirs.pth", tmp_path / "ours.pth"
    torch.save({"epoch": 1, "model_state_dict": original.state_dict(), "config": "anything"}, theirs)
    assert evaluate(["--model_path", str(theirs)]) == 2
    assert "the paper's convert command" in capsys.readouterr().err
    assert convert(["--checkpoint", str(theirs), "--output", str(ours), "--vit-heads", "4"]) == 0
    assert "base_gru2" in capsys.readouterr().out
    trained = load_trained(RECIPE, ours, torch.device("cpu"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(trained.model(images), original.eval()(images)[0], **TOLERANCE)
    torch.save({k: v for k, v in original.state_dict().items() if "bigru" not in k}, theirs)
    assert convert(["--checkpoint", str(theirs), "--output", str(ours)]) == 2
    assert "missing bigru.bigru.weight_ih_l0" in capsys.readouterr().err

"""What timm's users do with a model, for every micro model that is registered; each paper's tests have the others."""

import importlib

import pytest
import timm
import torch

PACKAGES = ("clear_vit", "hthta_vit", "qavit", "selective_vit", "zoom_vit")
for package in PACKAGES:
    importlib.import_module(package)
MODELS = sorted({name for package in PACKAGES for name in timm.list_models(f"{package}_micro*")})


def test_every_paper_has_models():
    assert {p for p in PACKAGES if any(name.startswith(p) for name in MODELS)} == set(PACKAGES)


@pytest.mark.parametrize("name", MODELS)
def test_features_only(name):
    """The maps of two blocks, of the right width and grid."""
    model = timm.create_model(name, features_only=True, out_indices=(1, 3)).eval()
    with torch.no_grad():
        features = model(torch.randn(1, 3, 32, 32))
    assert model.feature_info.channels() == [f.shape[1] for f in features]
    assert [32 // r for r in model.feature_info.reduction()] == [f.shape[-1] for f in features]
    assert len(features) == 2

"""The original's validation suite (test_qavit.py): every result is computed when it runs.

    uv run qavit-validate                          data integration on the bundled digits dataset
    uv run qavit-validate --dataset cifar100 --data-path DIR [--download]

Four sections: dimension flow, nine components, mathematical properties, data integration. Beyond the original's suite,
it checks which parameters get a gradient and whether samples of a batch influence each other in training. Both depend
on how the bank is written, so they are checked with the bank in place and functional.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qavit.config import QAViTConfig
from qavit.model import QAViT, quad_blocks
from qavit.registry import qavit_micro, qavit_small, qavit_tiny
from vit_core.data import BatchLoader, EvalTransform, load_dataset
from vit_core.flags import command, flag, parse
from vit_core.training.distributed import pick_device, seed_everything

MODELS: dict[str, Callable[..., QAViT]] = {"micro": qavit_micro, "tiny": qavit_tiny, "small": qavit_small}
PUBLISHED_SIZES = {  # training and validation images
    "cifar100": (50_000, 10_000), "cifar10": (50_000, 10_000), "digits": (1_437, 360), "flowers102": (1_020, 1_020),
    "tiny_imagenet": (100_000, 10_000), "imagenet": (1_281_167, 50_000),
}  # fmt: skip
Check = tuple[str, Callable[[], str | None]]  # name, and a function that returns an error message or None


class Suite:
    """Run named checks, print one line for each, and record which sections passed."""

    def __init__(self) -> None:
        self.sections: dict[str, bool] = {}

    def section(self, name: str, checks: Sequence[Check]) -> None:
        print(f"\n{name}\n{'─' * 80}")
        passed = True
        for label, check in checks:
            try:
                problem = check()
            except (RuntimeError, ValueError, AssertionError) as e:
                problem = f"{type(e).__name__}: {e}"
            passed &= problem is None
            print(f"{'✅' if problem is None else '❌'} {label}" + (f": {problem}" if problem else ""))
        self.sections[name] = passed

    def summary(self) -> bool:
        print(f"\n{'=' * 80}\n{'FINAL SUMMARY':^80}\n{'=' * 80}")
        for name, passed in self.sections.items():
            print(f"{name:.<50} {'✅ PASS' if passed else '❌ FAIL'}")
        good = all(self.sections.values())
        print("\n" + ("ALL TESTS PASSED" if good else "SOME TESTS FAILED: see the lines marked ❌"))
        return good


def dimension_flow(device: torch.device) -> list[Check]:
    def flow(build: Callable[..., QAViT]) -> str | None:
        model = build(num_classes=100).to(device).eval()
        images = torch.randn(2, 3, model.config.img_size, model.config.img_size, device=device)
        with torch.no_grad():
            features = model.forward_features(images)
            logits = model(images)
        N, d = model.config.grid**2, model.config.embed_dim
        return _differs("features", features.shape, (2, N, d)) or _differs("logits", logits.shape, (2, 100))

    return [
        ("QAViT-Tiny: (2, 3, 224, 224) → (2, 196, 256) → (2, 100)", partial(flow, qavit_tiny)),
        ("QAViT-Small: (2, 3, 224, 224) → (2, 196, 384) → (2, 100)", partial(flow, qavit_small)),
    ]


def components(device: torch.device) -> list[Check]:
    c = QAViTConfig(depth=1, dropout=0.0, drop_path=0.0)
    model = QAViT(c).to(device).train()
    block, memory = quad_blocks(model)[0], model.global_bank
    x = torch.randn(2, c.grid**2, c.embed_dim, device=device)
    bank = memory.read()
    d_fused = 4 * (c.embed_dim // c.compress_ratio)

    def shape(module: nn.Module, *inputs: object, width: int = c.embed_dim) -> str | None:
        out: Tensor = module(*inputs)
        return _differs("output", out.shape, (2, c.grid**2, width)) or _not_finite(out)

    def gateway() -> str | None:
        written = memory.write(bank, x, block.swa.norm)
        step = (written.k - bank.k).abs().max().item()
        if not 0.0 < step <= 0.05 + 1e-6:
            return f"a write changed the bank by {step}; the change must be more than 0 and at most 0.1 × 0.5"
        return _differs("bank", written.k.shape, (1, c.global_bank_size, c.embed_dim))

    def whole_block() -> str | None:
        out, _ = block(x, bank, memory)
        return _differs("output", out.shape, tuple(x.shape)) or _not_finite(out)

    branches = [torch.randn(2, c.grid**2, c.embed_dim // c.compress_ratio, device=device) for _ in range(4)]
    return [
        ("Global Token Bank (MLA gateway)", gateway),
        ("Spatial Window Attention (SWA)", partial(shape, block.swa, x, bank)),
        ("Multi-Scale Dilated Attention (MSDA)", partial(shape, block.msda, x, bank)),
        ("Channel Group Attention (CGA)", partial(shape, block.cga, x, bank)),
        ("Cross-Attention Branch", partial(shape, block.cross_attn, x, bank)),
        ("Hybrid Fusion", partial(shape, block.fusion, branches, width=d_fused)),
        ("Bottleneck MLP", partial(shape, block.bottleneck_mlp, torch.cat(branches, -1))),
        ("CCF-FFN", partial(shape, block.ccf_ffn, x)),
        ("Quad-Attention Block", whole_block),
    ]


def mathematics(device: torch.device) -> list[Check]:
    def micro(**fields: object) -> QAViT:
        seed_everything(0)
        return qavit_micro(num_classes=10, dropout=0.0, drop_path=0.0, **fields).to(device)

    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)

    def deterministic() -> str | None:
        model = micro().eval()
        with torch.no_grad():
            return None if torch.equal(model(images), model(images)) else "two evaluations of the same input differ"

    def batch_independent() -> str | None:
        model = micro().eval()
        with torch.no_grad():
            together, apart = model(images), torch.cat([model(image[None]) for image in images])
        return None if torch.allclose(together, apart, atol=1e-5) else f"differ by {(together - apart).abs().max():.1e}"

    def gradients(mode: str, expected_without: int) -> str | None:
        model = micro(bank_update=mode).train()
        model(images).square().sum().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None]
        return _differs("parameters without gradient", len(without), expected_without)

    def training_is_shared(mode: str, expected: bool) -> str | None:
        model = micro(bank_update=mode).train()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            first = model(images)[0]
            model.load_state_dict(state)
            other = model(torch.cat([images[:1], -images[1:]]))[0]
        shared = not torch.allclose(first, other, atol=1e-6)
        return _differs("logits of a sample depend on the rest of its batch", shared, expected)

    def constraints() -> str | None:
        for build, d in ((qavit_tiny, 256), (qavit_small, 384)):
            model = build(depth=1)
            block = quad_blocks(model)[0]
            for name, found, expected in (
                ("d'", block.compress_swa.out_features, d // 4),
                ("r", block.bottleneck_mlp.fc1.out_features, d // 2),
                ("FFN width", block.ccf_ffn.fc1.out_features, d // 2),
                ("k", block.msda.linformer.E_k.shape[1], 64),
            ):
                if found != expected:
                    return f"{name} is {found} at d = {d}, expected {expected}"
        return None

    alone, together = "samples are independent", "samples share the bank's updates"
    gateway = 6 + 3 * 2 * 4  # norm, gate, compression; one norm in each of three branches of four blocks
    return [
        ("Output consistency (deterministic)", deterministic),
        ("Batch independence in evaluation", batch_independent),
        ("Architectural constraints (d' = d/4, r = d/2, k = 64)", constraints),
        (
            f"Gradient flow, bank in place: every parameter except the gateway's {gateway} tensors",
            partial(gradients, "inplace", gateway),
        ),
        ("Gradient flow, bank functional: every parameter", partial(gradients, "functional", 0)),
        (f"Training, bank in place: {together}", partial(training_is_shared, "inplace", True)),
        (f"Training, bank functional: {alone}", partial(training_is_shared, "functional", False)),
    ]


def data_integration(
    name: str, path: str | None, download: bool, device: torch.device, build: Callable[..., QAViT]
) -> list[Check]:
    size = build(depth=1).config.img_size
    dataset = load_dataset(name, data_path=path, download=download, img_size=size)
    print(
        f"\n{name}: {len(dataset.train):,} training and {len(dataset.val):,} validation images, "
        f"{dataset.num_classes} classes"
    )
    loader = BatchLoader(
        dataset.val,
        batch_size=256,
        transform=EvalTransform(size, dataset.mean, dataset.std),
        train=False,
        device=device,
    )

    def sizes() -> str | None:
        return _differs("images", (len(dataset.train), len(dataset.val)), PUBLISHED_SIZES[name])

    def labels() -> str | None:
        seen = torch.cat([dataset.train.labels, dataset.val.labels]).unique().tolist()
        return _differs("labels seen", seen, list(range(dataset.num_classes)))

    def batch() -> str | None:
        images, targets = next(iter(loader.epoch()))
        expected = min(256, len(dataset.val))
        return _differs("batch", images.shape, (expected, 3, size, size)) or _differs("labels", len(targets), expected)

    def forward() -> str | None:
        images, _ = next(iter(loader.epoch()))
        with torch.no_grad():
            logits = build(num_classes=dataset.num_classes).to(device).eval()(images[:16])
        return _differs("logits", logits.shape, (min(16, len(dataset.val)), dataset.num_classes)) or _not_finite(logits)

    checks: list[Check] = [("Labels", labels), ("Batch of 256", batch), (f"Forward pass, {build.__name__}", forward)]
    return [("Dataset sizes", sizes), *checks] if name in PUBLISHED_SIZES else checks


def _differs(what: str, found: object, expected: object) -> str | None:
    found = tuple(found) if isinstance(found, torch.Size) else found
    return None if found == expected else f"{what}: {found}, expected {expected}"


def _not_finite(x: Tensor) -> str | None:
    return None if bool(x.isfinite().all()) else "not finite"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """QAViT's validation suite. Exits with code 1 if a check fails."""

    model: str = flag("micro", "model for the data checks", choices=tuple(MODELS))
    dataset: str = flag("digits", "dataset for the data checks")
    data_path: str | None = flag(None, "folder of the dataset", metavar="DIR")
    download: bool = flag(False, "download the dataset if it is missing")
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "qavit-validate")
    device = pick_device(args.device)
    integration = data_integration(args.dataset, args.data_path, args.download, device, MODELS[args.model])
    suite = Suite()
    seed_everything(0)
    suite.section("DIMENSION_FLOW", dimension_flow(device))
    suite.section("COMPONENTS", components(device))
    suite.section("MATHEMATICS", mathematics(device))
    suite.section(args.dataset.upper(), integration)
    return 0 if suite.summary() else 1


if __name__ == "__main__":
    sys.exit(main())

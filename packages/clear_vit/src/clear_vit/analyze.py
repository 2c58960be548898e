"""What a trained variant learned: plots and CSV files.

    uv run clear-vit-analyze --checkpoint checkpoints/RUN/best.pth
    uv run clear-vit-analyze --checkpoint checkpoints/RUN/best.pth --image FILE_OR_DIR

attention.csv, attention_distance.png, attention_entropy.png     for each head of every block
patch_entropy.csv, patch_entropy_N.png                           of the pixels, and of the tokens before each attention
suppression_kernels.csv, suppression_kernels.png                 suppression variant only
rope_frequencies.csv, rope_frequencies.png                       variants with RoPE only
"""

import csv
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_vit.entropy import pixel_entropy, token_entropy
from clear_vit.model import ClearViT, DiffEntropyAttention, SuppressionAttention
from clear_vit.recipe import RECIPE
from clear_vit.rope import Grid
from vit_core.commands.trained_model import CheckpointFlags, ImageFlags, TrainedModel, load_trained
from vit_core.data.folder import find_images
from vit_core.data.images import read_pixels
from vit_core.explain import AttentionStatistics, denormalize, draw_heads, figure_of_maps
from vit_core.flags import command, flag, parse
from vit_core.training.distributed import World, pick_device

CENTERED = "RdBu_r"  # colormap for signed values


@dataclass(frozen=True, kw_only=True)
class Flags(CheckpointFlags, ImageFlags):
    """Measure and plot what a trained variant learned."""

    image: Path | None = flag(
        None, "image file or folder (default: the run's evaluation split)", aliases=("image_path",)
    )
    max_images: int = flag(256, "maximum number of images")
    pictures: int = flag(2, "number of images to draw patch entropy for")
    output_dir: Path | None = flag(
        None, "folder for the results (default: `analysis` next to the checkpoint)", metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_images < 1 or self.pictures < 1:
            raise ValueError(
                f"--max-images and --pictures must be at least 1, got {self.max_images} and {self.pictures}"
            )


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "clear-vit-analyze")
    world = World(0, 1, pick_device(args.device))
    trained = load_trained(RECIPE, args.checkpoint, world.device, raw_weights=args.raw_weights)
    model: Any = trained.model
    folder = args.output_dir or trained.source.parent / "analysis"
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{trained.settings['model']}, epoch {trained.epoch}"
    statistics, entropies, suppression = AttentionStatistics(), _Entropies(), _Suppression(model)
    shown: list[Tensor] = []  # one batch of one image each
    for images in _batches(trained, args, world):
        shown += images[: args.pictures - len(shown)].split(1)
        statistics.update(model, images)
        tokens = tokens_before_attention(model, images)
        entropies.update(model, images, tokens)
        suppression.update(model, model.grid_of(images), tokens)
    heads = model.blocks[0].attn.num_heads
    if isinstance(model.blocks[0].attn, DiffEntropyAttention):
        title += f"; heads {heads} to {2 * heads - 1}: the second maps"
    written = [
        *_write_attention(folder, title, statistics, _diagonal(shown[0]), heads=heads),
        *entropies.write(folder),
        *(_draw_entropy(folder, trained, image, i) for i, image in enumerate(shown, 1)),
        *suppression.write(folder, title),
        *_write_rope(folder, title, model),
    ]
    for line in (*entropies.findings(), *suppression.findings()):
        print(line)
    print(f"wrote {', '.join(written)} to {folder}")
    return 0


def _batches(trained: TrainedModel, args: Flags, world: World) -> Iterator[Tensor]:
    """Normalized images (B, 3, H, W) on the device: from --image, or from the evaluation split."""
    if args.image:
        for file in find_images(args.image, args.max_images):
            yield trained.transform()(read_pixels(file)[None]).to(world.device)
        return
    dataset, _ = trained.dataset(args, world)
    size = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    for images, _ in trained.loader(dataset, world, limit=args.max_images, **size).epoch():
        yield images


def _diagonal(image: Tensor) -> float:
    """The image's diagonal in pixels, the upper limit of any attention distance."""
    return math.hypot(image.shape[-2], image.shape[-1])


def tokens_before_attention(model: ClearViT, images: Tensor) -> list[Tensor]:
    """The normalized tokens (B, 1 + N, D) that are the input of each block's attention."""
    with _kept_inputs(model) as kept, torch.no_grad():
        model(images)
    return kept


@contextmanager
def _kept_inputs(model: ClearViT) -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []
    hooks = [b.attn.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach())) for b in model.blocks]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


# ── attention ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_attention(
    folder: Path, title: str, statistics: AttentionStatistics, diagonal: float, heads: int
) -> list[str]:
    layers = list(statistics.layers.values())
    _write_csv(
        folder / "attention.csv",
        (
            {
                "block": block,
                "head": head % heads,
                "map": 1 + head // heads,
                "distance_px": f"{d:.4f}",
                "entropy": f"{e:.6f}",
            }
            for block, layer in enumerate(layers)
            for head, (d, e) in enumerate(zip(layer.distance.tolist(), layer.entropy.tolist(), strict=True))
        ),
    )
    draw_heads(
        [layer.distance.tolist() for layer in layers],
        folder / "attention_distance.png",
        title=title,
        label="mean attention distance, pixels",
        limits=(0, diagonal / 2),
    )
    draw_heads(
        [layer.entropy.tolist() for layer in layers],
        folder / "attention_entropy.png",
        title=title,
        label="attention entropy (1: uniform)",
        limits=(0, 1),
        digits=2,
    )
    return ["attention.csv", "attention_distance.png", "attention_entropy.png"]


# ── patch entropy ─────────────────────────────────────────────────────────────────────────────────────────────────


def pixels_of(model: ClearViT, images: Tensor) -> Tensor:
    """Pixel entropy (B, N), with the model's own number of bins if the model uses pixel entropy."""
    return (model.pixel_entropy or pixel_entropy)(images, model.patch_embed.patch_size)


class _Entropies:
    """Entropy of all patches of all images: of the pixels, then of the tokens before each block's attention."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def update(self, model: ClearViT, images: Tensor, tokens: Sequence[Tensor]) -> None:
        found = {"pixels": pixels_of(model, images)}
        found |= {f"tokens, block {i}": token_entropy(t[:, 1:]) for i, t in enumerate(tokens)}
        for name, entropy in found.items():
            self.values.setdefault(name, []).append(entropy.flatten().cpu())

    def rows(self) -> Iterator[dict[str, Any]]:
        for name, parts in self.values.items():
            e = torch.cat(parts)
            low, high = torch.quantile(e[:: max(1, len(e) // 100_000)], torch.tensor([0.05, 0.95])).tolist()
            yield {"source": name, "mean": float(e.mean()), "std": float(e.std()), "p5": low, "p95": high}

    def write(self, folder: Path) -> list[str]:
        _write_csv(
            folder / "patch_entropy.csv",
            ({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()} for row in self.rows()),
        )
        return ["patch_entropy.csv"]

    def findings(self) -> Iterator[str]:
        for row in self.rows():
            yield f"patch entropy of {row['source']}: mean {row['mean']:.3f}, 5th to 95th percentile " + (
                f"{row['p5']:.3f} to {row['p95']:.3f}"
            )


def _draw_entropy(folder: Path, trained: TrainedModel, image: Tensor, number: int) -> str:
    """Draw patch entropy over one image (1, 3, H, W): of its pixels, and of its tokens in the first and last block."""
    model: Any = trained.model
    grid = model.grid_of(image)
    tokens = tokens_before_attention(model, image)
    maps = {"pixels": pixels_of(model, image)[0].view(grid)}
    for block in dict.fromkeys((0, len(tokens) - 1)):
        maps[f"tokens, block {block}"] = token_entropy(tokens[block][0, 1:]).view(grid)
    picture = denormalize(image[0], trained.settings["mean"], trained.settings["std"])
    name = f"patch_entropy_{number}.png"
    shown = {title: heat.cpu() for title, heat in maps.items()}
    figure_of_maps(picture, shown, folder / name, title="patch entropy (1: maximum)")
    return name


# ── suppression ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Suppression:
    """How much of conv(S) comes from tokens that are not neighbors in the image: row ends and the class token."""

    def __init__(self, model: ClearViT) -> None:
        self.attentions = [b.attn for b in model.blocks if isinstance(b.attn, SuppressionAttention)]
        self.wrapped = [torch.zeros(a.num_heads) for a in self.attentions]  # Σ of squares
        self.whole = [torch.zeros(a.num_heads) for a in self.attentions]
        self.scores = [torch.zeros(a.num_heads) for a in self.attentions]

    @torch.no_grad()
    def update(self, model: ClearViT, grid: Grid, tokens: Sequence[Tensor]) -> None:
        """tokens: the result of `tokens_before_attention` for images with this grid."""
        ropes = [None] * len(tokens) if model.rope is None else model.rope(grid)
        for i, attn in enumerate(self.attentions):
            q, k, _ = attn.project(tokens[i], ropes[i])
            S = q @ k.transpose(-2, -1) * attn.head_dim**-0.5
            whole, wrapped = convolutions(S, attn.kernel, grid)
            for sums, values in ((self.whole, whole), (self.wrapped, wrapped), (self.scores, S)):
                sums[i] += values.square().sum((0, 2, 3)).cpu()

    def shares(self) -> list[Tensor]:
        """‖wrapped part of conv(S)‖ / ‖conv(S)‖ for each head of each block, 0 to about 1."""
        return [(part / whole.clamp_min(1e-12)).sqrt() for part, whole in zip(self.wrapped, self.whole, strict=True)]

    def write(self, folder: Path, title: str) -> list[str]:
        if not self.attentions:
            return []
        shares, kernels = self.shares(), [attn.kernel.detach().cpu() for attn in self.attentions]
        _write_csv(
            folder / "suppression_kernels.csv",
            (
                {
                    "block": block,
                    "head": head,
                    "query": f"i{a - 1:+d}",
                    "key": f"j{b - 1:+d}",
                    "weight": f"{float(kernel[head, a, b]):.6f}",
                    "conv_to_scores": f"{float((self.whole[block] / self.scores[block]).sqrt()[head]):.6f}",
                    "wrapped_share": f"{float(shares[block][head]):.6f}",
                }
                for block, kernel in enumerate(kernels)
                for head in range(len(kernel))
                for a in range(3)
                for b in range(3)
            ),
        )
        _draw_kernels(folder / "suppression_kernels.png", kernels, title)
        return ["suppression_kernels.csv", "suppression_kernels.png"]

    def findings(self) -> Iterator[str]:
        if self.attentions:
            size = torch.stack([(w / s).sqrt() for w, s in zip(self.whole, self.scores, strict=True)])
            wrapped = torch.stack(self.shares())
            yield (
                f"suppression: ‖conv(S)‖ is {100 * float(size.mean()):.0f}% of ‖S‖ (mean over blocks and heads); "
                f"its part across row ends and the class token has {100 * float(wrapped.mean()):.0f}% of ‖conv(S)‖"
            )


def convolutions(S: Tensor, kernel: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """conv(S), and its part from tokens that are not neighbors in the image; S (B, h, 1 + N, 1 + N)."""
    whole = F.conv2d(S, kernel[:, None], padding=1, groups=len(kernel))
    token = torch.arange(S.shape[-1], device=S.device)
    row = (token - 1).div(grid[1], rounding_mode="floor")  # of the image; −1 for the class token
    within = torch.zeros_like(S)
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            shifted = F.pad(S, (1, 1, 1, 1))[..., 1 + a : 1 + a + len(token), 1 + b : 1 + b + len(token)]
            stays_a, stays_b = (F.pad(row, (1, 1), value=-2)[1 + o : 1 + o + len(token)] == row for o in (a, b))
            mask = (stays_a[:, None] & stays_b).to(S.dtype)
            within += kernel[:, 1 + a, 1 + b, None, None] * mask * shifted
    return whole, whole - within


def _draw_kernels(path: Path, kernels: Sequence[Tensor], title: str) -> None:
    """One 3 × 3 plot per head (columns) and block (rows)."""
    from matplotlib.figure import Figure

    heads = len(kernels[0])
    figure = Figure(figsize=(1.6 + 1.25 * heads, 1.2 + 1.2 * len(kernels)), layout="constrained")
    axes = figure.subplots(len(kernels), heads, squeeze=False)
    most = max(float(k.abs().max()) for k in kernels)
    for block, kernel in enumerate(kernels):
        for head in range(heads):
            ax = axes[block, head]
            image = ax.imshow(kernel[head].numpy(), cmap=CENTERED, vmin=-most, vmax=most)
            for a in range(3):
                for b in range(3):
                    value = float(kernel[head, a, b])
                    ax.text(
                        b,
                        a,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=6,
                        color="white" if abs(value) > 0.6 * most else "black",
                    )
            last, first = block == len(kernels) - 1, head == 0
            ax.set_xticks(range(3), ("j−1", "j", "j+1") if last else ("",) * 3, fontsize=7)
            ax.set_yticks(range(3), ("i−1", "i", "i+1") if first else ("",) * 3, fontsize=7)
            if block == 0:
                ax.set_title(f"head {head}", fontsize=8)
            if first:
                ax.set_ylabel(f"block {block}", fontsize=8)
    figure.colorbar(image, ax=axes.ravel().tolist(), label="weight subtracted from the score of (i, j)")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)


# ── rotary position embedding ─────────────────────────────────────────────────────────────────────────────────────


def _write_rope(folder: Path, title: str, model: ClearViT) -> list[str]:
    if model.rope is None:
        return []
    freqs = model.rope.freqs.detach().cpu()  # (2, depth or 1, h or 1, d/2)
    _write_csv(
        folder / "rope_frequencies.csv",
        (
            {
                "block": block,
                "head": head,
                "pair": pair,
                "frequency_x": f"{float(x):.6f}",
                "frequency_y": f"{float(y):.6f}",
            }
            for block in range(freqs.shape[1])
            for head in range(freqs.shape[2])
            for pair, (x, y) in enumerate(freqs[:, block, head].T)
        ),
    )
    _draw_frequencies(folder / "rope_frequencies.png", freqs, title)
    return ["rope_frequencies.csv", "rope_frequencies.png"]


def _draw_frequencies(path: Path, freqs: Tensor, title: str) -> None:
    """One panel per block; each channel pair is a point in the plane of its two frequencies."""
    from matplotlib.figure import Figure

    depth, heads = freqs.shape[1:3]
    columns = min(4, depth)
    rows = math.ceil(depth / columns)
    figure = Figure(figsize=(2.6 * columns + 1.4, 2.6 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    most = 1.1 * float(freqs.abs().max())
    for ax in axes[depth:]:
        ax.axis("off")
    for block, ax in enumerate(axes[:depth]):
        for head in range(heads):
            x, y = freqs[:, block, head]
            ax.plot(x.numpy(), y.numpy(), "o", markersize=3, color=f"C{head}", label=f"head {head}")
        ax.add_artist(_circle())
        ax.set(xlim=(-most, most), ylim=(-most, most), aspect="equal")
        ax.set_title(f"block {block}", fontsize=9)
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    figure.supxlabel("frequency along x, radians per patch", fontsize=9)
    figure.supylabel("frequency along y", fontsize=9)
    figure.suptitle(f"{title}; dashed: the fastest initial frequency", fontsize=9)
    figure.savefig(path, dpi=150)


def _circle() -> Any:
    from matplotlib.patches import Circle

    return Circle((0, 0), 1.0, fill=False, linestyle="--", color="gray", lw=0.8)


def _write_csv(path: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    table = list(rows)
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    sys.exit(main())

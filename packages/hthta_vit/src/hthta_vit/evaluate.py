"""Evaluate an HTHTA-ViT++ (original: evaluate.py): accuracy, precision, recall, F1, FAP, robustness.

    uv run hthta-vit-evaluate --model_path checkpoints/RUN/best.pth [--tta] [--robustness]

Writes report.txt, report.json and confusion_matrix.png.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hthta_vit.focus import attention_map
from hthta_vit.recipe import RECIPE
from hthta_vit.robustness import disturbances, disturbed
from vit_core.commands.trained_model import AmpFlags, CheckpointFlags, ImageFlags, TrainedModel, load_trained
from vit_core.explain import measure_focus
from vit_core.flags import command, flag, parse
from vit_core.tasks.class_report import confusion_picture, summarize
from vit_core.training.distributed import World, pick_device
from vit_core.training.precision import Precision, choose_precision
from vit_core.training.run_folder import environment


@dataclass(frozen=True, kw_only=True)
class Flags(CheckpointFlags, ImageFlags, AmpFlags):
    """Evaluate a checkpoint of HTHTA-ViT++."""

    tta: bool = flag(False, "average predictions over the image and its horizontal flip")
    robustness: bool = flag(False, "also measure accuracy under noise and occlusion")
    fap: bool = flag(True, "measure the Focused Attention Percentage")
    output_dir: Path | None = flag(
        None, "folder for the reports (default: evaluation_DATASET in the checkpoint's folder)", metavar="DIR"
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Flags, argv, "hthta-vit-evaluate")
    world = World(0, 1, pick_device(args.device))
    trained = load_trained(RECIPE, args.checkpoint, world.device, raw_weights=args.raw_weights)
    dataset, data = trained.dataset(args, world)
    folder = args.output_dir or trained.source.parent / f"evaluation_{data.dataset}"
    folder.mkdir(parents=True, exist_ok=True)
    loader = trained.loader(dataset, world, batch_size=args.batch_size, num_workers=args.num_workers)
    precision = choose_precision(args.amp, world.device)

    def predict(batches: Iterable[tuple[Tensor, Tensor]], what: str) -> tuple[Tensor, Tensor]:
        shown = tqdm(batches, what, len(loader), leave=False, disable=not sys.stderr.isatty(), unit=" batches")
        return predictions(trained, shown, precision, tta=args.tta)

    logits, targets = predict(loader.epoch(), "evaluate")
    names = dataset.class_names
    summary = summarize(logits, targets, names)
    record: dict[str, Any] = {
        "model": trained.settings["model"],
        "checkpoint": args.checkpoint,
        "dataset": data.dataset,
        "tta": args.tta,
        **summary,
    }
    lines = [
        f"{trained.settings['model']} on {data.dataset}, {summary['num_images']:,} images"
        + (", averaged over the image and its horizontal flip" if args.tta else ""),
        f"Accuracy:    {summary['acc1']:.2f}% (top-5 {summary['acc5']:.2f}%), loss {summary['loss']:.4f}",
        f"Precision:   {summary['precision']:.2f}%   Recall: {summary['recall']:.2f}%   F1: {summary['f1']:.2f}%"
        "   (macro means)",
    ]
    if args.fap:
        focus = measure_focus(trained.model, loader, attention_map)
        record["fap"] = {k: None if v != v else v for k, v in dataclasses.asdict(focus).items()}  # JSON has no NaN
        lines.append(str(focus))
    if args.robustness:
        record["robustness"] = {"none": summary["acc1"]}
        lines.append(f"{'corruption':<28} accuracy (change)")
        for name, disturb in disturbances(dataset.mean, dataset.std).items():
            acc1 = summarize(*predict(disturbed(loader, disturb), name), names)["acc1"]
            record["robustness"][name] = acc1
            lines.append(f"{name:<28} {acc1:6.2f}%  ({acc1 - summary['acc1']:+.2f})")
    text = "\n".join(lines)
    print(text)
    (folder / "report.txt").write_text(f"{text}\n\n{record.pop('text')}")
    (folder / "report.json").write_text(json.dumps(record | {"environment": environment()}, indent=2) + "\n")
    confusion_picture(logits, targets, names, folder / "confusion_matrix.png")
    print(f"report.txt, report.json and confusion_matrix.png are in {folder}")
    return 0


@torch.inference_mode()
def predictions(
    trained: TrainedModel, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision, *, tta: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (n, C) and classes (n,) of all batches, on the CPU.

    tta: average the probabilities over the image and its horizontal flip, as in the original's notebook.
    """
    scores, labels = [], []
    for images, targets in batches:
        with precision.autocast():
            views = [images, images.flip(-1)] if tta else [images]
            probabilities = [trained.model(view).float().log_softmax(1) for view in views]
        scores.append(torch.stack(probabilities).logsumexp(0).sub(torch.tensor(len(views)).log()).cpu())
        labels.append(targets.cpu())
    return torch.cat(scores), torch.cat(labels)


if __name__ == "__main__":
    sys.exit(main())

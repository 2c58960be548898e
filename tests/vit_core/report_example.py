"""An example of results.json with everything that the page can be asked to show. It names no real paper."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COMMIT, MACHINE = "2f55610abcde", "x86_64, 2 cores, 2 torch threads"


def results(folder: Path) -> dict[str, Any]:
    """Two papers, forty claims with every verdict; the pictures are drawn into `folder`."""
    return {
        "format": 1,
        "state": "finished",
        "command": "uv run reproduce --paper toyvit",
        "preset": "micro",
        "started": "2026-11-21 23:50:00",
        "finished": "2026-11-21 23:55:12",
        "seconds": 312.4,
        "environment": {
            "command": ["reproduce", "--papers", "toyvit", "--preset", "micro"],
            "python": "3.11.7",
            "versions": {"torch": "2.15.0", "torchvision": "0.30.0", "timm": "1.0.22", "numpy": "2.4.6"},
            "git_commit": COMMIT,
            "machine": MACHINE,
            "gpu": None,
            "date": "2026-11-21 23:50:01",
        },
        "broken": {},
        "papers": [
            paper(
                "toyvit",
                "ToyViT: windows, dilated scales and a bank of global tokens",
                ("dense", "windows", "windows + dilated scales", "all four", "all four, no bank"),
                folder,
                claims=26,
            ),
            paper(
                "slimvit",
                "SlimViT: attention that ignores what falls below a learned threshold",
                ("ViT", "SlimViT", "SlimViT, soft threshold"),
                folder,
                claims=14,
                seeds=(42, 43, 44),
            ),
        ],
        "comparison": comparison(),
    }


def comparison() -> dict[str, Any]:
    heads = [
        "paper",
        "model",
        "parameters",
        "top-1, %",
        "top-5, %",
        "images/s",
        "GFLOPs",
        "ms/image",
        "sparsity",
        "deletion",
        "insertion",
        "pointing game, %",
    ]
    return {
        "caption": "The row that stands for each paper, on the same 360 images and the same machine. Deletion: "
        "lower is better; insertion: higher is better.",
        "heads": heads,
        "rows": [
            ["ToyViT", "toyvit_micro", 302402, 93.06, 99.72, 1249.3, 0.0213, 0.8, 0.0, 0.2417, 0.7031, 71.4],
            ["SlimViT", "slimvit_micro", 142026, 91.39, 99.44, 2981.0, 0.0098, 0.335, 0.62, 0.3104, 0.655, 64.0],
            ["no paper", "dense_micro", 99018, 90.0, 99.2, 10240.5, 0.0097, 0.3, "—", "—", "—", "—"],
        ],
    }  # fmt: skip


def paper(
    name: str, title: str, rows: Sequence[str], folder: Path, claims: int, seeds: Sequence[int] = (42,)
) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "model": f"{name}_micro",
        "idea": "An ordinary Vision Transformer lets every patch of the image attend to every other one, which is slow "
        "and blurs what is local. This paper gives each block several cheaper attentions side by side and learns how "
        "to weigh them. A small bank of tokens carries what is global from block to block.",
        "source": "Seed repository “example”, 2025, README and two scripts; MIT license.",
        "citation": f"@misc{{{name}2025,\n  title  = {{{title}}},\n  author = {{Doe, Jane}},\n  year   = 2025,\n}}\n",
        "steps": [
            {"name": step, "state": "done", "seconds": seconds, "error": None}
            for step, seconds in (("train", 142.13), ("evaluate", 3.2), ("analyze", 9.9), ("claims", 21.0))
        ],
        "trainings": [
            {
                "name": "digits",
                "dataset": "digits",
                "rows": [training_row(name, n, label, seeds) for n, label in enumerate(rows)],
            }
        ],
        "analysis": {
            "findings": [
                "The global bank takes 31% of the attention in the last block, and 4% in the first.",
                "Without the bank, accuracy falls by 1.4 points; the spread over the seeds is 0.6.",
            ],
            "pictures": pictures(name, folder),
            "tables": [
                {
                    "title": "Share of each attention, by block",
                    "caption": "Softmax weights, mean over the images.",
                    "heads": ["block", "windows", "dilated", "channels", "bank"],
                    "rows": [[f"block {b}", 0.4 - b / 20, 0.2, 0.31 - b / 50, 0.09 + 7 * b / 100] for b in range(4)],
                }
            ],
        },
        "claims": [claim(n, name) for n in range(claims)],
    }


def training_row(name: str, number: int, label: str, seeds: Sequence[int]) -> dict[str, Any]:
    runs = []
    for place, seed in enumerate(seeds):
        curve = [
            {
                "epoch": e,
                "train_loss": 2.2 / e,
                "train_acc1": 100 - 80 / e,
                "val_loss": 2.1 / e,
                "val_acc1": round(95 - 2.1 * number - (62 + 3 * number + 5 * place) / e**1.3, 2),
            }
            for e in range(1, 9)
        ]
        runs.append({"seed": seed, "epochs": 8, "acc1": curve[-1]["val_acc1"], "acc5": 99.17, "curve": curve})
    command = f"uv run {name}-train --model micro --epochs 8 --model-kwargs variant={number} --seed {seeds[0]}"
    return {
        "label": label,
        "model": f"{name}_micro",
        "command": command,
        "parameters": 142026 + 31007 * number,
        "seeds": runs,
    }


def claim(number: int, name: str = "toyvit", **fields: Any) -> dict[str, Any]:
    """One of thirteen kinds of claims, in turn; `fields` override theirs."""
    measured = {
        "what": "measured by this run",
        "by": "ours",
        "command": "reproduce claims",
        "commit": COMMIT,
        "date": "2026-11-21",
        "machine": MACHINE,
        "seed": 0,
        "results": "measured by this run",
        "interval": None,
    }
    recorded = {**measured, "commit": "b7f1f6b8a2ce", "seed": [42, 43, 44], "results": f"results/{name}/cifar10.csv"}
    command = f"uv run {name}-train --model tiny --dataset cifar100 --download --epochs 300 --batch-size 256 --lr 1e-3"
    setting = {"name": "full", "what": "CIFAR-100, 224×224, 300 epochs, batch 256", "counts": "the published images"}
    place = "Table III; experiments/flowers/vit_baseline/1_visualizations/2_inverted_attention_of_the_dense_model.txt"
    evidence = {
        "where": place,
        "says": "The recalls by class have the mean 96.8.",
        "value": 96.8,
        "check": None,
        "commit": None,
        "command": None,
    }
    table = [
        {"row": "Tiny", "column": "depth", "claimed": 12, "found": 12, "verdict": "holds"},
        {"row": "Tiny", "column": "M", "claimed": 2.47, "found": 13.05, "verdict": "fails"},
    ]
    kinds: list[dict[str, Any]] = [
        {
            "statement": "The tiny model has 2.47 million parameters.",
            "claimed": 2.47,
            "unit": "M",
            "allowance": 0.005,
            "verdict": "holds if",
            "condition": "the depth is 2, not 12",
            "under": [["at depth 2", 2.469404]],
            "measured": {**measured, "value": 13.054564},
        },
        {
            "statement": "The bank holds 16 tokens.",
            "claimed": 16,
            "unit": "tokens",
            "verdict": "holds",
            "measured": {**measured, "value": 16},
        },
        {
            "statement": "The result does not depend on the batch.",
            "claimed": True,
            "verdict": "holds",
            "measured": {**measured, "value": True},
            "note": "In training, samples share what is written to the bank.",
        },
        {
            "statement": "Top-1 on CIFAR-100 after 300 epochs.",
            "claimed": [78.0, 80.0],
            "unit": "%",
            "verdict": "not run",
            "comparison": "between",
            "cost": "gpu-hours",
            "setting": setting,
            "check": "trains",
            "how": "Train with the published recipe and evaluate the best checkpoint.",
            "command": command,
            "near": [{**recorded, "what": "seven epochs of CIFAR-10", "value": 62.2}],
        },
        {
            "statement": "Inference is at least 2.5 times as fast as the dense model.",
            "claimed": 2.5,
            "unit": "×",
            "comparison": "at least",
            "verdict": "fails",
            "cost": "cpu-minutes",
            "command": f"uv run {name}-bench",
            "under": [["at 448×448", 1.9]],
            "measured": {**recorded, "seed": None, "value": 1.3127},
        },
        {
            "statement": "Accuracy on the digits.",
            "claimed": 93.1,
            "unit": "% top-1",
            "allowance": 0.5,
            "verdict": "undecided",
            "reason": "the interval includes both agreeing and disagreeing values",
            "cost": "cpu-minutes",
            "command": f"uv run {name}-train --epochs 8",
            "measured": {**recorded, "by": "original", "value": [92.78, 93.06, 93.33], "interval": [92.37, 93.74]},
        },
        {
            "statement": "The share of zero weights stays below one in a million.",
            "claimed": 1e-6,
            "comparison": "below",
            "verdict": "holds",
            "measured": {**measured, "value": 2.13e-7},
        },
        {
            "statement": "An epoch takes 25 s on an RTX 3060.",
            "claimed": 25,
            "unit": "s",
            "comparison": "at most",
            "verdict": "cannot be run",
            "cost": "impossible",
            "why": "That card is not to be had here.",
            "reason": "That card is not to be had here.",
        },
        {
            "statement": "Every parameter gets a gradient.",
            "claimed": True,
            "verdict": "fails",
            "measured": {**measured, "value": False},
            "under": [["with --bank-update functional", True]],
        },
        {
            "statement": "Attention weights sum to one.",
            "claimed": 0.0,
            "comparison": "at most",
            "unit": "largest difference from 1",
            "allowance": 1e-6,
            "verdict": "error",
            "error": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (196x64 and 128x64)",
        },
        {
            "statement": "98.7% on CIFAR-10.",
            "claimed": 98.7,
            "unit": "%",
            "verdict": "contradicted",
            "found": 96.8,
            "reason": place,
            "evidence": [evidence],
            "setting": setting,
            "cost": "gpu-hours",
            "command": command,
        },
        {
            "statement": "The sizes of the models.",
            "claimed": {"Tiny": {"depth": 12, "M": 2.47}},
            "verdict": "fails",
            "table": table,
            "measured": {**measured, "value": {"Tiny": {"depth": 12, "M": 13.05}}},
        },
        {
            "statement": "RoPE gains 5.2 points.",
            "claimed": 5.2,
            "unit": "points",
            "verdict": "scaled: agrees",
            "reason": "micro, CIFAR-10",
            "cost": "gpu-hours",
            "command": command,
            "setting": setting,
            "scaled": [{"row": "rope", "mean": 3.2, "low": 2.4, "high": 4.1, "p": 0.002, "n": 4}],
        },
    ]
    common = {
        "id": f"claim-{number}",
        "source": f"README, table {number % 4 + 1}",
        "unit": "",
        "comparison": "about",
        "setting": None,
        "allowance": 0.0,
        "cost": "instant",
        "check": "count_parameters",
        "parity": "",
        "kind": ("result", "property", "size", "recipe", "arithmetic")[number // 3 % 5],
        "why": "",
        "reason": "",
        "how": "Builds the model and counts.",
        "command": None,
        "condition": "",
        "under": [],
        "near": [],
        "evidence": [],
        "table": [],
        "scaled": [],
        "measured": None,
        "also_measured": [],
        "note": "",
        "error": "",
    }
    entry = {**common, **kinds[number % len(kinds)], **fields}
    value = None if entry["table"] else (entry["measured"] or {}).get("value")
    return {"found": value, **entry}


def pictures(name: str, folder: Path) -> list[dict[str, str]]:
    """A wide picture and two that stand beside each other."""
    said = (("bank", "Where the bank looks", (9.0, 3.0)), ("weights", "Weights of the attentions", (5.0, 3.6)),
            ("map", "Attention of the class token", (5.0, 3.6)))  # fmt: skip
    shown = []
    for (file, title, size), shift in zip(said, itertools.count()):
        figure = Figure(figsize=size, layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1, 2, 3], [shift, 2, 1, 3], "-o")
        axis.set(xlabel="block", ylabel="share")
        path = folder / name / "pictures" / f"{file}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
        caption = "Mean over 360 validation images; the line should rise where the paper says so."
        shown.append({"file": f"{name}/pictures/{file}.png", "title": title, "caption": caption})
    return shown

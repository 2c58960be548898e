"""What a paper's package provides, and how installed ones are found: the entry-point group `vit_core.papers`.

An entry point names a `Paper`: `my_paper = "my_paper.paper:PAPER"` in the package's pyproject.toml. Loading it imports
the package, which registers its models with timm. docs/adding_a_paper.md is the guide.
"""

import importlib.metadata
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_core.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vit_core.commands.study import Measurement, Subject
    from vit_core.ledger.claims import Value

GROUP = "vit_core.papers"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One comparison: rows trained with the same recipe and measured, each with every seed."""

    name: str  # "digits", "CIFAR-100"; also used as a file name
    recipe: Recipe
    rows: Mapping[str, Mapping[str, Any]]  # label -> flags, as `settings.parse` returns them
    compared: Sequence[str] = ()  # the rows that represent this paper in comparisons with other papers
    seconds: float = 60.0  # per row on two CPU cores; only the initial estimate of the progress display
    images: int = 1437  # training images, for estimating the run time
    download_gb: float = 0.0  # download size of the dataset
    disk_gb: float = 0.0  # unpacked size
    where: str = ""  # how to get the dataset if it cannot be downloaded automatically


class Picture(NamedTuple):
    file: str  # PNG in the folder passed to `analyze`
    title: str
    caption: str  # what is shown, and what to look for


class Table(NamedTuple):
    title: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Results of a paper's own analysis of its trained models."""

    findings: Sequence[str] = ()  # one sentence each, with its numbers
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A model, its baseline, and the largest acceptable time ratios on a CPU."""

    model: str  # timm model name
    against: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    against_kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 8
    inference: float | None = None  # target: time per image ≤ this × the baseline's
    training: float | None = None


class Figure(NamedTuple):
    """A result of a paper's own benchmark, and its target on a CPU."""

    what: str
    value: float
    target: float
    at_least: bool = False  # the target is a minimum; otherwise a maximum


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper's package: everything that `reproduce` needs."""

    package: str  # import name; contains claims.yaml
    title: str
    idea: str  # three sentences, for readers who have not read the paper
    source: str  # origin and license
    citation: str  # BibTeX
    model: str  # timm name of its smallest model
    micro: Sequence[Training]  # on the built-in digits dataset, in about a minute
    published: Sequence[Training]  # the paper's own recipes on its own datasets
    # (rows of the first training -> model of the first seed, all its measurements, a folder for pictures)
    analyze: Callable[[Mapping[str, "Subject"], Sequence["Measurement"], Path], Analysis]
    checks: Mapping[str, Callable[[], "Value"]]  # name in an instant claim's `check` -> function
    benchmarks: Sequence[Benchmark] = ()
    further_benchmarks: Callable[["torch.device", int], Sequence[Figure]] | None = None  # (device, rounds)
    # (model, images) -> (B, H, W), for the Focused Attention Percentage
    attention_map: Callable[["nn.Module", "torch.Tensor"], "torch.Tensor"] | None = None

    @property
    def claims_file(self) -> Path:
        return Path(str(importlib.resources.files(self.package))) / "claims.yaml"

    def trainings(self, preset: str) -> Sequence[Training]:
        return self.micro if preset == "micro" else self.published


def load_papers() -> tuple[dict[str, Paper], dict[str, Exception]]:
    """Every installed paper by entry-point name, and the errors of those that failed to load."""
    papers: dict[str, Paper] = {}
    broken: dict[str, Exception] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        try:
            paper = entry.load()
            if not isinstance(paper, Paper):
                raise TypeError(f"{entry.value} is not a vit_core.papers.Paper")
            papers[entry.name] = paper
        except Exception as e:  # one broken paper must not disable the others
            broken[entry.name] = e
    return papers, broken

"""What a paper brings to the workspace, and how the installed ones are found: the entry-point group `vit_core.papers`.

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
    """One comparison: rows that are trained under the same recipe, each with every seed, and measured."""

    name: str  # "digits", "CIFAR-100": a file name, too
    recipe: Recipe
    rows: Mapping[str, Mapping[str, Any]]  # label -> what its flags say, as `Recipe.parse` gives them
    compared: Sequence[str] = ()  # the rows that stand for the paper beside other papers
    seconds: float = 60.0  # of one row on two CPU cores: only what the progress display starts from
    images: int = 1437  # to train on, for the estimate of what the run will take
    download_gb: float = 0.0  # of its dataset, where it must be had first
    disk_gb: float = 0.0  # unpacked
    where: str = ""  # how to get it, if no download does


class Picture(NamedTuple):
    file: str  # PNG in the folder that `analyse` was given
    title: str
    caption: str  # what is shown, and what to look for


class Table(NamedTuple):
    title: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a paper's signature analysis of its trained models gives."""

    findings: Sequence[str] = ()  # a sentence each, with its figures
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A model beside the one that it is to be compared with, and the most that the ratios may be on a CPU."""

    model: str  # timm's name
    against: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    against_kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 8
    inference: float | None = None  # target: time an image ≤ this × the baseline's
    training: float | None = None


class Figure(NamedTuple):
    """What a benchmark of the paper's own gives, and what it is to reach on a CPU."""

    what: str
    value: float
    target: float
    at_least: bool = False  # else at most


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper's package. Everything that `reproduce` shows and does comes from here."""

    package: str  # import name; claims.yaml lies in it
    title: str
    idea: str  # three sentences, for who has not read the paper
    source: str  # where it comes from, and under which licence
    citation: str  # BibTeX
    model: str  # timm's name of its smallest model
    micro: Sequence[Training]  # on the embedded digits, in about a minute
    published: Sequence[Training]  # the paper's own recipes on its own datasets
    # (rows of the first training -> model of the first seed, every measurement of it, a folder for pictures)
    analyse: Callable[[Mapping[str, "Subject"], Sequence["Measurement"], Path], Analysis]
    checks: Mapping[str, Callable[[], "Value"]]  # what `check` of an instant claim names
    benchmarks: Sequence[Benchmark] = ()
    further_benchmarks: Callable[["torch.device", int], Sequence[Figure]] | None = None  # (device, rounds)
    attention_map: Callable[["nn.Module", Any], Any] | None = None  # (model, images) -> (B, H, W), for FAP

    @property
    def claims_file(self) -> Path:
        return Path(str(importlib.resources.files(self.package))) / "claims.yaml"

    def trainings(self, preset: str) -> Sequence[Training]:
        return self.micro if preset == "micro" else self.published


def load_papers() -> tuple[dict[str, Paper], dict[str, Exception]]:
    """Every installed paper by the name of its entry point, and what kept others from loading."""
    papers: dict[str, Paper] = {}
    broken: dict[str, Exception] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        try:
            paper = entry.load()
            if not isinstance(paper, Paper):
                raise TypeError(f"{entry.value} is no vit_core.papers.Paper")
            papers[entry.name] = paper
        except Exception as e:  # one paper's mistake must not take the others away
            broken[entry.name] = e
    return papers, broken

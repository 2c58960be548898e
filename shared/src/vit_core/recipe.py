"""What a paper defines for the shared commands: its models, presets and flags."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vit_core import flags
from vit_core.commands import evaluate as evaluate_command
from vit_core.commands import train as train_command
from vit_core.tasks.classification import LossFunction, classification_loss


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For papers without flags of their own."""


def start_as_built(model: nn.Module, start: Any) -> None:
    """Default of `Recipe.initialize`: keep the model's random initialization."""


def nothing_to_do(model: nn.Module, progress: float) -> None:
    """Default of `Recipe.before_step`: only the optimizer changes the model."""


def nothing_to_say(model: nn.Module) -> str:
    """Default of `Recipe.describe`: no extra line in the training log."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A paper's models, presets and flags, and its commands `train` and `evaluate`, which scripts name."""

    paper: str  # name in the evaluation output: "QAViT"
    description: str
    command: str  # console scripts are `<command>-train` and `<command>-evaluate`
    models: Mapping[str, str]  # value of --model -> timm model name
    model_groups: tuple[str, ...] = ()  # further values of --model, which the paper's script expands to some of these
    presets: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # given flags -> values, including `model` and `dataset`
    options: type = NoOptions  # dataclass of flags that go to timm.create_model where they are not None
    start_options: type = NoOptions  # dataclass of flags about where a new run's weights come from
    initialize: Callable[[nn.Module, Any], None] = start_as_built  # (new model, start_options); not called on resume
    preset_names: tuple[str, ...] = ("published",)
    loss_function: LossFunction = classification_loss
    before_step: Callable[[nn.Module, float], None] = nothing_to_do  # (model, fraction of training done, 0 to 1)
    describe: Callable[[nn.Module], str] = nothing_to_say  # model after an epoch -> extra line of the training log
    aliases: Mapping[str, str] = field(default_factory=dict)  # the original's flag name -> ours: "data_dir"
    test_splits: Mapping[str, str] = field(default_factory=dict)  # dataset -> split that `evaluate` uses by default
    results_folder: str | None = None  # where `evaluate` writes its results by default; None: only to the screen
    configs: Path | None = None  # folder of the YAML files that --config finds by name
    translate_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict  # the original's config file -> our flags

    def short_name(self, model: str) -> str | None:
        """The value of --model for a timm model name; None if the model is not the paper's."""
        return {name: short for short, name in self.models.items()}.get(model)

    @flags.command
    def train(self, argv: Sequence[str] | None = None) -> int:
        """The train command. argv: flags (default: the process's). Returns the exit code."""
        return train_command.run(self, argv)

    @flags.command
    def evaluate(self, argv: Sequence[str] | None = None) -> int:
        """The evaluate command. argv: flags (default: the process's). Returns the exit code."""
        return evaluate_command.run(self, argv)

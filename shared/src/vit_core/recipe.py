"""What a paper tells the shared commands: its models, its presets, its own flags; and how a run is put together.

A value of a run comes from, in rising order: the default of its flag, the paper's preset for this model and dataset,
the checkpoint that is resumed, the command line.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import yaml
from torch import nn

from vit_core.cli import ArgumentParser, add_flags, build
from vit_core.config import DataConfig, OutputConfig, TrainConfig
from vit_core.data import AugmentConfig, Dataset, load_dataset
from vit_core.distributed import World, broadcast
from vit_core.errors import UserError
from vit_core.trainer import LossFunction, classification_loss


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Flags of a paper that has none."""


def start_as_built(model: nn.Module, start: Any) -> None:
    """A new run of a paper without weights to start from: the model stays as it was initialised."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A paper, as `train_command.run` and `evaluate_command.run` need to know it."""

    paper: str  # as the result block names it: "QAViT"
    description: str
    command: str  # console scripts are `<command>-train` and `<command>-evaluate`
    models: Mapping[str, str]  # what --model says -> timm's name
    presets: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # given flags -> values, `model` and `dataset` included
    options: type = NoOptions  # dataclass of flags that go to timm.create_model where they are not None
    start_options: type = NoOptions  # dataclass of flags about where a new run's weights come from
    initialise: Callable[[nn.Module, Any], None] = start_as_built  # new model, start_options; never on resume
    preset_names: tuple[str, ...] = ("published",)
    loss_function: LossFunction = classification_loss

    def train_parser(self) -> ArgumentParser:
        parser = ArgumentParser(prog=f"{self.command}-train", description=self.description)
        self._add_model_flags(parser)
        add_flags(parser, self.start_options, "initial weights")
        parser.add_argument(
            "--preset", choices=self.preset_names, default=self.preset_names[0],
            help="hyperparameters that the flags below start from (default: %(default)s)",
        )  # fmt: skip
        add_flags(parser, DataConfig, "data")
        add_flags(parser, TrainConfig, "training")
        add_flags(parser, AugmentConfig, "augmentation")
        add_flags(parser, OutputConfig, "output")
        return parser

    def _add_model_flags(self, parser: ArgumentParser) -> None:
        add_flags(parser, self.options, "model")
        parser.add_argument("--model", choices=tuple(self.models), help="which of the paper's models")
        parser.add_argument(
            "--model-kwargs", nargs="+", metavar="NAME=VALUE", default=[],
            help="further arguments of the model, such as depth=2",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with all its values settled."""

    model: str  # timm's name
    model_kwargs: dict[str, Any]
    start: dict[str, Any]  # fields of the recipe's start_options
    data: DataConfig
    train: TrainConfig
    augment: AugmentConfig

    def settings(self, dataset: Dataset, img_size: int) -> dict[str, Any]:
        """What a checkpoint's `config` and config.json hold: plain values, enough to build the model and the data."""
        return {
            "model": self.model, "model_kwargs": self.model_kwargs, "start": self.start, "img_size": img_size,
            "num_classes": dataset.num_classes, "class_names": list(dataset.class_names),
            "mean": list(dataset.mean), "std": list(dataset.std), "data": dataclasses.asdict(self.data),
            "train": dataclasses.asdict(self.train), "augment": dataclasses.asdict(self.augment),
        }  # fmt: skip


def settle(recipe: Recipe, given: Mapping[str, Any], resumed: Mapping[str, Any] | None) -> Run:
    """Combine defaults, preset, resumed settings and flags. UserError for values that cannot be."""
    given = dict(given)
    kwargs = parse_model_kwargs(given.pop("model_kwargs", []))
    if given.get("model") is None:
        given.pop("model", None)
    earlier: dict[str, Any] = {}
    if resumed is not None:
        earlier = {**resumed["data"], **resumed["train"], **resumed["augment"]}
        short = {name: key for key, name in recipe.models.items()}.get(resumed["model"])
        if short is None or given.get("model", short) != short:
            raise UserError(
                f"--resume: the checkpoint is of {resumed['model']}, not of "
                f"{recipe.models.get(given.get('model', ''), recipe.paper)}"
            )
        earlier["model"] = short
        kwargs = {**resumed["model_kwargs"], **kwargs}
    values = {**recipe.presets({**earlier, **given}), **earlier, **given}
    start = dataclasses.asdict(build(recipe.start_options, values))
    if resumed is not None:
        unused = [name for name in start if name in given]
        if unused:
            raise UserError(f"--{unused[0].replace('_', '-')} is for a new run: --resume has its weights")
        start = resumed.get("start", {})
    names = {f.name for f in dataclasses.fields(recipe.options)}
    kwargs |= {k: v for k, v in given.items() if k in names and v is not None}
    build(recipe.options, {k: v for k, v in kwargs.items() if k in names})
    return Run(
        model=recipe.models[values["model"]],
        model_kwargs=kwargs,
        start=start,
        data=build(DataConfig, values),
        train=build(TrainConfig, values),
        augment=build(AugmentConfig, values),
    )


def parse_model_kwargs(words: list[str]) -> dict[str, Any]:
    """["depth=2", "dilation_factors=[1,2]"] -> {"depth": 2, "dilation_factors": [1, 2]}; values are YAML."""
    pairs = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"--model-kwargs takes NAME=VALUE, got {word!r}")
        try:
            pairs[name.replace("-", "_")] = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise UserError(f"--model-kwargs {word}: not a value: {e}") from e
    return pairs


def create_model(name: str, kwargs: Mapping[str, Any], num_classes: int, img_size: int | None) -> nn.Module:
    """The timm model. UserError for arguments that it does not take, or that cannot work together."""
    size = {} if img_size is None else {"img_size": img_size}
    try:
        return timm.create_model(name, **{**kwargs, **size, "num_classes": num_classes})
    except (TypeError, ValueError) as e:
        raise UserError(f"{name}: {e}") from e
    except RuntimeError as e:
        if "Unknown model" not in str(e):
            raise
        raise UserError(f"{name}: no model of that name is registered with timm") from e


def input_size(model: nn.Module) -> int:
    """Side in pixels of the square images that a timm model takes."""
    size = getattr(getattr(model, "config", None), "img_size", None) or model.pretrained_cfg["input_size"][-1]  # type: ignore[index]
    return int(size)


def load_images(config: DataConfig, img_size: int, world: World) -> Dataset:
    """The dataset of a run; one process downloads, the others wait for it. UserError for a wrong --num-classes."""

    def load() -> Dataset:
        return load_dataset(
            config.dataset, data_path=config.data_path, download=config.download and world.is_main, img_size=img_size,
            cache=config.cache,
        )  # fmt: skip

    dataset = load() if world.is_main or not config.download else None
    broadcast(None)
    if dataset is None:
        dataset = load()
    if config.num_classes is not None and config.num_classes != dataset.num_classes:
        raise UserError(
            f"--num-classes {config.num_classes}: the dataset {config.dataset} has {dataset.num_classes} classes"
        )
    return dataset

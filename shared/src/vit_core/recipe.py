"""What a paper defines for the shared commands (models, presets, flags), and how a run's settings are resolved.

Later sources override earlier ones: the flag's default, the paper's preset for this model and dataset, the resumed
checkpoint, the --config file, the command line.
"""

import argparse
import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vit_core.data import AugmentConfig, Dataset, load_dataset
from vit_core.errors import UserError
from vit_core.flags import ArgumentParser, add_flags, build, is_out_of_memory
from vit_core.plain_yaml import MOST_YAML, read_yaml
from vit_core.tasks.classification import LossFunction, classification_loss
from vit_core.training.config import DataConfig, OutputConfig, TrainConfig
from vit_core.training.distributed import World, broadcast, together


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For papers without flags of their own."""


def start_as_built(model: nn.Module, start: Any) -> None:
    """Default of `Recipe.initialise`: keep the model's random initialization."""


def nothing_to_do(model: nn.Module, progress: float) -> None:
    """Default of `Recipe.before_step`: only the optimizer changes the model."""


def nothing_to_say(model: nn.Module) -> str:
    """Default of `Recipe.describe`: no extra line in the training log."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `commands.train.run` and `commands.evaluate.run` need to know about a paper."""

    paper: str  # name in the evaluation output: "QAViT"
    description: str
    command: str  # console scripts are `<command>-train` and `<command>-evaluate`
    models: Mapping[str, str]  # value of --model -> timm model name
    model_groups: tuple[str, ...] = ()  # further values of --model, which the paper's script expands to some of these
    presets: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # given flags -> values, including `model` and `dataset`
    options: type = NoOptions  # dataclass of flags that go to timm.create_model where they are not None
    start_options: type = NoOptions  # dataclass of flags about where a new run's weights come from
    initialise: Callable[[nn.Module, Any], None] = start_as_built  # (new model, start_options); not called on resume
    preset_names: tuple[str, ...] = ("published",)
    loss_function: LossFunction = classification_loss
    before_step: Callable[[nn.Module, float], None] = nothing_to_do  # (model, fraction of training done, 0 to 1)
    describe: Callable[[nn.Module], str] = nothing_to_say  # model after an epoch -> extra line of the training log
    aliases: Mapping[str, str] = field(default_factory=dict)  # the original's flag name -> ours: "data_dir"
    test_splits: Mapping[str, str] = field(default_factory=dict)  # dataset -> split that `evaluate` uses by default
    configs: Path | None = None  # folder of the YAML files that --config finds by name
    translate_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict  # the original's config file -> our flags

    def parse(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """The given flags, which override those of the --config file. UserError for an invalid config file."""
        parser = self.train_parser()
        given = vars(parser.parse_args(argv))
        name = given.pop("config", None)
        if name is None:
            return given
        words = self._config_flags(name, {action.dest for action in parser._actions})
        parser.source = f"--config {name}"
        filed = vars(parser.parse_args(words))
        typed = given.get("model_kwargs", [])
        for key in parse_model_kwargs(typed):  # --model-kwargs dropout=0 overrides the file's dropout
            filed.pop(key, None)
        joined = {"model_kwargs": filed.get("model_kwargs", []) + typed} if typed else {}
        return filed | given | joined

    def _config_flags(self, name: str, known: set[str]) -> list[str]:
        """The config file's contents as command-line arguments."""
        shipped = self.configs / f"{name}.yaml" if self.configs else None
        file = shipped if shipped is not None and shipped.is_file() else Path(name)
        try:
            with file.open("rb") as f:
                text = f.read(MOST_YAML + 1)
        except FileNotFoundError:
            names = ", ".join(sorted(f.stem for f in self.configs.glob("*.yaml"))) if self.configs else "none"
            raise UserError(f"--config {name}: no such file; the built-in configs are: {names}") from None
        except OSError as e:
            raise UserError(f"--config {name}: {e.strerror}") from e
        try:
            values = read_yaml(text)
        except ValueError as e:
            raise UserError(f"--config {name}: not valid YAML: {e}") from e
        if not isinstance(values, dict):
            raise UserError(f"--config {name}: expected lines of the form 'flag: value'")
        try:
            values = self.translate_config(values)
        except (ValueError, TypeError) as e:
            raise UserError(f"--config {name}: {e}") from e
        words = []
        for key, value in values.items():
            key = str(key).replace("-", "_")
            if self.aliases.get(key, key) not in known or key in ("config", "help"):
                raise UserError(f"--config {name}: {key} is not a flag of {self.command}-train")
            flag = "--" + key.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif isinstance(value, dict):
                pairs = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
                words += [flag, *pairs] if pairs else []
            elif isinstance(value, list):
                words += [flag, *map(str, value)]
            elif value is not None:
                words.append(f"{flag}={value}")  # one argument: the value may begin with a hyphen
            if isinstance(value, list | dict) and any(str(v).startswith("-") for v in value):
                raise UserError(f"--config {name}: {key}: list items must not begin with a hyphen")
        return words

    def train_parser(self) -> ArgumentParser:
        parser = ArgumentParser(prog=f"{self.command}-train", description=self.description)
        self._add_model_flags(parser)
        add_flags(parser, self.start_options, "initial weights")
        others = (f"--{theirs}" for theirs, ours in self.aliases.items() if ours == "preset")
        parser.add_argument(
            "--preset", *others, dest="preset", choices=self.preset_names, default=argparse.SUPPRESS,
            help=f"preset that sets the defaults of the flags below (default: {self.preset_names[0]})",
        )  # fmt: skip
        parser.add_argument(
            "--config", metavar="FILE", default=argparse.SUPPRESS,
            help="YAML file of flags; command-line flags override it",
        )  # fmt: skip
        groups = {"data": DataConfig, "training": TrainConfig, "augmentation": AugmentConfig, "output": OutputConfig}
        for title, config in groups.items():
            add_flags(parser, config, title, self.aliases)
        return parser

    def _add_model_flags(self, parser: ArgumentParser) -> None:
        add_flags(parser, self.options, "model")
        parser.add_argument(
            "--model", *(f"--{theirs}" for theirs, ours in self.aliases.items() if ours == "model"), dest="model",
            choices=(*self.models, *self.model_groups), default=argparse.SUPPRESS, help="which of the paper's models",
        )  # fmt: skip
        parser.add_argument(
            "--model-kwargs", nargs="+", metavar="NAME=VALUE", default=argparse.SUPPRESS,
            help="additional model arguments, such as depth=2",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """The resolved settings of a run."""

    model: str  # timm model name
    model_kwargs: dict[str, Any]
    start: dict[str, Any]  # fields of the recipe's start_options
    data: DataConfig
    train: TrainConfig
    augment: AugmentConfig

    def settings(self, dataset: Dataset, img_size: int) -> dict[str, Any]:
        """Contents of a checkpoint's `config` and of config.json: plain values that define the model and the data."""
        return {
            "model": self.model, "model_kwargs": self.model_kwargs, "start": self.start, "img_size": img_size,
            "num_classes": dataset.num_classes, "class_names": list(dataset.class_names),
            "mean": list(dataset.mean), "std": list(dataset.std), "data": dataclasses.asdict(self.data),
            "train": dataclasses.asdict(self.train), "augment": dataclasses.asdict(self.augment),
        }  # fmt: skip


def settle(recipe: Recipe, given: Mapping[str, Any], resumed: Mapping[str, Any] | None) -> Run:
    """Combine defaults, preset, resumed settings and flags. UserError for invalid values."""
    given = dict(given)
    kwargs = parse_model_kwargs(given.pop("model_kwargs", []))
    earlier: dict[str, Any] = {}
    if resumed is not None:
        earlier = {**resumed["data"], **resumed["train"], **resumed["augment"]}
        short = {name: key for key, name in recipe.models.items()}.get(resumed["model"])
        if short is None or given.get("model", short) != short:
            raise UserError(
                f"--resume: this is a checkpoint of {resumed['model']}, not of "
                f"{recipe.models.get(given.get('model', ''), recipe.paper)}"
            )
        earlier["model"] = short
        kwargs = {**resumed["model_kwargs"], **kwargs}
    preset = recipe.presets({**earlier, **given})
    values = {**preset, **earlier, **given}
    start = dataclasses.asdict(build(recipe.start_options, values))
    if resumed is not None:
        earlier_start = resumed.get("start", {})
        unused = [name for name in start if name in given and given[name] != earlier_start.get(name)]
        if unused:
            raise UserError(
                f"--{unused[0].replace('_', '-')} applies to new runs only: --resume loads the checkpoint's weights"
            )
        start = earlier_start
    names = {f.name for f in dataclasses.fields(recipe.options)}
    if resumed is None:
        kwargs = {k: v for k, v in preset.items() if k in names and v is not None} | kwargs
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
            raise UserError(f"--model-kwargs expects NAME=VALUE, got {word!r}")
        try:
            value = read_yaml(text)
        except ValueError as e:
            raise UserError(f"--model-kwargs {word[:80]}: invalid value: {e}") from e
        name = name.replace("-", "_")
        if name in ("pretrained", "num_classes", *_READ_ELSEWHERE):
            raise UserError(
                f"--model-kwargs {name} is not allowed: it is not an argument of the architecture; "
                "see --help for the flags that set weights"
            )
        pairs[name] = value
    return pairs


# These make timm's create_model read another file or access the network.
_READ_ELSEWHERE = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_MOST_BLOCKS = 1000  # a model of a million narrow blocks would take hours to build, and then fail


def create_model(name: str, kwargs: Mapping[str, Any], num_classes: int, img_size: int | None) -> nn.Module:
    """Create a timm model. UserError for arguments that it does not accept or that are incompatible.

    With user-supplied arguments the model is run once on one image: timm builds some models that fail or output NaN.
    """
    size = {} if img_size is None else {"img_size": img_size}
    if ":" in name or not kwargs.keys().isdisjoint(_READ_ELSEWHERE):  # from an untrusted checkpoint
        raise UserError(
            f"{name}: the model's name and arguments must not name a weights file; use a checkpoint or --weights"
        )
    depth = kwargs.get("depth")
    if isinstance(depth, int) and depth > _MOST_BLOCKS:
        raise UserError(f"{name}: depth must be at most {_MOST_BLOCKS}, got {depth}")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch's, of layers without weights
            model = timm.create_model(name, **{**kwargs, **size, "num_classes": num_classes})
    except Exception as e:  # for unexpected arguments timm may raise anything
        if size and isinstance(e, TypeError) and "img_size" in str(e):  # a convolutional network takes any size
            return create_model(name, kwargs, num_classes, None)
        if "Unknown model" in str(e):
            raise UserError(f"{name}: no model of that name is registered with timm") from e
        if not kwargs and not size:  # not a user error
            raise
        raise UserError(f"{name}: {_reason(e)}") from e
    if (kwargs or size) and not any(p.is_meta for p in model.parameters()):
        _try(model, name, img_size)
    return model


def _try(model: nn.Module, name: str, img_size: int | None) -> None:
    """UserError unless the model outputs finite logits for an image."""
    was_training = model.training
    try:
        side = img_size or input_size(model)
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, 3, side, side))
        if logits.ndim != 2:
            raise ValueError(f"the output for one image has shape {tuple(logits.shape)}, expected (1, num_classes)")
        finite = bool(logits.isfinite().all())
    except Exception as e:
        raise UserError(f"{name} does not work with these arguments: {_reason(e)}") from e
    finally:
        model.train(was_training)
    if not finite:
        raise UserError(f"{name} outputs NaN or infinity with these arguments")


def _reason(error: Exception) -> str:
    return "out of memory" if is_out_of_memory(error) else str(error) or type(error).__name__


def input_size(model: nn.Module) -> int:
    """Side in pixels of the square input images of a timm model."""
    for part in (getattr(model, "config", None), getattr(model, "patch_embed", None)):  # an argument may have set it
        size = getattr(part, "img_size", None)
        if size is not None:
            return int(size[-1] if isinstance(size, tuple) else size)
    return int(model.pretrained_cfg["input_size"][-1])  # type: ignore[index]


def run_settings(checkpoint: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """The `config` of a checkpoint written by one of this project's runs. UserError for any other."""
    settings = checkpoint["config"]
    required = {
        "model": str, "model_kwargs": dict, "num_classes": int, "class_names": list, "img_size": int, "mean": list,
        "std": list, "data": dict, "train": dict, "augment": dict,
    }  # fmt: skip
    if (
        not isinstance(settings, dict)
        or not all(isinstance(settings.get(name), kind) for name, kind in required.items())
        or not all(isinstance(name, str) for name in settings["class_names"])
        or not all(isinstance(value, int | float) for value in (*settings["mean"], *settings["std"]))
        or (len(settings["class_names"]), len(settings["mean"]), len(settings["std"]))
        != (settings["num_classes"], 3, 3)
    ):
        raise UserError(
            f"{source} was not written by a run of this project (its config has missing or invalid entries); convert "
            "checkpoints of the original code with the paper's convert command"
        )
    return settings


def check_classes(settings: Mapping[str, Any], source: str | Path, dataset: Dataset, name: str) -> str | None:
    """UserError if the run of `settings` has a different number of classes; a note if only their names differ."""
    if settings["num_classes"] != dataset.num_classes:
        raise UserError(
            f"{source} was trained with {settings['num_classes']} classes; the dataset {name} has {dataset.num_classes}"
        )
    pairs = zip(settings["class_names"], dataset.class_names, strict=True)
    differ = [(ours, theirs) for ours, theirs in pairs if ours.lower() != theirs.lower()]
    if not differ:
        return None
    ours, theirs = differ[0]
    return f"note: {len(differ)} class names differ from those in training: for example {theirs!r} instead of {ours!r}"


def load_images(config: DataConfig, img_size: int, world: World) -> Dataset:
    """The dataset of a run; one process per machine downloads, the others wait. UserError for a wrong class count.

    With `skip_broken` the main process finds and reports broken images; all processes leave out the same ones.
    """
    turns = [True]
    if config.download:
        turns.insert(0, world.local_rank == 0)
    if config.skip_broken:
        turns.insert(0, world.is_main)
    dataset = None
    skip: bool | frozenset[str] = config.skip_broken
    for is_turn in turns:
        with together():
            if is_turn and dataset is None:
                dataset = load_dataset(
                    config.dataset, data_path=config.data_path, download=config.download and world.local_rank == 0,
                    img_size=img_size, cache=config.cache, eval_split=config.eval_split, normalize=config.normalize,
                    skip_broken=skip,
                )  # fmt: skip
        if skip is True:
            left_out = dataset.left_out if dataset is not None else ()
            skip = broadcast(frozenset(path for split in left_out for path in split.broken))
            if world.is_main and left_out:
                print("left out: " + "; ".join(map(str, left_out)))
    assert dataset is not None
    if config.num_classes is not None and config.num_classes != dataset.num_classes:
        raise UserError(
            f"--num-classes {config.num_classes}: the dataset {config.dataset} has {dataset.num_classes} classes"
        )
    return dataset

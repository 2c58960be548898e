"""What a paper tells the shared commands: its models, its presets, its own flags; and how a run is put together.

A value of a run comes from, in rising order: the default of its flag, the paper's preset for this model and dataset,
the checkpoint that is resumed, the file of --config, the command line.
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
    """Flags of a paper that has none."""


def start_as_built(model: nn.Module, start: Any) -> None:
    """A new run of a paper without weights to start from: the model stays as it was initialised."""


def nothing_to_do(model: nn.Module, progress: float) -> None:
    """Before each step, of a paper whose model stays as it is but for its weights."""


def nothing_to_say(model: nn.Module) -> str:
    """After each epoch, of a paper whose training log has no line of its own."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A paper, as `train_command.run` and `evaluate_command.run` need to know it."""

    paper: str  # as the result block names it: "QAViT"
    description: str
    command: str  # console scripts are `<command>-train` and `<command>-evaluate`
    models: Mapping[str, str]  # what --model says -> timm's name
    model_groups: tuple[str, ...] = ()  # other words for --model, which the paper's own script turns into some of these
    presets: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # given flags -> values, `model` and `dataset` included
    options: type = NoOptions  # dataclass of flags that go to timm.create_model where they are not None
    start_options: type = NoOptions  # dataclass of flags about where a new run's weights come from
    initialise: Callable[[nn.Module, Any], None] = start_as_built  # new model, start_options; never on resume
    preset_names: tuple[str, ...] = ("published",)
    loss_function: LossFunction = classification_loss
    before_step: Callable[[nn.Module, float], None] = nothing_to_do  # the model, share of the training done (0 to 1)
    describe: Callable[[nn.Module], str] = nothing_to_say  # the model after an epoch -> a line of the training log
    aliases: Mapping[str, str] = field(default_factory=dict)  # the original's name of a flag -> ours: "data_dir"
    test_splits: Mapping[str, str] = field(default_factory=dict)  # dataset -> split of what evaluates a checkpoint
    configs: Path | None = None  # folder of the YAML files that --config knows by name
    translate_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = (
        dict  # of a file of the original's -> our flags
    )

    def parse(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """The flags that were given; under them, those of --config. UserError for a file that is not one."""
        parser = self.train_parser()
        given = vars(parser.parse_args(argv))
        name = given.pop("config", None)
        if name is None:
            return given
        words = self._config_flags(name, {action.dest for action in parser._actions})
        parser.source = f"--config {name}"
        filed = vars(parser.parse_args(words))
        typed = given.get("model_kwargs", [])
        for key in parse_model_kwargs(typed):  # --model-kwargs dropout=0 goes before the file's dropout
            filed.pop(key, None)
        joined = {"model_kwargs": filed.get("model_kwargs", []) + typed} if typed else {}
        return filed | given | joined

    def _config_flags(self, name: str, known: set[str]) -> list[str]:
        """The words of a command line that says what the file says."""
        shipped = self.configs / f"{name}.yaml" if self.configs else None
        file = shipped if shipped is not None and shipped.is_file() else Path(name)
        try:
            with file.open("rb") as f:
                text = f.read(MOST_YAML + 1)
        except FileNotFoundError:
            names = ", ".join(sorted(f.stem for f in self.configs.glob("*.yaml"))) if self.configs else "none"
            raise UserError(f"--config {name}: no such file, nor a shipped one of that name ({names})") from None
        except OSError as e:
            raise UserError(f"--config {name}: {e.strerror}") from e
        try:
            values = read_yaml(text)
        except ValueError as e:
            raise UserError(f"--config {name}: not YAML: {e}") from e
        if not isinstance(values, dict):
            raise UserError(f"--config {name}: needs lines of the form 'flag: value'")
        try:
            values = self.translate_config(values)
        except (ValueError, TypeError) as e:
            raise UserError(f"--config {name}: {e}") from e
        words = []
        for key, value in values.items():
            key = str(key).replace("-", "_")
            if self.aliases.get(key, key) not in known or key in ("config", "help"):
                raise UserError(f"--config {name}: {key} is no flag of {self.command}-train")
            flag = "--" + key.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif isinstance(value, dict):
                pairs = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
                words += [flag, *pairs] if pairs else []
            elif isinstance(value, list):
                words += [flag, *map(str, value)]
            elif value is not None:
                words.append(f"{flag}={value}")  # one word: a value may begin with a hyphen
            if isinstance(value, list | dict) and any(str(v).startswith("-") for v in value):
                raise UserError(f"--config {name}: {key}: a value that looks like a flag")
        return words

    def train_parser(self) -> ArgumentParser:
        parser = ArgumentParser(prog=f"{self.command}-train", description=self.description)
        self._add_model_flags(parser)
        add_flags(parser, self.start_options, "initial weights")
        others = (f"--{theirs}" for theirs, ours in self.aliases.items() if ours == "preset")
        parser.add_argument(
            "--preset", *others, dest="preset", choices=self.preset_names, default=argparse.SUPPRESS,
            help=f"hyperparameters that the flags below start from (default: {self.preset_names[0]})",
        )  # fmt: skip
        parser.add_argument(
            "--config", metavar="FILE", default=argparse.SUPPRESS,
            help="YAML file of flags; those on the command line go before it",
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
    preset = recipe.presets({**earlier, **given})
    values = {**preset, **earlier, **given}
    start = dataclasses.asdict(build(recipe.start_options, values))
    if resumed is not None:
        earlier_start = resumed.get("start", {})
        unused = [name for name in start if name in given and given[name] != earlier_start.get(name)]
        if unused:
            raise UserError(f"--{unused[0].replace('_', '-')} is for a new run: --resume has its weights")
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
            raise UserError(f"--model-kwargs takes NAME=VALUE, got {word!r}")
        try:
            value = read_yaml(text)
        except ValueError as e:
            raise UserError(f"--model-kwargs {word[:80]}: not a value: {e}") from e
        name = name.replace("-", "_")
        if name in ("pretrained", "num_classes", *_READ_ELSEWHERE):
            raise UserError(f"--model-kwargs {name}: no argument of the architecture; --help has the flags for weights")
        pairs[name] = value
    return pairs


# With these timm's create_model reads another file, or goes to the network.
_READ_ELSEWHERE = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_MOST_BLOCKS = 1000  # a model of a million narrow blocks would take hours to be built, and then fail


def create_model(name: str, kwargs: Mapping[str, Any], num_classes: int, img_size: int | None) -> nn.Module:
    """The timm model. UserError for arguments that it does not take, or that cannot work together.

    A model with arguments of the user's is tried on an image: timm builds some that fail or give NaN.
    """
    size = {} if img_size is None else {"img_size": img_size}
    if ":" in name or not kwargs.keys().isdisjoint(_READ_ELSEWHERE):  # from a checkpoint that somebody made up
        raise UserError(
            f"{name}: weights come from a checkpoint or --weights, never with the model's name or arguments"
        )
    depth = kwargs.get("depth")
    if isinstance(depth, int) and depth > _MOST_BLOCKS:
        raise UserError(f"{name}: depth must be at most {_MOST_BLOCKS}, got {depth}")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch's, of layers without weights
            model = timm.create_model(name, **{**kwargs, **size, "num_classes": num_classes})
    except Exception as e:  # of arguments that nobody thought of timm raises whatever comes first
        if size and isinstance(e, TypeError) and "img_size" in str(e):  # a convolutional network: any size will do
            return create_model(name, kwargs, num_classes, None)
        if "Unknown model" in str(e):
            raise UserError(f"{name}: no model of that name is registered with timm") from e
        if not kwargs and not size:  # no mistake of the user's
            raise
        raise UserError(f"{name}: {_reason(e)}") from e
    if (kwargs or size) and not any(p.is_meta for p in model.parameters()):
        _try(model, name, img_size)
    return model


def _try(model: nn.Module, name: str, img_size: int | None) -> None:
    """UserError unless the model makes finite logits of an image."""
    was_training = model.training
    try:
        side = img_size or input_size(model)
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, 3, side, side))
        if logits.ndim != 2:
            raise ValueError(f"it gives {tuple(logits.shape)} for an image, not a value for each class")
        finite = bool(logits.isfinite().all())
    except Exception as e:
        raise UserError(f"{name} does not work with these arguments: {_reason(e)}") from e
    finally:
        model.train(was_training)
    if not finite:
        raise UserError(f"{name} gives no finite numbers with these arguments")


def _reason(error: Exception) -> str:
    return "there is not enough memory for it" if is_out_of_memory(error) else str(error) or type(error).__name__


def input_size(model: nn.Module) -> int:
    """Side in pixels of the square images that a timm model takes."""
    for part in (getattr(model, "config", None), getattr(model, "patch_embed", None)):  # an argument may have set it
        size = getattr(part, "img_size", None)
        if size is not None:
            return int(size[-1] if isinstance(size, tuple) else size)
    return int(model.pretrained_cfg["input_size"][-1])  # type: ignore[index]


def run_settings(checkpoint: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """The `config` of a checkpoint that one of this project's runs wrote. UserError for another's."""
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
            f"{source}: its config is not one of this project's runs; of a checkpoint of the original's code the "
            "paper's convert command makes one that is"
        )
    return settings


def check_classes(settings: Mapping[str, Any], source: str | Path, dataset: Dataset, name: str) -> str | None:
    """UserError when the run of `settings` has another number of classes; a note when only their names differ."""
    if settings["num_classes"] != dataset.num_classes:
        raise UserError(
            f"{source} knows {settings['num_classes']} classes, and the dataset {name} has {dataset.num_classes}"
        )
    pairs = zip(settings["class_names"], dataset.class_names, strict=True)
    differ = [(ours, theirs) for ours, theirs in pairs if ours.lower() != theirs.lower()]
    if not differ:
        return None
    ours, theirs = differ[0]
    return f"note: {len(differ)} classes have other names than in training, such as {theirs!r} for {ours!r}"


def load_images(config: DataConfig, img_size: int, world: World) -> Dataset:
    """The dataset of a run; one process of each machine downloads, the others wait. UserError for a wrong count.

    With `skip_broken` the main process looks for broken images and says which; the others leave out the same.
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

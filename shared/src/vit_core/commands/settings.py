"""The settings of a run, and where they come from.

Later sources override earlier ones: the flag's default, the paper's preset for this model and dataset, the resumed
checkpoint, the --config file, the command line.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from vit_core.data import AugmentConfig
from vit_core.data.datasets import Stats
from vit_core.errors import UserError
from vit_core.flags import Config, Groups, adapted, build, checked, description_of, flag, flags_of, given, spelled
from vit_core.models.create import check_model_kwargs, parse_model_kwargs
from vit_core.plain_yaml import MOST_YAML, read_yaml
from vit_core.training.config import DataConfig, OutputConfig, TrainConfig

if TYPE_CHECKING:
    from vit_core.recipe import Recipe


class RunSettings(TypedDict):
    """A checkpoint's `config` and config.json: the plain values that define a run's model and data."""

    model: str  # timm model name
    model_kwargs: dict[str, Any]
    start: NotRequired[dict[str, Any]]  # fields of the recipe's start_options
    img_size: int
    num_classes: int
    class_names: list[str]
    mean: list[float]
    std: list[float]
    data: dict[str, Any]  # fields of DataConfig
    train: dict[str, Any]  # of TrainConfig
    augment: dict[str, Any]  # of AugmentConfig


def run_settings(checkpoint: Mapping[str, Any], source: str | Path) -> RunSettings:
    """The `config` of a checkpoint written by one of this project's runs. UserError for any other."""
    try:
        settings = TypeAdapter(RunSettings).validate_python(checkpoint["config"], strict=True)
        lengths = (len(settings["class_names"]), len(settings["mean"]), len(settings["std"]))
        if lengths != (settings["num_classes"], 3, 3):
            raise ValueError("one name for each class, and three channels, are expected")
        if not all(settings["std"]) or "dataset" not in settings["data"]:
            raise ValueError("a standard deviation is 0, or the dataset is missing")
        for config, part in ((DataConfig, "data"), (TrainConfig, "train"), (AugmentConfig, "augment")):
            checked({part: config}, settings[part])  # type: ignore[literal-required]
    except ValueError as e:  # pydantic's errors are ValueErrors
        raise UserError(
            f"{source} was not written by a run of this project (its config has missing or invalid entries); convert "
            "checkpoints of the original code with the paper's convert command"
        ) from e
    return settings


def flag_groups(recipe: "Recipe", defaults: Mapping[str, Any], without: Collection[str] = ()) -> Groups:
    """The flags of the recipe's train command, by their titles in the help; `without`: names to leave out."""
    names = (*recipe.models, *recipe.model_groups)
    model = [
        ("model", str | None, flag(None, "which of the paper's models", choices=names)),
        ("model_kwargs", tuple[str, ...], flag((), "additional model arguments: depth=2", metavar="NAME=VALUE")),
        ("preset", str, flag(recipe.preset_names[0], "source of the defaults", choices=recipe.preset_names)),
        ("config", str | None, flag(None, "YAML file of flags; command-line flags override it", metavar="FILE")),
    ]
    groups = {
        "model": dataclasses.make_dataclass("ModelFlags", model, bases=(recipe.options,), kw_only=True, frozen=True),
        "initial weights": recipe.start_options,
        "data": DataConfig,
        "training": TrainConfig,
        "augmentation": AugmentConfig,
        "output": OutputConfig,
    }
    return {title: adapted(config, recipe.aliases, defaults, without) for title, config in groups.items()}


def parse(recipe: "Recipe", argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The flags given to the recipe's train command, which override those of the --config file.

    UserError for unknown flags, invalid values and an invalid file.
    """
    return _parse(recipe, {}, argv, f"{recipe.command}-train", recipe.description)[1]


def parse_with(
    recipe: "Recipe", config: type[Config], argv: Sequence[str] | None, prog: str
) -> tuple[Config, dict[str, Any]]:
    """For a command with flags of its own, which hide the recipe's of the same name: its flags, and as `parse`."""
    own, shared = _parse(recipe, {"command": config}, argv, prog, description_of(config))
    return build(config, own), shared


def _parse(
    recipe: "Recipe", own: Groups, argv: Sequence[str] | None, prog: str, description: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a command's own flags, and of the recipe's.

    The help shows the defaults that follow from the other flags, such as --model and --preset.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    hidden = flags_of(own)
    defaults: Mapping[str, Any] = {}
    if "--help" in words or "-h" in words:
        with contextlib.suppress(KeyError):  # a preset of a model that this dataset does not have
            rest = [word for word in words if word not in ("--help", "-h")]
            defaults = recipe.presets(given({**own, **flag_groups(recipe, {}, hidden)}, rest, prog, description))
    typed = given({**own, **flag_groups(recipe, defaults, hidden)}, words, prog, description)
    mine = {name: typed.pop(name) for name in hidden if name in typed}
    kwargs = parse_model_kwargs(typed.pop("model_kwargs", ()))
    name = typed.pop("config", None)
    filed = {} if name is None else read_config(recipe, name)
    for key in kwargs:  # --model-kwargs dropout=0 overrides the file's dropout
        filed.pop(key, None)
    kwargs = {**filed.pop("model_kwargs", {}), **kwargs}
    return mine, filed | typed | ({"model_kwargs": kwargs} if kwargs else {})


def read_config(recipe: "Recipe", name: str) -> dict[str, Any]:
    """The flags in a YAML file: the recipe's own of that name, or any other. UserError for an invalid file."""
    shipped = recipe.configs / f"{name}.yaml" if recipe.configs else None
    file = shipped if shipped is not None and shipped.is_file() else Path(name)
    try:
        with file.open("rb") as f:
            text = f.read(MOST_YAML + 1)
    except FileNotFoundError:
        names = ", ".join(sorted(f.stem for f in recipe.configs.glob("*.yaml"))) if recipe.configs else "none"
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
        values = {str(k).replace("-", "_"): v for k, v in recipe.translate_config(values).items()}
        kwargs = values.pop("model_kwargs", None) or {}
        if not isinstance(kwargs, dict):
            raise ValueError("model_kwargs: expected lines of the form 'name: value'")
        kwargs = {str(k).replace("-", "_"): v for k, v in kwargs.items()}
        check_model_kwargs(kwargs)
        if "config" in values:
            raise ValueError("config is not a flag of a config file")
        found = checked(flag_groups(recipe, {}), values)
    except (ValueError, TypeError) as e:
        raise UserError(f"--config {name}: {e}") from e
    return found | ({"model_kwargs": kwargs} if kwargs else {})


@dataclass(frozen=True, kw_only=True)
class Run:
    """The resolved settings of a run."""

    model: str  # timm model name
    model_kwargs: dict[str, Any]
    start: dict[str, Any]  # fields of the recipe's start_options
    data: DataConfig
    train: TrainConfig
    augment: AugmentConfig

    def settings(self, class_names: Sequence[str], img_size: int, stats: Stats) -> RunSettings:
        """The settings that a checkpoint records; stats: mean and standard deviation of the image channels."""
        mean, std = stats
        return RunSettings(
            model=self.model,
            model_kwargs=self.model_kwargs,
            start=self.start,
            img_size=img_size,
            num_classes=len(class_names),
            class_names=list(class_names),
            mean=list(mean),
            std=list(std),
            data=dataclasses.asdict(self.data),
            train=dataclasses.asdict(self.train),
            augment=dataclasses.asdict(self.augment),
        )


def settle(recipe: "Recipe", given: Mapping[str, Any], resumed: "RunSettings | None") -> Run:
    """Combine defaults, preset, resumed settings and flags. UserError for invalid values."""
    kwargs = dict(given.get("model_kwargs", {}))
    given = {k: v for k, v in given.items() if k != "model_kwargs"}
    earlier: dict[str, Any] = {}
    if resumed is not None:
        earlier = {**resumed["data"], **resumed["train"], **resumed["augment"]}
        short = recipe.short_name(resumed["model"])
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
            raise UserError(f"{spelled(unused[0])} applies to new runs only: --resume loads the checkpoint's weights")
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

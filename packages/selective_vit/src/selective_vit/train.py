"""Train a ViT, a SelectiveViT, or both side by side: `uv run selective-vit-train` (original: its notebook).

    uv run selective-vit-train                                             both micro models on the embedded digits
    uv run selective-vit-train --model both --dataset cifar10 --data-path DIR --preset fine_tune

After both it draws their curves, as `selective-vit-plot-logs` does.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import selective_vit  # noqa: F401 -- registers the models with timm
from selective_vit.plot_logs import draw
from selective_vit.recipe import PAIRS, RECIPE, for_plain
from vit_core import train_command
from vit_core.cli import command
from vit_core.errors import UserError


@command
def main(argv: Sequence[str] | None = None) -> int:
    given = RECIPE.parse(argv)
    if given.get("resume"):
        if given.get("model") in PAIRS:
            raise UserError("--resume goes on with one model: leave --model out, the checkpoint says which it is")
        return train_command.run_given(RECIPE, given)[0]
    small = given.get("dataset") in (None, "digits")
    model = given.setdefault("model", "both_micro" if small else "both")
    if model not in PAIRS:
        return train_command.run_given(RECIPE, given)[0]
    return _train_both(given, PAIRS[model])


def _train_both(given: Mapping[str, Any], models: tuple[str, str]) -> int:
    runs = []
    for model in models:
        print(f"\n{model}", flush=True)
        mine = given if model.startswith("selective") else for_plain(given)
        code, run = train_command.run_given(RECIPE, {**mine, "model": model})
        if run is None:
            if model == models[0]:
                print(f"and after it: --model {models[1]} with the same flags")
            return code
        runs.append(run)
    if int(os.environ.get("RANK", "0")) == 0:
        picture = runs[-1].path.parent / f"curves_{runs[-1].path.name}.png"
        draw([run.path for run in runs], picture)
        print(f"\ncurves of both: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

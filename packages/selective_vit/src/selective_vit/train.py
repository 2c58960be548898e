"""Train a ViT, a SelectiveViT, or both in turn: `uv run selective-vit-train` (original: its notebook).

    uv run selective-vit-train                                             both micro models on the embedded digits
    uv run selective-vit-train --model both --dataset cifar10 --data-path DIR --preset fine_tune

After training both, it plots their curves, as `selective-vit-plot-logs` does.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from selective_vit.recipe import PAIRS, RECIPE, for_plain
from vit_core.commands import train as train_command
from vit_core.commands.curves import draw
from vit_core.commands.settings import parse, settle
from vit_core.errors import UserError
from vit_core.flags import command
from vit_core.models.create import create_model


@command
def main(argv: Sequence[str] | None = None) -> int:
    given = parse(RECIPE, argv)
    if given.get("resume"):
        if given.get("model") in PAIRS:
            raise UserError("--resume continues one model: omit --model, which is stored in the checkpoint")
        return train_command.run_given(RECIPE, given)[0]
    small = given.get("dataset") in (None, "digits")
    model = given.setdefault("model", "both_micro" if small else "both")
    if model not in PAIRS:
        return train_command.run_given(RECIPE, given)[0]
    return _train_both(given, PAIRS[model])


def _train_both(given: Mapping[str, Any], models: tuple[str, str]) -> int:
    flags = {m: {**(given if m.startswith("selective") else for_plain(given)), "model": m} for m in models}
    for mine in flags.values():  # report errors in the second before training the first
        planned = settle(RECIPE, mine, None)
        with torch.device("meta"):
            create_model(planned.model, planned.model_kwargs, 1, planned.data.img_size)
    is_main = int(os.environ.get("RANK", "0")) == 0
    runs = []
    for model, mine in flags.items():
        if is_main:
            print(f"\n{model}", flush=True)
        code, run = train_command.run_given(RECIPE, mine)
        if run is None:
            if model == models[0] and is_main:
                print(f"then train the second model: --model {models[1]} with the same flags")
            return code
        runs.append(run)
    if is_main:
        picture = runs[-1].path.parent / f"curves_{runs[-1].path.name}.png"
        draw([run.path for run in runs], picture)
        print(f"\ncurves of both: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

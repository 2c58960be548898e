"""What all tests share: the references that CI must find, and a way to start processes."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# Property tests: by default few inputs and always the same ones. `--hypothesis-profile=study` tries new ones, 100 or
# VIT_EXAMPLES, and prints how to repeat a failure; `--hypothesis-show-statistics` tells what became of them.
settings.register_profile(
    "few",
    max_examples=20,
    derandomize=True,
    deadline=None,  # other programs run on these cores, too
    database=None,
    suppress_health_check=list(HealthCheck),  # of slow inputs and of those that are left out
    phases=[Phase.explicit, Phase.generate],
)
settings.register_profile(
    "study",
    settings.get_profile("few"),
    max_examples=int(os.environ.get("VIT_EXAMPLES", "100")),
    derandomize=False,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
settings.load_profile("few")


def pytest_configure() -> None:
    torch.set_num_threads(1)  # pytest-xdist runs a process a core


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="session")
def reference() -> Callable[[str], tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """reference("qavit") -> (tensors, metadata) of a golden file in $VIT_REFERENCE_DIR.

    Without the variable the test is skipped; with it, a missing file is a failure.
    """

    def load(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        from safetensors import safe_open

        folder = os.environ.get("VIT_REFERENCE_DIR")
        if not folder:
            pytest.skip("VIT_REFERENCE_DIR is not set: the original's outputs are not on this machine")
        with safe_open(Path(folder) / f"{name}.safetensors", "pt") as f:
            metadata = {key: json.loads(value) for key, value in f.metadata().items()}
            return {key: f.get_tensor(key) for key in f.keys()}, metadata  # noqa: SIM118 -- no mapping

    return load


@pytest.fixture(scope="session")
def start_processes() -> Callable[..., list[int]]:
    """start_processes(function, arguments per process) -> exit codes. Forked from one that has imported the core."""
    context = multiprocessing.get_context("forkserver")
    # Installed ones: what lies in tests/ is not on the path of the process that they are forked from.
    context.set_forkserver_preload(["vit_core.commands.train", "vit_core.commands.evaluate", "torch.utils.tensorboard"])

    def start(function: Callable[..., Any], arguments: list[tuple[Any, ...]], timeout: float = 240) -> list[int]:
        processes = [context.Process(target=function, args=a) for a in arguments]
        for p in processes:
            p.start()
        for p in processes:
            p.join(timeout)
            if p.is_alive():
                p.kill()
                p.join()
        return [p.exitcode for p in processes]  # type: ignore[misc]

    return start

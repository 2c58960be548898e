"""docs/adding_a_paper.md, carried out: the package that it describes is picked up, trained and judged."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "adding_a_paper.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The guide's package, installed: its source on the path, beside the metadata that its pyproject.toml gives."""
    root = tmp_path_factory.mktemp("workspace")
    blocks = re.findall(r"^`(packages/\S+)`\n```\w+\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9, "every file of the package is in the guide"
    for name, text in blocks:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    source = root / "packages" / "mean_vit" / "src"
    project = tomllib.loads((source.parent / "pyproject.toml").read_text())["project"]
    metadata = source / "mean_vit-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    ((group, entries),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return source


def reproduce(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from vit_core.reproduce.command import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, str(installed), *words]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::SyntaxWarning"},
    )


def test_the_guides_paper_is_found_trained_explained_and_judged(installed, tmp_path):
    listed = reproduce(installed, tmp_path, "list")
    assert "mean_vit\n    MeanViT: the mean over the patches\n    models: mean_vit_micro" in listed.stdout, (
        listed.stderr
    )
    assert "4 claims: 2 instant, 2 cpu-minutes, 0 gpu-minutes, 0 gpu-hours, 0 impossible" in listed.stdout

    done = reproduce(installed, tmp_path, "--paper", "mean_vit", "--epochs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs" / "reproduce").iterdir()
    results = json.loads((run / "results.json").read_text())
    (paper,) = results["papers"]
    assert [s["state"] for s in paper["steps"]] == ["done"] * 4
    assert paper["trainings"][0]["rows"][0]["seeds"][0]["epochs"] == 2
    verdicts = {c["id"]: (c["verdict"], c["condition"]) for c in paper["claims"]}
    assert verdicts == {
        "mean-vit-size": ("holds", ""),
        "mean-vit-invariance": ("holds if", "the position embedding is zero"),
        "mean-vit-cifar10": ("not run", ""),
        "mean-vit-mean-recall": ("contradicted", ""),
    }
    page = (run / "index.html").read_text()
    assert "MeanViT: the mean over the patches" in page
    assert "data:image/png;base64," in page
    assert results["comparison"]["rows"][0][:4] == ["MeanViT", "MeanViT", "digits", 2]


def test_the_guides_files_pass_the_linter(installed):
    settings = Path(__file__).parents[2] / "pyproject.toml"
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(settings), str(installed)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_paper_that_cannot_be_loaded_is_named_and_does_not_stop_the_others(installed, tmp_path):
    checks = installed / "mean_vit" / "checks.py"
    text = checks.read_text()
    try:
        checks.write_text("raise RuntimeError('a mistake')\n")
        listed = reproduce(installed, tmp_path, "list")
    finally:
        checks.write_text(text)
    assert listed.returncode == 1
    assert "cannot be loaded: RuntimeError: a mistake" in listed.stdout
    assert len(re.findall(r"^    models: ", listed.stdout, re.MULTILINE)) >= 1, "the others are there"

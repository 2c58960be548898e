"""Flags as nobody would give them, for the train command of every paper: valid ones, borderline ones, nonsense.

What must come of them: a run whose weights are finite and exit code 0, or one line and exit code 2.
"""

import contextlib
import csv
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import event
from hypothesis import strategies as st
from PIL import Image

from vit_core.commands.settings import flag_groups
from vit_core.flags import Flag, flags_of, spelled
from vit_core.recipe import Recipe
from vit_core.training import run_folder
from vit_core.training.checkpoint import load_checkpoint

NUMBERS = (
    "0",
    "1",
    "-1",
    "2",
    "0.5",
    "1.0",
    "-0.0",
    "1e-8",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "-1e308",
    "1e-308",
    "1e39",
    "1e20",
    str(10**30),
    str(-(10**30)),
    str(2**31),
    str(2**63 - 1),
    str(2**63),
    str(2**64),
    "0x10",
    "1_0",
    "٣",
    "9" * 5000,
    str(10**400),
)
WORDS = (
    "", " ", "-", "--", "é", "🙂", "a\nb", "\x1b[31m", "\udcff", "x" * 5000, "../..", "~nobody", "[1, 2]", "{a: b}",
    "null", "true", "off", "none", "%s", "{}", "/dev/null", "/dev/full/x", "none,none", ",",
)  # fmt: skip
# What a run of a fraction of a second may have; a larger number is no mistake, and would take its time.
SMALL: dict[str, Sequence[str]] = {
    "epochs": ("1", "2"), "batch_size": ("1", "2", "3", "4", "6", "100"), "grad_accum": ("1", "2", "3", "1000"),
    "img_size": ("8", "16", "24", "32", "1", "9"), "num_workers": ("0", "1"), "num_classes": ("2", "3"),
    "randaugment_ops": ("1", "2", "20"), "gru_layers": ("1", "2"), "frozen_blocks": ("0", "1", "2"),
    "dataset": ("imagefolder", "imagenet", "intel", "imagenet100"), "device": ("cpu", "auto"), "config": (),
    "randaugment_choice": ("invert,brightness", "invert"), "cache": ("auto", "memory", "disk"),
}  # fmt: skip
SMALL_RUN = (
    "--dataset",
    "imagefolder",
    "--img-size",
    "8",
    "--batch-size",
    "4",
    "--epochs",
    "1",
    "--warmup-epochs",
    "0",
    "--num-workers",
    "0",
    "--model-kwargs",
    "depth=1",
)
LEFT_OUT = {
    "compile",  # minutes
    "download",  # the network
    "save_dir",
    "log_dir",
    "resume",  # see `test_faults`; a run into any place at all would leave its files there
}


def make_images(root: Path) -> None:
    """Sixteen tiny images of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(place / f"{i}.png")


def flags(recipe: Recipe) -> st.SearchStrategy[list[str]]:
    """A few of the recipe's flags, each with any value."""
    kinds = {name: hint for config in flag_groups(recipe, {}).values() for name, hint in get_type_hints(config).items()}
    fields = [f for f in flags_of(flag_groups(recipe, {})).values() if f.name not in LEFT_OUT]
    one = st.sampled_from(fields).flatmap(lambda f: _words(f, kinds[f.name]))
    return st.lists(one, min_size=1, max_size=4).map(lambda groups: [word for group in groups for word in group])


def _words(field: Flag, kind: Any) -> st.SearchStrategy[list[str]]:
    """One flag: mostly with a value that could be, now and then with any at all, or without one."""
    spellings = [spelled(name) for name in (field.name, *field.metadata["aliases"])]
    name = st.sampled_from([*spellings, spelled(field.name).replace("-", "_").replace("__", "--", 1)])
    choices = field.metadata["choices"]
    if kind in (bool, bool | None):
        name = st.sampled_from([*spellings, f"--no-{spellings[0][2:]}"])
        return st.one_of(name.map(lambda n: [n]), name.map(lambda n: [n]), name.map(lambda n: [f"{n}=1"]))
    if field.name == "model_kwargs":
        return st.lists(model_kwarg(), min_size=1, max_size=2).map(lambda pairs: ["--model-kwargs", *pairs])
    if choices is not None:
        could = [str(c) for c in choices if field.name != "model" or "micro" in str(c)]
    elif field.name in SMALL:
        could = list(SMALL[field.name])
    elif kind in (int, int | None):
        could = ["0", "1", "2", "7"]
    elif kind in (float, float | None):
        could = ["0", "1e-3", "0.1", "0.5", "0.999", "1", "2"]
    else:
        could = ["x"]
    any_at_all = st.sampled_from([*NUMBERS, *WORDS]).filter(lambda text: not _takes_long(field.name, text))
    value = _mostly(st.sampled_from(could), any_at_all) if could else any_at_all
    given = st.tuples(name, value, st.booleans()).map(lambda g: [f"{g[0]}={g[1]}"] if g[2] else [g[0], g[1]])
    return _mostly(given, st.one_of(name.map(lambda n: [n]), st.tuples(name, value, value).map(list)))


def _mostly(usual: st.SearchStrategy, seldom: st.SearchStrategy) -> st.SearchStrategy:
    """Of six values one is the other."""
    return st.integers(0, 5).flatmap(lambda i: usual if i else seldom)


def _takes_long(name: str, text: str) -> bool:
    """Whether it is a number that a run may have, and too large for a test."""
    try:
        return name in SMALL and max(map(int, SMALL[name]), default=0) < int(text) < 2**31
    except ValueError:
        return False


def model_kwarg() -> st.SearchStrategy[str]:
    """NAME=VALUE for --model-kwargs, of what timm's ViTs and ours take, or of what nobody does."""
    names = (
        "depth", "embed_dim", "num_heads", "patch_size", "img_size", "in_chans", "mlp_ratio", "drop_rate", "qkv_bias",
        "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "init_values", "global_pool", "class_token", "pre_norm",
        "num_classes", "norm_layer", "act_layer", "weight_init", "reg_tokens", "fc_norm", "pretrained", "features_only",
        "checkpoint_path", "pretrained_cfg", "scriptable", "exportable", "no_such_argument", "", "self", "model_name",
        "window_size", "pool_heads", "threshold", "rope_theta", "dilation_factors", "blocks", "cache_dir",
    )  # fmt: skip
    values = (
        "0", "1", "2", "-1", "3", "8", "0.5", "1e-3", "nan", ".nan", ".inf", "1e308", str(10**30), "null", "true",
        "[]", "[1, 2]", "{a: 1}", "2020-13-45", "2020-01-01", "!!python/name:os.system", "&a [*a]", "token", "avg",
        "map", "''", "{{}: 1}", "? [1]", "'", "[", "\x00", "\ud800", "9" * 5000, "[" * 3000, "relu", "gelu",
        "layernorm", "\t",
    )  # fmt: skip
    could_be = (
        "depth=1", "depth=3", "embed_dim=16", "embed_dim=32", "num_heads=1", "num_heads=2", "patch_size=2",
        "patch_size=8", "mlp_ratio=1", "drop_rate=0.5", "drop_path_rate=0.9", "attn_drop_rate=0.5",
        "global_bank_size=1", "gru_layers=2", "pool_heads=1", "threshold=0.9", "empty_row=zero", "rope_theta=1",
        "qkv_bias=false", "init_values=0.1",
    )  # fmt: skip
    nonsense = st.tuples(st.sampled_from(names), st.sampled_from(values)).map("=".join)
    return _mostly(st.sampled_from(could_be), nonsense)


def yaml_files(recipe: Recipe) -> st.SearchStrategy[bytes]:
    """What --config may find: a file of flags with odd values, a document of another kind, or no YAML at all."""
    keys = st.sampled_from([*sorted(flags_of(flag_groups(recipe, {})).keys() - LEFT_OUT), "", "x", "1", "? [1]"])
    scalars = st.one_of(
        st.sampled_from(SCALARS),
        st.sampled_from(["1", "2", "0.5", "true", "false", "null", "cpu", "16"]),
        st.text(max_size=8),
    )
    values = st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]"),
            st.dictionaries(scalars, inner, max_size=3).map(
                lambda v: f"{{{', '.join(f'{k}: {x}' for k, x in v.items())}}}"
            ),
        ),
        max_leaves=5,
    )
    lines = st.lists(st.tuples(keys, values).map(": ".join), max_size=4).map("\n".join)
    return st.one_of(
        lines.map(_encoded),
        st.sampled_from(DOCUMENTS).map(_encoded),
        values.map(_encoded),
        st.text().map(_encoded),
        st.binary(max_size=200),
    )


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


SCALARS = (
    "9" * 5000, "0x" + "f" * 5000, "-0b" + "1" * 15000, "1:" * 3000 + "1", "1:" * 3000 + "1.5", "1e999", "1.0e+999",
    ".nan", "-.inf", "2020-13-45", "2020-01-01", "0001-01-01 00:00:00 +23:59", "2001-12-14t21:59:43.10-99:00",
    "!!binary aGk=", "!!binary é", "!!set {a, b}", "!!omap [a: 1]", "!!int ''", "!!bool 2", "!!float x",
    "!!timestamp x", "!!null x", "!!python/object/apply:os.system ['true']", "!!python/tuple [1]", "!x y", '"\\0"',
    '"\\ud800"', '"\\udcff"', "'a\n b'", "&a [*a]", "*b", "&a x", "<<", "=", "--help", "-1", "--", "~", "é", "🙂",
    "{{}: 1}", "{[1]: 2}", "[" * 2000 + "]" * 2000, "{a: " * 2000 + "1" + "}" * 2000, "[" * 20000, "x" * 9000,
    "0" * 9000,
)  # fmt: skip
DOCUMENTS = (
    "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(12)),
    "model_kwargs: &a {x: 1}\nlr: *a", "epochs: 1\nepochs: 2", "%YAML 9.9\n---\nepochs: 1", "---\n---\n",
    "a: 1\n---\nb: 2", "%TAG ! tag:evil:\n--- !x {}", "? " * 3000, "- " * 3000, "\t", "\ufeffepochs: 1",
    "epochs: 1\r\n", "#", "", "\0", "{" * 5000, "model_kwargs: {depth: 1, '': 1, 2: 3}",
    "model_kwargs: [depth=1, --help]", "model_kwargs: {depth: .nan}", "amp: true", "model_kwargs: {depth: 2020-01-01}",
    "model_kwargs: {pretrained: true}", "model_kwargs: {checkpoint_path: evil.pth}", "<<: {epochs: 1}",
    "weights: --help", "weight-decay: -0.5", "seed: [1, 2]", "config: x", "help: true", "lr: ''",
)  # fmt: skip


def outcome(main: Callable[[Sequence[str]], int], words: Sequence[str], *, config: bytes | None = None) -> str:
    """Run a train command for real on a few images. Returns what it said on stderr, "" for a run.

    words: flags, which go before those of a small run. config: what the file of --config holds.

    AssertionError for what is neither a run with finite weights nor one line and exit code 2.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(run_folder, "git_commit", lambda: None)  # 40 ms
        make_images(Path(folder, "images"))
        if config is not None:
            Path(folder, "run.yaml").write_bytes(config)
            words = ["--config", f"{folder}/run.yaml", *words]
        places = ["--data-path", f"{folder}/images", "--save-dir", f"{folder}/runs", "--log-dir", f"{folder}/logs"]
        try:
            code = main([*places, *SMALL_RUN, *words])
        except SystemExit as e:
            code = e.code  # type: ignore[assignment]
        said = _written(err)
        if code == 0:
            assert not said, said
            runs = list(Path(folder, "runs").iterdir())
            assert runs
            for run in runs:
                if run.is_dir():
                    weights = load_checkpoint(run / "last.pth")["model_state_dict"]
                    assert all(w.isfinite().all() for w in weights.values()), "a model that is not finite was saved"
                    with (run / "metrics.csv").open() as f:
                        losses = [float(row["val_loss"]) for row in csv.DictReader(f) if row["val_loss"]]
                    assert all(map(math.isfinite, losses)), f"a model that gives no numbers was saved: {losses}"
        else:
            assert code == 2, (code, said)
            assert said.endswith("\n"), said
            assert len(said.splitlines()) == 1, said
    event("runs" if code == 0 else "lines with exit code 2")
    return said


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]

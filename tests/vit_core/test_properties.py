"""Properties of the commands, tried on many inputs with the toy paper: flags, YAML files, arguments of models."""

from hypothesis import example, given
from hypothesis import strategies as st

import toy_paper
from hostile_flags import flags, model_kwarg, outcome, yaml_files

TINY = ("--model-kwargs", "depth=1", "patch_size=4")


@given(flags(toy_paper.RECIPE))
@example(["--seed", str(2**64)])
@example(["--num-workers", "1000000"])
@example(["--momentum", "-1", "--optimizer", "sgd"])
@example(["--lr", "inf"])
@example(["--img-size", "1000000"])
@example(["--img-size", "9"])  # no multiple of the patch
@example(["--weight-decay", "1e308"])
@example(["--early-stopping", str(10**30)])
@example(["--model-kwargs", "depth=1000000"])
@example(["--model-kwargs", "global_pool="])
@example(["--model-kwargs", "init_values=.nan"])
@example(["--model-kwargs", "norm_layer=2020-01-01"])
@example(["--model-kwargs", "checkpoint_path=evil.pth"])
@example(["--model-kwargs", "pretrained-cfg={}"])
@example(["--epochs", str(10**400)])
@example(["--data-path", "x" * 5000])
@example(["--data-path", "\udcff"])
@example(["--data-path", "~nobody"])
@example(["--device", "meta"])  # torch has more devices than one can train on
@example(["--device", "xpu"])
@example(["--cutmix", "1e-308"])
@example(["--config", "/proc/self/mem"])
@example(["--config", "/dev/zero"])
@example(["--config=--"])
@example(["--resume", "/dev/null"])
@example(["--model-kwargs", "img_size=8", "patch_size=4", "depth=1"])  # the images follow
@example(  # the last step ruins the weights, and no step comes after it to see that
    ["--lr", "1e6", "--weight-decay", "0", "--optimizer", "sgd", "--grad-clip", "0", "--schedule", "constant"]
)
@example(["--no-such-flag\nTraceback"])
def test_flags_at_random_end_in_a_run_or_in_one_line(words):
    outcome(toy_paper.main, [*TINY, *words])


@given(st.lists(model_kwarg(), min_size=1, max_size=3))
def test_arguments_of_the_model_at_random_end_in_a_run_or_in_one_line(pairs):
    outcome(toy_paper.main, ["--model-kwargs", "depth=1", "patch_size=4", *pairs])


@given(yaml_files(toy_paper.RECIPE))
def test_a_file_of_flags_ends_in_a_run_or_in_one_line(text):
    outcome(toy_paper.main, TINY, config=text)

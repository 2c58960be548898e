"""Reports of a classifier: numbers by hand, and a picture whose rows are the true classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from vit_core.tasks.class_report import confusion_picture, summarize

# Class 0: two of three right, the third taken for 1. Class 1: both right. Class 2 has no image.
TARGETS = torch.tensor([0, 0, 0, 1, 1])
BEE = pytest.approx(200 / 3)
LOGITS = 9.0 * torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 1]), 3)


def test_summary_by_hand():
    s = summarize(LOGITS, TARGETS, ["ant", "bee", "cat"])
    assert s["acc1"] == pytest.approx(80.0)
    assert s["acc5"] == pytest.approx(100.0)
    assert s["precision"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    assert s["recall"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    assert s["f1"] == pytest.approx(100 * (0.8 + 0.8 + 0) / 3)
    assert s["by_class"][1] == {"class": "bee", "precision": BEE, "recall": 100, "f1": 80, "images": 2}
    assert s["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(LOGITS, TARGETS)))
    assert "ant" in s["text"]


def test_confusion_picture_has_a_row_for_each_true_class(tmp_path):
    # All of class 0 is taken for class 2: the dark cell is in the first row, on the right.
    logits = torch.tensor([[0.0, 0.0, 5.0]]).repeat(4, 1)
    path = confusion_picture(
        logits, torch.zeros(4, dtype=torch.long), ["ant", "bee", "cat"], tmp_path / "new" / "c.png"
    )
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    dark = np.argwhere((pixels == [8, 48, 107]).all(-1))  # the end of matplotlib's Blues
    matrix = dark[dark[:, 1] < 0.8 * pixels.shape[1]]  # without the color bar
    row, column = matrix.mean(0) / pixels.shape[:2]
    assert row < 0.35
    assert column > 0.5

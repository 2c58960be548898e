"""Datasets, augmentation and data loading. `load_dataset` finds the images, `BatchLoader` makes batches."""

from vit_core.data.augment import Augment, AugmentConfig, EvalTransform
from vit_core.data.datasets import DATASETS, Dataset, load_dataset
from vit_core.data.loader import BatchLoader
from vit_core.data.sources import DiskSource, FakeSource, ImageSource, MemorySource

__all__ = [
    "DATASETS",
    "Augment",
    "AugmentConfig",
    "BatchLoader",
    "Dataset",
    "DiskSource",
    "EvalTransform",
    "FakeSource",
    "ImageSource",
    "MemorySource",
    "load_dataset",
]

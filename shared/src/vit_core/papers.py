"""The papers installed beside the core, found through the entry-point group `vit_core.papers`."""

import importlib.metadata
from types import ModuleType


def load_papers() -> dict[str, ModuleType]:
    """Import every installed paper, which registers its models with timm. Name -> module."""
    return {entry.name: entry.load() for entry in importlib.metadata.entry_points(group="vit_core.papers")}

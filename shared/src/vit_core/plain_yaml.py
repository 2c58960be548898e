"""YAML and values from outside, read as plain ones: numbers, words, booleans, None, and lists and mappings of these."""

import math
import os
import re
from typing import Any

import yaml

MOST_YAML = 2**14  # characters; a file of flags has a thousand
_LARGEST = 2**63 - 1  # number that a flag or an argument of a model may be


class _WithoutAliases(yaml.SafeLoader):
    """A few lines of aliases of aliases stand for more values than fit into memory; flags need none."""

    def compose_node(self, parent: Any, index: int) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases are not supported")
        return super().compose_node(parent, index)


_WithoutAliases.add_implicit_resolver(  # 1e-6, which YAML 1.1 takes for a word
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(text: str | bytes) -> Any:
    """Plain values: numbers, words, booleans, None, and lists and mappings of these. ValueError for all else."""
    if len(text) > MOST_YAML:
        raise ValueError(f"longer than {MOST_YAML:,} characters")
    loader = None
    try:
        loader = _WithoutAliases(text)
        return check_plain(loader.get_single_data())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as e:  # beside YAMLError what Python's own conversions raise: KeyError for "!!bool 2"
        raise ValueError(str(e) or type(e).__name__) from e
    finally:
        if loader is not None:
            loader.dispose()


def check_plain(value: Any) -> Any:
    """The value, if it is a plain one that can be written into a checkpoint and onto a command line."""
    if isinstance(value, dict):
        return {check_plain(k): check_plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [check_plain(v) for v in value]
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a word with a zero byte")
        os.fsencode(value)  # UnicodeEncodeError for half of a surrogate pair
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no finite number")
    elif isinstance(value, int):  # True and False are of them
        if abs(value) > _LARGEST:
            raise ValueError(f"a number over {_LARGEST:,}")
    elif value is not None:
        raise ValueError(f"a {type(value).__name__} is neither a number nor a word")
    return value

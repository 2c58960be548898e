"""Safe reading of untrusted YAML: numbers, strings, booleans, None, and lists and mappings of these."""

import math
import os
import re
from typing import Any

import yaml

MOST_YAML = 2**14  # characters; a typical config file has a thousand
_LARGEST = 2**63 - 1  # largest number for a flag or model argument


class _WithoutAliases(yaml.SafeLoader):
    """SafeLoader that rejects aliases: a few nested ones can expand to more values than fit in memory."""

    def compose_node(self, parent: Any, index: int) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases are not supported")
        return super().compose_node(parent, index)


_WithoutAliases.add_implicit_resolver(  # 1e-6, which YAML 1.1 reads as a string
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(text: str | bytes) -> Any:
    """Plain values: numbers, strings, booleans, None, and lists and mappings of these. ValueError otherwise."""
    if len(text) > MOST_YAML:
        raise ValueError(f"longer than {MOST_YAML:,} characters")
    loader = None
    try:
        loader = _WithoutAliases(text)
        return check_plain(loader.get_single_data())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as e:  # YAMLError, or what Python's conversions raise: KeyError for "!!bool 2"
        raise ValueError(str(e) or type(e).__name__) from e
    finally:
        if loader is not None:
            loader.dispose()


def check_plain(value: Any) -> Any:
    """Return the value if it is plain and can be stored in a checkpoint and given on a command line."""
    if isinstance(value, dict):
        return {check_plain(k): check_plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [check_plain(v) for v in value]
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("strings must not contain null bytes")
        os.fsencode(value)  # UnicodeEncodeError for half of a surrogate pair
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
    elif isinstance(value, int):  # includes True and False
        if abs(value) > _LARGEST:
            raise ValueError(f"number larger than {_LARGEST:,}")
    elif value is not None:
        raise ValueError(f"values of type {type(value).__name__} are not supported")
    return value

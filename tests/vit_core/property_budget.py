"""How many inputs the property tests try, and how many they tried.

By default few and always the same ones. For a study

    VIT_EXAMPLES=500 uv run pytest -n 0 --timeout 0 tests/*/test_properties.py

tries 500 new ones for each property (a tenth where an input takes seconds), prints how to repeat a failure, and ends
with a line a property: how many inputs there were, and what became of them.
"""

import os
from collections import Counter, defaultdict

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = int(os.environ.get("VIT_EXAMPLES", "0"))
TRIED: defaultdict[str, Counter[str]] = defaultdict(Counter)


def examples(usual: int, *, slow: bool = False) -> settings:
    """Decorator of a property: `usual` inputs by default."""
    count = usual if not EXAMPLES else max(1, EXAMPLES // 10) if slow else EXAMPLES
    return settings(
        max_examples=count,
        derandomize=not EXAMPLES,
        print_blob=bool(EXAMPLES),
        deadline=None,  # other programs run on these cores, too
        database=None,
        suppress_health_check=list(HealthCheck),  # of slow inputs and of those that are left out
        phases=[Phase.explicit, Phase.generate, Phase.shrink] if EXAMPLES else [Phase.explicit, Phase.generate],
    )


def tried(what: str, outcome: str) -> None:
    """Count an input of the property `what`."""
    TRIED[what][outcome] += 1


def summary() -> list[str]:
    """What was counted, a line a property."""
    return [
        f"{what}: {sum(outcomes.values())} inputs tried: " + ", ".join(f"{n} {o}" for o, n in outcomes.most_common())
        for what, outcomes in sorted(TRIED.items())
    ]

"""Times functions side by side in one process, and prints and writes the ratios.

The machines are noisy, so only ratios hold: the functions take turns, and a ratio is
that of two runs next to each other. Medians, with quartiles.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox
import jax
import numpy as np
import numpyro

# What is worth keeping is copied to benchmarks/results, which is in the repository.
OUTPUT = Path(__file__).parent / "output"


@dataclasses.dataclass(frozen=True)
class Quartiles:
    """A median between its quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Any) -> "Quartiles":
        """The quartiles of some numbers."""
        return cls(*(float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def take_turns(
    functions: dict[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Seconds of each function in each round, the functions taking turns.

    The order turns round from one round to the next, so that none is always first.
    """
    for _ in range(warmup):
        for function in functions.values():
            jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            start = clock()
            jax.block_until_ready(functions[name]())
            seconds[name].append(clock() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: dict[str, np.ndarray], one: str, other: str) -> Quartiles:
    """Time of `one` over that of `other`, round by round."""
    return Quartiles.of(seconds[one] / seconds[other])


def temporary_mebibytes(function: Callable, *args: Any) -> float:
    """XLA's own figure of the memory that a compiled call needs beside its results."""
    analysis = jax.jit(function).lower(*args).compile().memory_analysis()
    return analysis.temp_size_in_bytes / 2**20


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table; write them as JSON, with where they were measured."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [
        max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))
    ]
    print(f"\n{name}")
    for line in [columns, *cells]:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    OUTPUT.mkdir(exist_ok=True)
    where = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpyro": numpyro.__version__,
        "equinox": equinox.__version__,
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    path = OUTPUT / f"{name}.json"
    path.write_text(
        json.dumps({"measured": where, "rows": rows}, default=_as_json, indent=1)
    )
    print(f"written: {path}")


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _as_json(value: Any) -> Any:
    return dataclasses.asdict(value)

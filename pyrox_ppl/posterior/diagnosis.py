"""Diagnosis: the checks of a posterior, and the verdict in words."""

import dataclasses
import textwrap
from typing import Any

import numpy as np
import pandas as pd

from pyrox_ppl.posterior._functions import Functions


@dataclasses.dataclass(frozen=True)
class Check:
    """One question that was asked of a posterior.

    Attributes:
        name: What was looked at.
        passed: Whether it is fine; None where it could not be looked at.
        finding: What was found, with the figure.
        advice: What to try.
    """

    name: str
    passed: bool | None
    finding: str
    advice: str = ""

    def __str__(self) -> str:
        mark = {True: "fine", False: "NOT FINE", None: "not known"}[self.passed]
        lines = [f"{mark:<10}{self.name}: {self.finding}"]
        if self.advice and not self.passed:
            lines += textwrap.wrap(
                f"try: {self.advice}",
                88,
                initial_indent=" " * 10,
                subsequent_indent=" " * 15,
            )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What :func:`~pyrox_ppl.diagnose` found; ``print`` it for the verdict in words.

    Attributes:
        title: What was looked at.
        checks: The single checks.
        functions: Statistics of the functions at the probes, if there were any.
        table: A row per group of parameters, as :func:`~pyrox_ppl.summary` has it.
        loo: PSIS-LOO by observed site: ArviZ's ``ELPDData``, pointwise.
        bfmi: The energy fraction of each chain, if the energy was collected.
        pareto_k: The Pareto shape of a guide's importance weights.
        loss: The losses of SVI.
    """

    title: str
    checks: tuple[Check, ...]
    functions: Functions | None
    table: pd.DataFrame
    loo: dict[str, Any]
    bfmi: np.ndarray | None
    pareto_k: float | None
    loss: np.ndarray | None

    @property
    def ok(self) -> bool:
        """Whether no check failed; what could not be looked at does not count."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(c.name for c in self.checks if c.passed is False)

    def __str__(self) -> str:
        known = sum(check.passed is not None for check in self.checks)
        if not known:
            verdict = "nothing could be checked"
        elif self.ok:
            verdict = f"all {known} checks that could be made are fine"
        else:
            verdict = (
                f"not to be trusted as it stands; {len(self.failed)} of {known} checks "
                f"failed ({', '.join(self.failed)})"
            )
        return "\n".join(
            [
                self.title,
                *map(str, self.checks),
                "",
                self.table.to_string(),
                "",
                f"Verdict: {verdict}.",
            ]
        )

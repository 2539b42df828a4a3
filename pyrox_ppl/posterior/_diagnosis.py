"""Diagnosis: the checks of a posterior, and the verdict in words."""

import dataclasses
import textwrap
from typing import Any

import numpy as np
import pandas as pd

from pyrox_ppl.posterior._functions import FunctionStatistics


@dataclasses.dataclass(frozen=True)
class Check:
    """One question that was asked of a posterior.

    Attributes:
        name: The quantity that was checked.
        passed: Whether it is fine; None where this is not known.
        finding: The result, with its figure.
        advice: What to try.
        of_draws: Whether it concerns the draws, not just an estimate made from them.
        remark: What the verdict says of it, if it is a note: a finding to know, which
            neither passes nor fails.
    """

    name: str
    passed: bool | None
    finding: str
    advice: str = ""
    of_draws: bool = True
    remark: str = ""

    def __str__(self) -> str:
        mark = {True: "fine", False: "NOT FINE", None: "not known"}[self.passed]
        mark = "note" if self.remark else mark
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
    """The result of :func:`~pyrox_ppl.diagnose`; ``print`` it for the verdict in words.

    Attributes:
        title: The kind and number of the draws.
        chains: The number of chains.
        checks: The single checks.
        functions: Statistics of the functions at the probes, if there were any.
        table: A row per group of parameters, as :func:`~pyrox_ppl.summary` has it.
        loo: PSIS-LOO by observed site: ArviZ's ``ELPDData``, pointwise.
        bfmi: The energy fraction of each chain, if the energy was collected.
        pareto_k: The Pareto shape of a guide's importance weights.
        loss: The losses of SVI.
        distances: How far any two members of an ensemble are apart in function space.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        >>> biases = jax.random.normal(jax.random.key(1), (4, 500, 1)).at[0].add(9.0)
        >>> tree = px.to_datatree({"linear.bias": biases}, batch_ndims=2)
        >>> diagnosis = px.diagnose(tree, linear, jnp.ones((5, 1)))
        >>> diagnosis.ok, diagnosis.failed  # the first chain is in another mode
        (False, ('R-hat', 'ESS', 'MCSE'))
    """

    title: str
    chains: int
    checks: tuple[Check, ...]
    functions: FunctionStatistics | None
    table: pd.DataFrame
    loo: dict[str, Any]
    bfmi: np.ndarray | None
    pareto_k: float | None
    loss: np.ndarray | None
    distances: np.ndarray | None = None

    @property
    def ok(self) -> bool:
        """Whether no check of the draws failed; unknown ones do not count."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks of the draws that failed."""
        return tuple(c.name for c in self.checks if c.passed is False and c.of_draws)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        known = sum(c.passed is not None for c in self.checks if c.of_draws)
        weak = [c.name for c in self.checks if c.passed is False and not c.of_draws]
        if not known:
            verdict = "nothing could be checked"
        elif self.ok:
            verdict = f"all {known} checks of the draws that could be made are fine"
            if known == 1:
                verdict = "the one check of the draws that could be made is fine"
        else:
            verdict = (
                f"not to be trusted as it stands; {len(self.failed)} of {known} checks "
                f"of the draws failed ({', '.join(self.failed)})"
            )
        unknown = [c.name for c in self.checks if c.passed is None and not c.remark]
        if known and unknown:
            verdict += f"; not known: {', '.join(unknown)}"
        if weak:
            verdict += f"; do not rely on {', '.join(weak)}"
        remarks = dict.fromkeys(c.remark for c in self.checks if c.remark)
        verdict = "; ".join([verdict, *remarks])
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

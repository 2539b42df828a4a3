"""run_jaxpr: a traced function, with what no turn of a loop changes computed once."""

from itertools import compress
from typing import Any

from jax import lax
from jax.core import eval_jaxpr
from jax.extend.core import Literal

from pyrox_ppl._jaxpr import bind_eqn, open_jaxpr


def run_jaxpr(jaxpr: Any, constants: list, *inputs: Any) -> list:
    """The results of a traced function.

    NumPyro searches for initial values in a loop: each turn takes a value of each site
    and evaluates the density and its gradient, until all is finite. The stored weights
    of a module are the same in each turn. Taken out of the loop, they leave behind
    results that nothing needs, and JAX compiles neither loop nor gradient.

    Args:
        jaxpr: The function.
        constants: Its constants.
        *inputs: Its arguments, as leaves.
    """
    if not any(any(_fixed(eqn)) for eqn in jaxpr.eqns):
        return eval_jaxpr(jaxpr, constants, *inputs)
    names = (*jaxpr.constvars, *jaxpr.invars)
    values = dict(zip(names, (*constants, *inputs), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        values |= zip(eqn.outvars, bind_eqn(eqn, operands), strict=True)
        fixed = _fixed(eqn)
        if any(fixed):
            after = _after_one_turn(eqn, operands, fixed)
            values |= zip(compress(eqn.outvars, fixed), after, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _fixed(eqn: Any) -> list[bool]:
    """For each result of a loop, whether all turns give the same; else none."""
    if eqn.primitive.name != "while" or eqn.effects:
        return []
    body, _ = open_jaxpr(eqn.params["body_jaxpr"])
    moving = set(body.invars[eqn.params["body_nconsts"] :])

    def moves(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in moving

    for inner in body.eqns:
        if any(map(moves, inner.invars)):
            moving.update(inner.outvars)
    return [not moves(atom) for atom in body.outvars]


def _after_one_turn(eqn: Any, operands: list, chosen: list[bool]) -> list:
    """The chosen results of a loop after one turn, or before it if it takes none."""
    conds, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    begin = operands[conds + consts :]
    cond, constants = open_jaxpr(eqn.params["cond_jaxpr"])
    (goes,) = eval_jaxpr(cond, constants, *operands[:conds], *begin)
    body, constants = open_jaxpr(eqn.params["body_jaxpr"])
    after = eval_jaxpr(body, constants, *operands[conds:])
    pairs = compress(zip(after, begin, strict=True), chosen)
    return [lax.select(goes, new, old) for new, old in pairs]

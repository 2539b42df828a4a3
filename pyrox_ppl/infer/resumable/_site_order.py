"""NumPyro's SVI with the terms of its loss in one order, whatever the process."""

import copy
import types
from collections.abc import Callable, Iterable
from typing import Any

from numpyro.infer import SVI, Trace_ELBO


def in_order(svi: SVI) -> SVI:
    """A copy of an initialised SVI object, whose steps are the same in any process.

    ``Trace_ELBO`` adds up the sites in the order of a set of their names, and Python
    orders sets of strings anew in each process: the sum has other last bits, and its
    program another text. Here they are in the order of the model, then of the guide.
    The arithmetic is NumPyro's. Other losses are left as they are.
    """
    if type(svi.loss) is not Trace_ELBO:
        return svi
    ordered, loss = copy.copy(svi), copy.copy(svi.loss)
    method: Any = Trace_ELBO.loss_with_mutable_state
    function = _with_globals(method, {"set": _OrderedSet})
    loss.loss_with_mutable_state = types.MethodType(function, loss)
    ordered.loss = loss
    return ordered


class _OrderedSet(dict):
    """What ``set`` is for ``Trace_ELBO``, in the order in which members came."""

    def __init__(self, members: Iterable[Any] = ()) -> None:
        super().__init__(dict.fromkeys(members))

    def union(self, *others: Iterable[Any]) -> "_OrderedSet":
        """The members of both."""
        return _OrderedSet([*self, *(member for other in others for member in other)])


def _with_globals(function: Any, names: dict[str, Any]) -> Callable:
    """The same code, with some global names of its own."""
    new = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    new.__kwdefaults__ = function.__kwdefaults__
    return new

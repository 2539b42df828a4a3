"""Every parameter read inside becomes a param site: what a guide's encoder needs."""

from typing import Any

from pyrox_ppl._parameter import Parameter
from pyrox_ppl.handlers._base import AbstractParameterHandler, Where


class learn(AbstractParameterHandler):
    """Turn the parameters read inside into ``numpyro.param`` sites."""

    def __init__(self, *, where: Where = None) -> None:
        super().__init__(None, where)

    def answer(self, msg: dict[str, Any], parameter: Parameter) -> None:
        """Make the parameter a param site that starts at the stored value."""
        msg["type"] = "param"
        msg["fn"] = lambda stored: stored
        self.to_its_plate(msg)

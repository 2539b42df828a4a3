"""A record of every parameter that a model reads."""

from typing import Any, NamedTuple

import numpy as np
from numpyro.primitives import Messenger

from pyrox_ppl._parameter import Parameter, path_name

# What a parameter that was read has become, if inference decides its value.
SITES = ("sample", "deterministic", "param")


class ParameterRead(NamedTuple):
    """A parameter that was read.

    Attributes:
        parameter: The parameter.
        root: The root of its name, with the prefixes of every scope.
        kind: The type of the site that it has become; ``"constant"`` for the stored
            array itself, ``"generated"`` for a value that is no site.
        shape: The shape of its value, with the axes of a plate.
        members: The size of the plate on which its module was bound, if it was.
        module: The module that it belongs to.
    """

    parameter: Parameter
    root: str
    kind: str
    shape: tuple[int, ...]
    members: tuple[int, ...]
    module: Any

    @property
    def is_site(self) -> bool:
        """Whether inference decides its value."""
        return self.kind in SITES

    def tied_names(self) -> list[str]:
        """The names of the other places of the array."""
        return [f"{self.root}.{path_name(path)}" for path in self.parameter.tied]


class RecordReads(Messenger):
    """Records every parameter that is read inside it, by the name of its site."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[str, ParameterRead] = {}

    def record_read(
        self, parameter: Parameter, message: dict[str, Any], module: Any
    ) -> None:
        """Record a read."""
        path, name, kind = path_name(parameter.path), message["name"], message["type"]
        if kind == "parameter":
            is_stored = message["value"] is message["stored"]
            kind = "constant" if is_stored else "generated"
        plate = message["plate"]
        self.reads[name] = ParameterRead(
            parameter,
            name.removesuffix(f".{path}") if parameter.path else name,
            kind,
            np.shape(message["value"]),
            () if plate is None else (plate.subsample_size,),
            module,
        )

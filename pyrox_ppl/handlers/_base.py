"""The common part of the handlers: selection, memory, and the closing checks."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.primitives import _PYRO_STACK, Messenger

from pyrox_ppl._parameter import Parameter, generator
from pyrox_ppl._transform import TraceMark, inside_block
from pyrox_ppl._where import Where as Where
from pyrox_ppl._where import matches as matches
from pyrox_ppl._where import selection


class Plates:
    """Every plate but one: the plates that do not multiply a parameter.

    NumPyro's plates ask ``name in infer["block_plates"]``.
    """

    def __init__(self, but: str | None = None) -> None:
        self.but = but

    def __contains__(self, name: object) -> bool:
        return name != self.but


class _GlobalSites(Messenger):
    """Keeps plates further out from multiplying the sites that a prior samples."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            msg["infer"] = {"block_plates": Plates(), **msg["infer"]}


class Answer(NamedTuple):
    """The first read of a parameter: what was read, and the message with its value.

    The message alone does not do: ``numpyro.handlers.reparam`` strips it.
    """

    stored: Any
    plate: Any
    message: dict[str, Any]


@dataclasses.dataclass
class Block:
    """What a handler remembers between entering its block and leaving it."""

    entered_at: TraceMark
    cleanup: contextlib.ExitStack
    prepared: Any
    read: dict[str, Parameter] = dataclasses.field(default_factory=dict)
    answered: dict[str, Answer] = dataclasses.field(default_factory=dict)
    matched: set[str] = dataclasses.field(default_factory=set)


class AbstractParameterHandler(Messenger):
    """A handler that rewrites the messages of the parameters it selects.

    A subclass says in `answer` what a selected parameter becomes. This class selects
    (``where``), gives a parameter that is read again the same value, refuses two
    modules under one name, and raises on leaving the block if something was left
    without effect.
    """

    def __init__(self, fn: Callable | None, where: Where) -> None:
        super().__init__(fn)
        self._patterns, self._selects = selection(where, self.selects_by_default)
        self._block: Block | None = None

    @property
    def entered_at(self) -> TraceMark | None:
        """The JAX trace in which the block was entered; None outside a block."""
        return None if self._block is None else self._block.entered_at

    @property
    def block(self) -> Block:
        """The memory of the block that is open."""
        if self._block is None:
            raise RuntimeError(f"{self._label} is not entered.")
        return self._block

    @property
    def _label(self) -> str:
        return type(self).__name__

    def __enter__(self) -> None:
        if self._block is not None:
            raise ValueError(
                f"this {self._label} object is entered already: make one per block."
            )
        prepared = self.prepare()
        cleanup = contextlib.ExitStack()
        cleanup.enter_context(inside_block(True))
        self._block = Block(TraceMark(), cleanup, prepared)
        super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        block, self._block = self.block, None
        block.cleanup.close()
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            self.check_effect(block)

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "parameter":
            return
        block = self.block
        parameter = dataclasses.replace(msg["parameter"], name=msg["name"])
        block.read[parameter.name] = parameter
        given = (answer.message["value"] for answer in block.answered.values())
        if any(msg["stored"] is value for value in given):
            # Bound in this very block, then read as part of another module.
            msg["value"] = msg["stored"]
            keep_inside(msg)
            return
        if not self._is_selected(parameter):
            return
        if parameter.name in block.answered:
            _recall(msg, block.answered[parameter.name])
            return
        block.answered[parameter.name] = Answer(msg["stored"], msg["plate"], msg)
        self.answer(msg, parameter)

    def prepare(self) -> Any:
        """Make what the block needs, before it is entered: kept as ``prepared``."""
        return None

    def selects_by_default(self, parameter: Parameter) -> bool:
        """Whether a parameter is selected where no `where` is given: generators are."""
        return generator(parameter)

    @abc.abstractmethod
    def answer(self, msg: dict[str, Any], parameter: Parameter) -> None:
        """Rewrite the message of a selected parameter in place."""

    def check_effect(self, block: Block) -> None:
        """Raise if the block, or one of its patterns, was left without effect."""
        for pattern in self._patterns:
            if pattern not in block.matched:
                raise ValueError(
                    f"where={pattern!r} of {self._label} matches no parameter. "
                    f"{list_parameters(block)}"
                )
        if not block.answered:
            raise ValueError(
                f"a {self._label} block intercepted no parameter: the model would run "
                f"without it, silently. {list_parameters(block)}Call the module inside "
                "the block (one that is not of pyrox_ppl.nn through `bind(module, "
                "name)`, unbound before), or widen `where`."
            )

    def to_sample_site(self, msg: dict[str, Any], fn: Distribution) -> None:
        """Make a parameter's message that of an ordinary, global ``numpyro.sample``."""
        msg["fn"] = fn
        msg["args"] = ()
        msg["kwargs"] = {"rng_key": None, "sample_shape": ()}
        msg["intermediates"] = []
        msg["is_observed"] = False
        self.to_site(msg, "sample")

    def to_site(self, msg: dict[str, Any], site_type: str) -> None:
        """Make a parameter's message that of a global site of a type.

        Plates further out are told to leave it alone, but for the one that ``bind`` was
        asked for. That one, if it stands inside the block, has let the message pass
        when it was no site yet: it is applied here.
        """
        plate = msg["plate"]
        msg["type"] = site_type
        if plate is not None and plate in _PYRO_STACK[self._depth() :]:
            plate.process_message(msg)
        msg["infer"] = {"block_plates": Plates(None if plate is None else plate.name)}

    def check_outside(self, parameter: Parameter) -> None:
        """Raise if nothing stands outside the block that could draw a sample."""
        if self._depth() == 0:
            raise ValueError(
                f"{self._label} turns {parameter.name!r} into a site, but no NumPyro "
                "handler outside can give it a value: run this inside a model, or in "
                "`with numpyro.handlers.seed(rng_seed=0):`."
            )

    def _depth(self) -> int:
        """The place of this handler on NumPyro's stack."""
        return next(i for i, handler in enumerate(_PYRO_STACK) if handler is self)

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Run the body as if it stood outside the block, and its sites global.

        Handlers inside the block (a plate, a scope, a ``block``) do not see the
        messages sent meanwhile; those outside do.
        """
        here = self._depth()
        inner = _PYRO_STACK[here:]
        del _PYRO_STACK[here:]
        try:
            with _GlobalSites():
                yield
        finally:
            _PYRO_STACK[here:] = inner

    def _is_selected(self, parameter: Parameter) -> bool:
        matching = [p for p in self._patterns if matches(parameter.name, p)]
        self.block.matched.update(matching)
        return self._selects(parameter)


def list_parameters(block: Block) -> str:
    """The parameters that reached the handler, for an error message."""
    if not block.read:
        return "No parameter was read inside it."
    rows = (f"  {p.name} {p.shape} {p.role}" for p in block.read.values())
    return "The parameters read inside it:\n" + "\n".join(rows) + "\n"


def refuse_complex(parameter: Parameter, why: str) -> None:
    """Raise if a parameter is complex: `why` says what cannot be done with it."""
    if jnp.issubdtype(parameter.dtype, jnp.complexfloating):
        raise TypeError(
            f"{parameter.name!r} is complex ({parameter.dtype}), and {why}: keep its "
            "real and imaginary parts as two arrays, or leave it out by `where`."
        )


def keep_inside(msg: dict[str, Any]) -> None:
    """Show an answered message to no handler further out, and to no trace."""
    msg["stop"] = True
    del msg["name"]


def _recall(msg: dict[str, Any], first: Answer) -> None:
    """Answer a second read by the value of the first; none further out sees it."""
    if msg["stored"] is not first.stored or msg["plate"] is not first.plate:
        raise ValueError(
            f"two different modules read their parameters under the same name "
            f"{msg['name']!r}: one of shape {first.stored.shape}, one of shape "
            f"{msg['stored'].shape}. Give each its own name, by `bind(module, name)` "
            "or by calling it inside `with scope(name):`."
        )
    msg["value"] = first.message["value"]
    keep_inside(msg)

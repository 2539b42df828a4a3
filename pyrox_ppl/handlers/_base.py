"""The common part of the handlers: selection, and the closing checks."""

import abc
import contextlib
import dataclasses
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger

from pyrox_ppl._numpyro import handler_stack
from pyrox_ppl._parameter import Parameter, is_generator
from pyrox_ppl._transform import TraceMark, inside_block
from pyrox_ppl._where import Where as Where
from pyrox_ppl._where import names_match as names_match
from pyrox_ppl._where import selection
from pyrox_ppl.handlers._block import Answer, Block, list_parameters, recall
from pyrox_ppl.handlers._stack import at_the_read


class AbstractParameterHandler(Messenger):
    """A handler that rewrites the messages of the parameters it selects.

    A subclass says in `answer` what a selected parameter becomes. This class selects
    (``where``), gives a parameter that is read again the same value, refuses two
    modules under one name, and raises on leaving the block if something was left
    without effect.
    """

    def __init__(self, fn: Callable | None, where: Where) -> None:
        _check_model(fn, type(self))
        super().__init__(fn)
        self._patterns, self._selects = selection(where, self.selects_by_default)
        self._block: Block | None = None
        self._is_called = False

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._is_called = self.fn is not None
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._is_called = False

    def __enter__(self) -> None:
        if self.fn is not None and not self._is_called:
            raise TypeError(
                f"{self._label} got {self.fn!r} as the model to decorate, and is used "
                f"in a `with`, where that would not run: {_by_keyword(type(self))}."
            )
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
        if exc_value is not None:
            note_forgotten_vmap(exc_value)

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
            return
        if not self._is_selected(parameter):
            return
        here = self._depth()
        for handler in handler_stack()[:here]:
            if isinstance(handler, AbstractParameterHandler):
                handler.block.taken[parameter.name] = self._label
        if parameter.name in block.answered:
            recall(msg, block.answered[parameter.name], here)
            return
        inside = tuple(handler_stack()[here + 1 :])
        first = Answer(msg["stored"], msg["plate"], msg, inside)
        block.answered[parameter.name] = first
        self.answer(msg, parameter)

    def module_is_bound(self, name: str, called: bool) -> None:
        """Note a module that was met in the block, bound already: for messages.

        A call after a read is most often one of what was read, or of a part of it.
        """
        block = self.block
        if not called or not (block.read or block.taken or block.bound):
            block.bound.add(name)

    def prepare(self) -> Any:
        """Make what the block needs, before it is entered: kept as ``prepared``."""
        return None

    def selects_by_default(self, parameter: Parameter) -> bool:
        """Whether a parameter is selected where no `where` is given: generators are."""
        return is_generator(parameter)

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
                f"without it, silently. {list_parameters(block)}Read the module inside "
                "the block, unbound before, or widen `where`. A module of pyrox_ppl.nn "
                "reads itself when it is called; any other one through `bind(module, "
                'name)`: of an eqx.nn.MLP say `net = px.bind(mlp, "net")`.'
            )

    def to_sample_site(self, msg: dict[str, Any], fn: Distribution) -> None:
        """Make a parameter's message that of an ordinary ``numpyro.sample``."""
        msg["fn"] = fn
        msg["args"] = ()
        msg["kwargs"] = {"rng_key": None, "sample_shape": ()}
        msg["intermediates"] = []
        msg["is_observed"] = False
        msg["type"] = "sample"

    def at_the_read(
        self, msg: dict[str, Any], parameter: Parameter, plate: Any = None
    ) -> contextlib.AbstractContextManager[None]:
        """A context for sites that belong to a parameter: they stand at its read.

        They are in no plate but the one that is given. No parameter handler inside the
        block, nor this one, hears of what is read meanwhile: only those outside do.
        """
        return at_the_read(
            self._depth(),
            msg["parameter"].name,
            parameter.name,
            skip=AbstractParameterHandler,
            plate=plate,
        )

    def _depth(self) -> int:
        """The place of this handler on NumPyro's stack."""
        return next(i for i, handler in enumerate(handler_stack()) if handler is self)

    def _is_selected(self, parameter: Parameter) -> bool:
        matching = [p for p in self._patterns if names_match(parameter, p)]
        self.block.matched.update(matching)
        return self._selects(parameter)


def note_forgotten_vmap(error: BaseException) -> None:
    """Add to JAX's error of a product of wrong widths what is often its cause."""
    note = (
        "An Equinox module takes one input, without axes for a batch: did you mean "
        "`jax.vmap(net)(x)`?"
    )
    known = note in getattr(error, "__notes__", ())
    if isinstance(error, TypeError) and "dot_general" in str(error) and not known:
        error.add_note(note)


def _by_keyword(cls: type) -> str:
    """How the arguments of a handler are given."""
    kinds = inspect.signature(cls).parameters.values()
    names = [f"{p.name}=" for p in kinds if p.kind is p.KEYWORD_ONLY]
    return f"give what is no model by keyword ({', '.join(names)})"


def _check_model(fn: Any, cls: type) -> None:
    """Raise if what a handler is to decorate is no model, but another argument."""
    if fn is None or (callable(fn) and not isinstance(fn, Distribution)):
        return
    number = (
        isinstance(fn, int | float) and "prior_std" in inspect.signature(cls).parameters
    )
    raise TypeError(
        f"the only positional argument of {cls.__name__} is the model that it "
        f"decorates, got {fn!r}: {_by_keyword(cls)}"
        + (f", here prior_std={fn!r}." if number else ".")
    )


def refuse_complex(parameter: Parameter, why: str) -> None:
    """Raise if a parameter is complex: `why` says what cannot be done with it."""
    if jnp.issubdtype(parameter.dtype, jnp.complexfloating):
        raise TypeError(
            f"{parameter.name!r} is complex ({parameter.dtype}), and {why}: keep its "
            "real and imaginary parts as two arrays, or leave it out by `where`."
        )

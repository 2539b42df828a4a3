"""The base of the handlers: selects parameters, answers reads, checks the effect."""

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
from pyrox_ppl._where import Where, matches_parameter, parse_where
from pyrox_ppl.handlers._block import Answer, Block, describe_parameters, recall
from pyrox_ppl.handlers._stack import stand_at_read


class AbstractParameterHandler(Messenger):
    """A handler that rewrites the messages of the parameters it selects.

    A subclass says in `answer` what a selected parameter becomes. This class selects
    the parameters (``where``), answers a second read with the first value, refuses two
    modules under one name, and raises at the end of the block if the block, or a glob,
    had no effect.
    """

    def __init__(self, fn: Callable | None, where: Where) -> None:
        _check_model(fn, type(self))
        super().__init__(fn)
        self._patterns, self._selects = parse_where(where, self.selects_by_default)
        self._block: Block | None = None
        self._is_called = False

    @property
    def entered_at(self) -> TraceMark | None:
        """The JAX trace at the entry of the block; None outside a block."""
        return None if self._block is None else self._block.entered_at

    @property
    def block(self) -> Block:
        """The memory of the open block."""
        if self._block is None:
            raise RuntimeError(
                f"{self._label} is not entered: use it in a `with`, or as a decorator."
            )
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
                f"{self._label} got {self.fn!r} as a model to decorate, but a `with` "
                f"block would not run it: {_keyword_hint(type(self))}."
            )
        if self._block is not None:
            raise ValueError(
                f"this {self._label} object is already entered: make one per block."
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
        block.parameters[parameter.name] = parameter
        given = (answer.message["value"] for answer in block.answers.values())
        if any(msg["stored"] is value for value in given):
            # An array bound in this block is now read as part of another module.
            msg["value"] = msg["stored"]
            return
        if not self._is_selected(parameter):
            return
        here = self._depth()
        for handler in handler_stack()[:here]:
            if isinstance(handler, AbstractParameterHandler):
                handler.block.taken_by[parameter.name] = self._label
        if parameter.name in block.answers:
            recall(msg, block.answers[parameter.name], here)
            return
        inside = tuple(handler_stack()[here + 1 :])
        first = Answer(msg["stored"], msg["plate"], msg, inside)
        block.answers[parameter.name] = first
        self.answer(msg, parameter)

    def record_bound_module(self, name: str, called: bool) -> None:
        """Record a bound module that the block met, for error messages.

        A call after a read is ignored: it most often calls what was just read.
        """
        block = self.block
        met_any = block.parameters or block.taken_by or block.bound_modules
        if not called or not met_any:
            block.bound_modules.add(name)

    def prepare(self) -> Any:
        """Make what the block needs before its entry; it is kept as ``prepared``."""
        return None

    def selects_by_default(self, parameter: Parameter) -> bool:
        """Whether a parameter is selected without a `where`: generators are."""
        return is_generator(parameter)

    @abc.abstractmethod
    def answer(self, msg: dict[str, Any], parameter: Parameter) -> None:
        """Rewrite the message of a selected parameter in place."""

    def check_effect(self, block: Block) -> None:
        """Raise if the block, or one of its globs, had no effect."""
        for pattern in self._patterns:
            if pattern not in block.matched_globs:
                raise ValueError(
                    f"where={pattern!r} of {self._label} matches no parameter. "
                    f"{describe_parameters(block)}"
                )
        if not block.answers:
            raise ValueError(
                f"a {self._label} block intercepted no parameter, so it would silently "
                f"do nothing. {describe_parameters(block)}Read an unbound module "
                "inside the block, or widen `where`. A module of pyrox_ppl.nn reads "
                "itself when it is called; read any other module by `bind(module, "
                'name)`, for example `net = px.bind(mlp, "net")`.'
            )

    def make_sample_site(self, msg: dict[str, Any], fn: Distribution) -> None:
        """Turn a parameter's message into that of an ordinary ``numpyro.sample``."""
        msg["fn"] = fn
        msg["args"] = ()
        msg["kwargs"] = {"rng_key": None, "sample_shape": ()}
        msg["intermediates"] = []
        msg["is_observed"] = False
        msg["type"] = "sample"

    def stand_at_read(
        self, msg: dict[str, Any], parameter: Parameter, plate: Any = None
    ) -> contextlib.AbstractContextManager[None]:
        """Run the body as if it stood where the parameter is read.

        Its sites are in no plate except `plate`. Only the parameter handlers outside
        the block see what the body reads, not this one or those inside.
        """
        return stand_at_read(
            self._depth(),
            msg["parameter"].name,
            parameter.name,
            skip=AbstractParameterHandler,
            plate=plate,
        )

    def _depth(self) -> int:
        """Find the position of this handler on NumPyro's stack."""
        return next(i for i, handler in enumerate(handler_stack()) if handler is self)

    def _is_selected(self, parameter: Parameter) -> bool:
        matching = [p for p in self._patterns if matches_parameter(parameter, p)]
        self.block.matched_globs.update(matching)
        return self._selects(parameter)


def note_forgotten_vmap(error: BaseException) -> None:
    """Add the most frequent cause to JAX's error about a product of wrong widths."""
    note = (
        "An Equinox module takes one input without batch axes: did you mean "
        "`jax.vmap(net)(x)`?"
    )
    known = note in getattr(error, "__notes__", ())
    if isinstance(error, TypeError) and "dot_general" in str(error) and not known:
        error.add_note(note)


def _keyword_hint(cls: type) -> str:
    """Say which arguments of a handler are keyword-only."""
    kinds = inspect.signature(cls).parameters.values()
    names = [f"{p.name}=" for p in kinds if p.kind is p.KEYWORD_ONLY]
    return f"pass everything else by keyword ({', '.join(names)})"


def _check_model(fn: Any, cls: type) -> None:
    """Raise if the positional argument of a handler is not a model to decorate."""
    if fn is None or (callable(fn) and not isinstance(fn, Distribution)):
        return
    number = (
        isinstance(fn, int | float) and "prior_std" in inspect.signature(cls).parameters
    )
    raise TypeError(
        f"the only positional argument of {cls.__name__} is the model that it "
        f"decorates, got {fn!r}: {_keyword_hint(cls)}"
        + (f", here prior_std={fn!r}." if number else ".")
    )


def refuse_complex(parameter: Parameter, why: str) -> None:
    """Raise if a parameter is complex; `why` says why the handler needs a real one."""
    if jnp.issubdtype(parameter.dtype, jnp.complexfloating):
        raise TypeError(
            f"{parameter.name!r} is complex ({parameter.dtype}), but {why}: keep its "
            "real and imaginary parts as two arrays, or exclude it by `where`."
        )

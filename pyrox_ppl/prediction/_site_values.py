"""The sites of a model at every draw, as NumPyro's Predictive has them."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from tqdm.auto import tqdm

from pyrox_ppl._full_data import is_factor, redraw
from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._loop import (
    CHUNK_BYTES,
    DrawLoop,
    even_size,
    keys_of_draws,
    shapes_of_one,
)
from pyrox_ppl.prediction._model_call import (
    ModelCall,
    check_draw,
    check_draws,
    check_names,
)
from pyrox_ppl.prediction._trained import check_trained
from pyrox_ppl.prediction._uncertainty import LawMeans, law_at_draw

# The most memory that a site's values at all draws may take, in bytes. The model runs
# once for every block of them.
_BLOCK_BYTES = 4 * CHUNK_BYTES


def value_of(site: dict[str, Any]) -> jax.Array:
    """The value of a site."""
    return jnp.asarray(site["value"])


def site_function(
    call: ModelCall,
    sites: Sequence[str] | None = None,
    kinds: Sequence[str] = ("sample", "deterministic"),
    read: Callable[[dict[str, Any]], Any] = value_of,
) -> Callable[[tuple[dict[str, Any], jax.Array]], dict[str, Any]]:
    """The function ``(draw, key) -> values`` of a model's sites that are not drawn.

    `read` says what to take from a site: by default its value.

    The random numbers are those of NumPyro's ``Predictive``, which seeds every draw by
    itself, outside the handler that puts the draw in place. Deterministic sites are
    computed and not taken from the draws; nothing is subsampled.

    Raises:
        ValueError: On a call, if a site does not exist, if the draws are those of other
            sites, if a draw has another shape than its site, or if a part of the model
            has trained values and another has none.
    """

    def evaluate(draw_and_key: tuple[dict[str, Any], jax.Array]) -> dict[str, Any]:
        draw, key = draw_and_key
        own, draw = call.at(draw)
        put = _PutDraw(draw)
        run = handlers.substitute(redraw(own.run), substitute_fn=put)
        trace = handlers.trace(handlers.seed(run, key)).get_trace()
        check_trained(trace, own.params)
        check_draws(trace, draw)
        check_names(own, trace, draw, put.unused_noise)
        values = {
            name: read(site)
            for name, site in trace.items()
            if site["type"] in kinds
            and (
                site["type"] == "deterministic"
                or (name not in draw and name not in put.unused_noise)
            )
            and not (site["type"] == "sample" and is_factor(site))
        }
        if sites is None:
            return values
        missing = [name for name in sites if name not in values]
        if missing:
            raise ValueError(
                f"the model has no site {missing} to predict; it has {sorted(values)}."
            )
        return {name: values[name] for name in sites}

    return evaluate


class _PutDraw:
    """Puts the values of a draw in place of sites, for ``substitute``.

    A deterministic site is computed: its draws may belong to other data. There is one
    exception. If a parameter was drawn and the noise behind it was not (``net.weight``
    is there, ``net.weight_decentered`` is not), the parameter stays as drawn.

    Attributes:
        unused_noise: The sites of noise behind such parameters.
    """

    def __init__(self, draw: Mapping[str, Any]) -> None:
        self._draw = draw
        self._undrawn: set[str] = set()
        self.unused_noise: set[str] = set()

    def __call__(self, site: dict[str, Any]) -> Any:
        name = site["name"]
        noise = f"{name}_decentered"
        if site["type"] == "sample" and name not in self._draw:
            self._undrawn.add(name)
            return None
        if site["type"] == "deterministic" and noise in self._undrawn:
            if name not in self._draw:
                return None
            self.unused_noise.add(noise)
        elif site["type"] != "sample":
            return None
        check_draw(site, self._draw[name])
        return self._draw[name]


class SiteValues:
    """The sites of a model at every draw: all at once, or one of them block by block.

    Attributes:
        shapes: The shape and dtype of every site at one draw.
    """

    def __init__(
        self,
        call: ModelCall,
        draws: Draws,
        rng_key: PRNGKeyArray,
        sites: Sequence[str] | None = None,
        kinds: Sequence[str] = ("sample", "deterministic"),
        read: Callable[[dict[str, Any]], Any] = value_of,
        laws: LawMeans | None = None,
    ) -> None:
        """Trace the model.

        Args:
            call: The model.
            draws: The draws.
            rng_key: The key of the predictions.
            sites: Which sites; by default all that were not drawn.
            kinds: The types of sites to take.
            read: What to take from a site.
            laws: Takes what the distributions of these sites say. The first pass over
                the draws fills it.
        """

        def value_and_law(site: dict[str, Any]) -> tuple[Any, dict[str, jax.Array]]:
            has_law = laws is not None and site["type"] == "sample"
            return read(site), law_at_draw(site["fn"]) if has_law else {}

        self._evaluate = jax.jit(site_function(call, sites, kinds, value_and_law))
        self._number = draws.number
        self._draws = (draws.on_device(), keys_of_draws(rng_key, draws.number))
        self._unread_laws = laws
        shapes = jax.eval_shape(self._evaluate, shapes_of_one(self._draws))
        self.shapes = {name: value for name, (value, _) in shapes.items()}

    @property
    def block_size(self) -> int:
        """How many values of a site are held for all draws at a time, by default."""
        return max(1, _BLOCK_BYTES // (4 * self._number))

    def all(self, progress_bar: bool = False) -> dict[str, np.ndarray]:
        """All sites, with a leading axis of draws."""
        return self._run(
            functools.partial(self._loop, lambda values: values),
            description="predict",
            progress_bar=progress_bar,
        )

    def blocks(
        self, name: str, batch_size: int | None = None, progress_bar: bool = False
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """One site, a block of its values at a time; the model runs for every block.

        Each block overwrites the one before.
        """
        size = self.shapes[name].size
        if size == 0:
            return
        width = even_size(size, batch_size or self.block_size)

        def block(values: dict[str, jax.Array], start: Any) -> jax.Array:
            whole = values[name].reshape(-1)
            return jax.lax.dynamic_slice(whole, (start,), (width,))

        @functools.cache
        def loop(with_laws: bool) -> DrawLoop:
            return self._loop(block, with_laws, jnp.zeros((), int))

        values = None
        starts = range(0, size, width)
        for start in tqdm(starts, desc=name, disable=not progress_bar, delay=2.0):
            begin = min(start, size - width)
            values = self._run(loop, jnp.asarray(begin), out=values)
            yield slice(begin, begin + width), values

    def _loop(
        self, take: Callable[..., Any], with_laws: bool, *others: Any
    ) -> DrawLoop:
        """The pass that keeps what `take` takes of the sites, with or without laws."""

        def one(draw: Any, *others: Any) -> Any:
            sites = self._evaluate(draw)
            kept = take({name: value for name, (value, _) in sites.items()}, *others)
            laws = {name: law for name, (_, law) in sites.items()}
            return (kept, laws) if with_laws else kept

        return DrawLoop(one, self._draws, self._number, *others)

    def _run(
        self, loop: Callable[[bool], DrawLoop], *others: Any, **options: Any
    ) -> Any:
        """One pass over the draws; the first fills the laws, if they are wanted."""
        laws, self._unread_laws = self._unread_laws, None
        consume = None if laws is None else laws.add
        return loop(laws is not None).run(*others, consume=consume, **options)

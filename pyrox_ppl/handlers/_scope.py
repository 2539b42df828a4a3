"""scope: prefixes the names of sites."""

from numpyro import handlers

from pyrox_ppl._parameter import check_name


class scope(handlers.scope):
    r"""Prefix every site inside with a name and a dot.

    This is NumPyro's ``scope`` with the divider of parameter names. If one handler
    block reads the same module under two scopes, each scope has its own independent
    parameters.

    **Sites**: ``<name>.<site>``, plates included.

    Args:
        name: The prefix. Not empty, and without ``/``.

    Raises:
        ValueError: If the name is empty or contains ``/``.

    Example:
        >>> import jax, pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> from pyrox_ppl.nn import FiLM
        >>> film = FiLM.init(3, 2, key=jax.random.key(0))
        >>> def model(h, z):
        ...     with px.bayesianize():
        ...         with px.scope("left"):
        ...             h = film(h, z)
        ...         with px.scope("right"):
        ...             return film(h, z)
        >>> inputs = jax.numpy.ones(3), jax.numpy.ones(2)
        >>> print(*trace(seed(model, 0)).get_trace(*inputs), sep="\n")
        left.affine_modulation.generator.weight
        left.affine_modulation.generator.bias
        right.affine_modulation.generator.weight
        right.affine_modulation.generator.bias
    """

    def __init__(self, name: str) -> None:
        super().__init__(prefix=check_name(name), divider=".")

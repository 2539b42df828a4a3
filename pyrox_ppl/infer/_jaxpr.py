"""Jaxprs: the names of primitives, the bodies of calls and loops."""

from typing import Any

from pyrox_ppl._jaxpr import open_jaxpr


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


LINEAR_ELEMENTWISE = names(
    "add add_any sub neg copy copy_p real imag name optimization_barrier "
    "sharding_constraint"
)
ELEMENTWISE = LINEAR_ELEMENTWISE | names(
    "abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil "
    "clamp conj convert_element_type cos cosh digamma div eq erf erf_inv erfc exp exp2 "
    "expm1 floor ge gt igamma igammac integer_pow is_finite le lgamma log log1p log2 "
    "logistic lt max min mul ne nextafter not one_minus_square or polygamma pow "
    "reduce_precision "
    "regularized_incomplete_beta rem round rsqrt select_n sign sin sinh sqrt square "
    "stop_gradient tan tanh xor zeta pyrox_ppl_sin pyrox_ppl_cos"
)
# Functions with a derivative of their own, and calls that mean what their body means.
OWN_DERIVATIVE = names("custom_jvp_call custom_vjp_call")
CHECKPOINTS = names("checkpoint remat2")
CALLS = OWN_DERIVATIVE | CHECKPOINTS | names("jit pjit closed_call")
# They move the entries of an array, or leave some out.
STRUCTURAL = names(
    "transpose squeeze broadcast_in_dim reshape slice rev convert_element_type copy "
    "copy_p gather dynamic_slice"
)
CONTRACTIONS = names("dot_general conv_general_dilated")


def inner_jaxpr(params: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The body of a call, with its constants."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return open_jaxpr(next(params[name] for name in names if name in params))


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """The numbers of constants and of carried values of a scan."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()
    return len(constants), len(carry)

"""NumPyro kernels: one kernel a file."""

from pyrox_ppl.infer.kernels._flat_nuts import FlatNUTS as FlatNUTS
from pyrox_ppl.infer.kernels._mclmc import MCLMC as MCLMC
from pyrox_ppl.infer.kernels._members import (
    init_params_from_members as init_params_from_members,
)
from pyrox_ppl.infer.kernels._sghmc import SGHMC as SGHMC
from pyrox_ppl.infer.kernels._sgld import SGLD as SGLD

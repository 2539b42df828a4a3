"""NumPyro kernels: one kernel a file."""

from pyrox_ppl.infer.kernels._flat_nuts import FlatNUTS as FlatNUTS

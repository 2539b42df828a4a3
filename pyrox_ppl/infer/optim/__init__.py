"""NumPyro optimisers: one a file."""

from pyrox_ppl.infer.optim._ivon import IVON as IVON

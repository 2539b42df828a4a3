"""NumPyro guides: one guide a file."""

from pyrox_ppl.infer.guides._amortized import AmortizedGuide as AmortizedGuide
from pyrox_ppl.infer.guides._auto_flat_normal import AutoFlatNormal as AutoFlatNormal
from pyrox_ppl.infer.guides._auto_laplace import AutoLaplace as AutoLaplace
from pyrox_ppl.infer.guides._auto_swag import AutoSWAG as AutoSWAG

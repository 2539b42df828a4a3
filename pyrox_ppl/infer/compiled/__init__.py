"""Programs of NumPyro's MCMC, SVI and Predictive, made once and kept."""

from pyrox_ppl.infer.compiled._cache import keep_compiled as keep_compiled
from pyrox_ppl.infer.compiled._mcmc import CompiledMCMC as CompiledMCMC
from pyrox_ppl.infer.compiled._predictive import (
    CompiledPredictive as CompiledPredictive,
)
from pyrox_ppl.infer.compiled._svi import CompiledSVI as CompiledSVI

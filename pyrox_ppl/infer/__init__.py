"""What NumPyro's inference lacks: it stays NumPyro's, with layers around it."""

from pyrox_ppl.infer.amortized_guide import AmortizedGuide as AmortizedGuide
from pyrox_ppl.infer.compilation_cache import keep_compiled as keep_compiled
from pyrox_ppl.infer.compiled_mcmc import CompiledMCMC as CompiledMCMC
from pyrox_ppl.infer.compiled_predictive import (
    CompiledPredictive as CompiledPredictive,
)
from pyrox_ppl.infer.compiled_svi import CompiledSVI as CompiledSVI
from pyrox_ppl.infer.fit import MinibatchResult as MinibatchResult
from pyrox_ppl.infer.fit import fit_minibatches as fit_minibatches
from pyrox_ppl.infer.flat_normal import FlatNormal as FlatNormal
from pyrox_ppl.infer.flat_nuts import FlatNUTS as FlatNUTS
from pyrox_ppl.infer.init_to_stored import init_to_stored as init_to_stored
from pyrox_ppl.infer.minibatch import MinibatchLoader as MinibatchLoader
from pyrox_ppl.infer.modules import draw_module as draw_module
from pyrox_ppl.infer.modules import mean_module as mean_module
from pyrox_ppl.infer.modules import posterior_modules as posterior_modules
from pyrox_ppl.infer.predict import predict as predict
from pyrox_ppl.infer.resumable import run_resumable as run_resumable
from pyrox_ppl.infer.resumable_svi import run_svi_resumable as run_svi_resumable
from pyrox_ppl.infer.sharding import shard_data as shard_data

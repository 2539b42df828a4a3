"""What NumPyro's inference lacks: guides, kernels, compiled and resumable runs."""

from pyrox_ppl.infer._init_to_stored import init_to_stored as init_to_stored
from pyrox_ppl.infer.compiled import CompiledMCMC as CompiledMCMC
from pyrox_ppl.infer.compiled import CompiledPredictive as CompiledPredictive
from pyrox_ppl.infer.compiled import CompiledSVI as CompiledSVI
from pyrox_ppl.infer.compiled import keep_compiled as keep_compiled
from pyrox_ppl.infer.data import MinibatchLoader as MinibatchLoader
from pyrox_ppl.infer.data import shard_data as shard_data
from pyrox_ppl.infer.ensembles import EnsembleResult as EnsembleResult
from pyrox_ppl.infer.ensembles import run_ensemble as run_ensemble
from pyrox_ppl.infer.guides import AmortizedGuide as AmortizedGuide
from pyrox_ppl.infer.guides import AutoFlatNormal as AutoFlatNormal
from pyrox_ppl.infer.guides import AutoLaplace as AutoLaplace
from pyrox_ppl.infer.guides import AutoSWAG as AutoSWAG
from pyrox_ppl.infer.kernels import MCLMC as MCLMC
from pyrox_ppl.infer.kernels import SGHMC as SGHMC
from pyrox_ppl.infer.kernels import SGLD as SGLD
from pyrox_ppl.infer.kernels import FlatNUTS as FlatNUTS
from pyrox_ppl.infer.kernels import init_params_from_members as init_params_from_members
from pyrox_ppl.infer.losses import Flipout_ELBO as Flipout_ELBO
from pyrox_ppl.infer.losses import LocalReparam_ELBO as LocalReparam_ELBO
from pyrox_ppl.infer.optim import IVON as IVON
from pyrox_ppl.infer.resumable import MinibatchResult as MinibatchResult
from pyrox_ppl.infer.resumable import run_mcmc as run_mcmc
from pyrox_ppl.infer.resumable import run_minibatches as run_minibatches
from pyrox_ppl.infer.resumable import run_svi as run_svi

__all__ = [
    "IVON",
    "MCLMC",
    "SGHMC",
    "SGLD",
    "AmortizedGuide",
    "AutoFlatNormal",
    "AutoLaplace",
    "AutoSWAG",
    "CompiledMCMC",
    "CompiledPredictive",
    "CompiledSVI",
    "EnsembleResult",
    "FlatNUTS",
    "Flipout_ELBO",
    "LocalReparam_ELBO",
    "MinibatchLoader",
    "MinibatchResult",
    "init_params_from_members",
    "init_to_stored",
    "keep_compiled",
    "run_ensemble",
    "run_mcmc",
    "run_minibatches",
    "run_svi",
    "shard_data",
]


def __dir__() -> list[str]:
    """The public names, without the private packages that define them."""
    return __all__

"""Deterministic Equinox modules for conditioning, and nothing else."""

from pyrox_ppl.nn.affine import AffineModulation as AffineModulation
from pyrox_ppl.nn.affine import FiLM as FiLM
from pyrox_ppl.nn.concat import ConcatConditioner as ConcatConditioner
from pyrox_ppl.nn.conditioned_inr import ConditionedINR as ConditionedINR
from pyrox_ppl.nn.conditioner import AbstractConditioner as AbstractConditioner
from pyrox_ppl.nn.fourier import RandomKitchenSinks as RandomKitchenSinks
from pyrox_ppl.nn.fourier import RBFFourierFeatures as RBFFourierFeatures
from pyrox_ppl.nn.hyper_fourier import ConditionedRFFNet as ConditionedRFFNet
from pyrox_ppl.nn.hyper_fourier import HyperFourierFeatures as HyperFourierFeatures
from pyrox_ppl.nn.hyper_linear import HyperLinear as HyperLinear
from pyrox_ppl.nn.hyper_siren import HyperSIREN as HyperSIREN
from pyrox_ppl.nn.hypernetwork import HyperNetwork as HyperNetwork
from pyrox_ppl.nn.siren import SIREN as SIREN
from pyrox_ppl.nn.siren import SirenDense as SirenDense

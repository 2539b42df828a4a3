"""Deterministic Equinox modules for conditioning; they know nothing of priors."""

from pyrox_ppl.nn._affine import AffineModulation as AffineModulation
from pyrox_ppl.nn._affine import FiLM as FiLM
from pyrox_ppl.nn._concat import ConcatConditioner as ConcatConditioner
from pyrox_ppl.nn._conditioned_inr import ConditionedINR as ConditionedINR
from pyrox_ppl.nn._conditioner import AbstractConditioner as AbstractConditioner
from pyrox_ppl.nn._fourier import RandomKitchenSinks as RandomKitchenSinks
from pyrox_ppl.nn._fourier import RBFFourierFeatures as RBFFourierFeatures
from pyrox_ppl.nn._hyper_fourier import ConditionedRFFNet as ConditionedRFFNet
from pyrox_ppl.nn._hyper_fourier import HyperFourierFeatures as HyperFourierFeatures
from pyrox_ppl.nn._hyper_linear import HyperLinear as HyperLinear
from pyrox_ppl.nn._hyper_siren import HyperSIREN as HyperSIREN
from pyrox_ppl.nn._hypernetwork import HyperNetwork as HyperNetwork
from pyrox_ppl.nn._siren import SIREN as SIREN
from pyrox_ppl.nn._siren import SirenDense as SirenDense

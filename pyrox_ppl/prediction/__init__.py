"""Predictions of models and of modules in bounded memory; modules out of draws."""

from pyrox_ppl.prediction._modules import module_from_draw as module_from_draw
from pyrox_ppl.prediction._modules import module_from_mean as module_from_mean
from pyrox_ppl.prediction._modules import modules_from_draws as modules_from_draws
from pyrox_ppl.prediction._predict import predict as predict
from pyrox_ppl.prediction._prediction import Prediction as Prediction

"""How good predictions are: proper scores, calibration, conformal intervals and sets.

Functions of arrays, NumPy's or JAX's, in any precision; results are NumPy arrays in
double precision, whether JAX uses x64 or not. The first argument is what was observed,
as in scikit-learn and scoringrules, and the first axis of draws is the draws.

Scores have one value for every row, so that methods can be compared row by row on the
same data; the mean over rows is the usual figure.
"""

from pyrox_ppl.scores._classes import accuracy as accuracy
from pyrox_ppl.scores._classes import brier_score as brier_score
from pyrox_ppl.scores._classes import class_log_score as class_log_score
from pyrox_ppl.scores._classes import (
    ranked_probability_score as ranked_probability_score,
)
from pyrox_ppl.scores._conformal import ConformalInterval as ConformalInterval
from pyrox_ppl.scores._conformal import ConformalSets as ConformalSets
from pyrox_ppl.scores._crps import crps as crps
from pyrox_ppl.scores._crps import energy_score as energy_score
from pyrox_ppl.scores._intervals import central_interval as central_interval
from pyrox_ppl.scores._intervals import coverage as coverage
from pyrox_ppl.scores._intervals import interval_score as interval_score
from pyrox_ppl.scores._intervals import sharpness as sharpness
from pyrox_ppl.scores._log_score import log_score as log_score
from pyrox_ppl.scores._pit import pit as pit
from pyrox_ppl.scores._reliability import CalibrationError as CalibrationError
from pyrox_ppl.scores._reliability import ReliabilityCurve as ReliabilityCurve
from pyrox_ppl.scores._reliability import (
    expected_calibration_error as expected_calibration_error,
)
from pyrox_ppl.scores._reliability import reliability_curve as reliability_curve
from pyrox_ppl.scores._selection import RejectionCurve as RejectionCurve
from pyrox_ppl.scores._selection import (
    accuracy_rejection_curve as accuracy_rejection_curve,
)
from pyrox_ppl.scores._selection import most_uncertain as most_uncertain
from pyrox_ppl.scores._temperature import Temperature as Temperature
from pyrox_ppl.scores._uncertainty import EntropySplit as EntropySplit
from pyrox_ppl.scores._uncertainty import VarianceSplit as VarianceSplit
from pyrox_ppl.scores._uncertainty import entropy_split as entropy_split
from pyrox_ppl.scores._uncertainty import mutual_information as mutual_information
from pyrox_ppl.scores._uncertainty import predictive_entropy as predictive_entropy
from pyrox_ppl.scores._uncertainty import variance_split as variance_split

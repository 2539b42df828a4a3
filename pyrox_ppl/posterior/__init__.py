"""What inference leaves behind, as ArviZ has it; the only part that imports ArviZ."""

from pyrox_ppl.posterior._calibration import calibration as calibration
from pyrox_ppl.posterior._calibration_records import Calibration as Calibration
from pyrox_ppl.posterior._calibration_records import (
    ClassCalibration as ClassCalibration,
)
from pyrox_ppl.posterior._compare import compare as compare
from pyrox_ppl.posterior._comparison import Comparison as Comparison
from pyrox_ppl.posterior._datatree import to_datatree as to_datatree
from pyrox_ppl.posterior._diagnose import diagnose as diagnose
from pyrox_ppl.posterior._diagnosis import Diagnosis as Diagnosis
from pyrox_ppl.posterior._from_modules import (
    draws_from_modules as draws_from_modules,
)
from pyrox_ppl.posterior._plot_calibration import plot_calibration as plot_calibration
from pyrox_ppl.posterior._plot_comparison import plot_comparison as plot_comparison
from pyrox_ppl.posterior._plot_diagnostics import plot_diagnostics as plot_diagnostics
from pyrox_ppl.posterior._plot_fit import plot_fit as plot_fit
from pyrox_ppl.posterior._recalibrate import Recalibration as Recalibration
from pyrox_ppl.posterior._recalibrate import recalibrate as recalibrate
from pyrox_ppl.posterior._saving import Saved as Saved
from pyrox_ppl.posterior._saving import load as load
from pyrox_ppl.posterior._saving import save as save
from pyrox_ppl.posterior._select import (
    accuracy_rejection_curve as accuracy_rejection_curve,
)
from pyrox_ppl.posterior._select import most_uncertain as most_uncertain
from pyrox_ppl.posterior._summary import summary as summary

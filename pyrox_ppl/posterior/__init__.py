"""What inference leaves behind, as ArviZ has it; the only part that imports ArviZ."""

from pyrox_ppl.posterior.calibration import calibration as calibration
from pyrox_ppl.posterior.datatree import to_datatree as to_datatree
from pyrox_ppl.posterior.diagnose import diagnose as diagnose
from pyrox_ppl.posterior.plots import plot_calibration as plot_calibration
from pyrox_ppl.posterior.plots import plot_diagnostics as plot_diagnostics
from pyrox_ppl.posterior.plots import plot_fit as plot_fit
from pyrox_ppl.posterior.saving import load as load
from pyrox_ppl.posterior.saving import save as save
from pyrox_ppl.posterior.summary import summary as summary

"""What NumPyro's inference lacks."""

from pyrox_ppl.infer.amortized_guide import AmortizedGuide as AmortizedGuide

"""Explains what a model will do with its parameters, before it runs."""

from pyrox_ppl.explanation._explain import explain as explain
from pyrox_ppl.explanation._explanation import ExplainedParameter as ExplainedParameter
from pyrox_ppl.explanation._explanation import ExplainedSite as ExplainedSite
from pyrox_ppl.explanation._explanation import Explanation as Explanation

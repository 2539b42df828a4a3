"""What a model will do with its parameters, before it runs."""

from pyrox_ppl.explain.explain import explain as explain
from pyrox_ppl.explain.explanation import ExplainedParameter as ExplainedParameter
from pyrox_ppl.explain.explanation import ExplainedSite as ExplainedSite
from pyrox_ppl.explain.explanation import Explanation as Explanation

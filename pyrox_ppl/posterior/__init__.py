"""What inference leaves behind, as ArviZ has it; the only part that imports ArviZ."""

from pyrox_ppl.posterior.datatree import to_datatree as to_datatree

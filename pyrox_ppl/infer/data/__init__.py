"""Data larger than memory, or spread over devices."""

from pyrox_ppl.infer.data._loader import MinibatchLoader as MinibatchLoader
from pyrox_ppl.infer.data._sharding import shard_data as shard_data

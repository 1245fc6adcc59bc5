"""Many images overnight: `python -m amused.batch` writes them in shards and goes on where it stopped.

for recipe, image in amused.batch.read("folder"):
    ...
"""

from amused.batch.shards import read

__all__ = ["read"]

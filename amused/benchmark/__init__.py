"""How fast this is, and how that compares: `python -m amused.benchmark --help`."""

"""Training: the data and recipe of the bundled checkpoint, and its honest scoring. Nothing here is needed to run the demo."""

"""Training: data, recipe and scoring of the bundled checkpoint. Nothing here is needed to run the demo."""

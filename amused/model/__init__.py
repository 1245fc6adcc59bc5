"""The networks of aMUSEd in plain PyTorch. They know no files, no prompts' meaning and no browser."""

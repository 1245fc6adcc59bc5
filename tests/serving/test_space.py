"""A Space: its configuration in the README."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_configuration_is_complete_and_names_what_the_project_uses() -> None:
    front = (ROOT / "README.md").read_text("utf-8").split("---")[1]
    values = dict(re.findall(r"^(\w+): *(.*)$", front, re.M))
    requirements = (ROOT / "requirements.txt").read_text("utf-8").split()
    assert f"gradio=={values['sdk_version']}" in requirements and values["sdk"] == "gradio"
    assert values["app_file"] == "app.py" and (ROOT / values["app_file"]).is_file()
    assert (ROOT / values["thumbnail"]).is_file() and len(values["short_description"]) <= 60
    assert tuple(map(int, values["python_version"].split("."))) >= (3, 11)
    wanted = {"title", "emoji", "colorFrom", "colorTo", "license", "suggested_hardware", "startup_duration_timeout"}
    assert wanted <= set(values) and {"models", "tags", "preload_from_hub"} <= set(values)

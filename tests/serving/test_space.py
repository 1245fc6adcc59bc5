"""A Space: its configuration in the README, and runs in forked processes.

ZeroGPU forks a process for each run, too, but its emulation of CUDA is not played here: these tests do not show that a
model is loaded there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import tiny_checkpoint
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SPACES = '''
"""In place of `spaces`: each call in a forked process, with all that goes in and comes out pickled. No CUDA."""
import multiprocessing, pickle

durations = []

def GPU(task, duration):
    fork = multiprocessing.get_context("fork")

    def call(*given):
        durations.append(duration(*given))
        ours, theirs = fork.Pipe()

        def work(given):
            try:
                for event in task(*pickle.loads(given)):
                    theirs.send_bytes(pickle.dumps(event))
            except Exception as error:  # the real one tells the class of an error and nothing else
                theirs.send_bytes(pickle.dumps(type(error).__name__))
            theirs.send_bytes(b"")

        process = fork.Process(target=work, args=(pickle.dumps(given),), daemon=True)
        process.start()
        try:
            while data := ours.recv_bytes():
                event = pickle.loads(data)
                if isinstance(event, str):
                    raise RuntimeError(event)
                yield event
        finally:
            process.kill()
            process.join()

    return call
'''

SCRIPT = """
import json, os, sys, threading
from PIL import Image
from amused.checkpoints import weights
reads = []
read_weights = weights.read_weights
def counted(path, *rest):
    print("read", os.getpid(), path.name, flush=True)
    return read_weights(path, *rest)
weights.read_weights = counted

import spaces
from amused.errors import UserError
from amused.recipe.recipe import Recipe
from amused.serving.jobs import Progress, Request, Result
from amused.serving.runtime import Runtime

runtime = Runtime(default=sys.argv[1])
runtime.warm_up().join()

def run(recipe, *given):
    events = runtime.run(lambda: Request((recipe,), *given))
    return [event for event in events if isinstance(event, Progress | Result)]

def digest(event):
    return [event.seed, type(event.tokens).__module__, event.tokens.tolist(), event.image.size, event.fingerprint]

model = dict(model=runtime.default)
picture = Image.open(sys.argv[2]).convert("RGB")
sweep = run(Recipe("text_to_image", "a red cat", (1, 2), steps=8, **model))
redrawn = run(Recipe("image_to_image", "a red cat", (3,), steps=4, **model), picture)
try:
    run(Recipe("inpaint", "a red cat", (3,), steps=4, **model), picture, Image.new("L", picture.size))
    refused = None
except UserError as error:
    refused = str(error)
together = [None] * 3
def beside(index):
    together[index] = run(Recipe("text_to_image", "a blue dog", (index,), steps=4, **model))[-1]
threads = [threading.Thread(target=beside, args=(index,)) for index in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(dict(
    pid=os.getpid(), durations=spaces.durations, refused=refused,
    events=[type(event).__name__ for event in sweep],
    previews=sum(event.preview is not None for event in sweep if isinstance(event, Progress)),
    made=[digest(event) for event in [*sweep, *redrawn, *together] if isinstance(event, Result)],
)))
"""


def test_runs_in_forked_processes_share_the_loaded_model(tmp_path: Path) -> None:
    """And give back what any process can use."""
    import amused
    from amused.generation.pipeline import Picture
    from amused.recipe.recipe import Recipe

    folder = tiny_checkpoint(tmp_path / "tiny")
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).save(tmp_path / "picture.png")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/spaces.py").write_text(SPACES)
    environment = {
        **os.environ,
        "SPACES_ZERO_GPU": "true",
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "packages"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",  # threads of OpenMP do not survive a fork
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "picture.png")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    *reads, last = run.stdout.splitlines()
    told = json.loads(last)
    # Weights are read once, before any fork, those of image tasks among them.
    assert {line.split()[1] for line in reads} == {str(told["pid"])}
    assert len([line for line in reads if "model" in line and "diffusion" not in line]) == 1
    assert told["durations"][:3] == [17, 15, 15] and len(told["durations"]) == 6
    assert told["events"] == [*["Progress"] * 8, "Result"] * 2 and told["previews"] >= 1
    assert told["refused"] == "Paint over the part to change, or upload a mask."
    model = amused.load(folder, device="cpu")
    for _, module, _, size, made in told["made"]:
        assert module == "numpy" and size == [64, 64] and made == model.fingerprint
    for (seed, _, tokens, *_), (prompt, steps) in zip(
        [told["made"][index] for index in (0, 1, 3, 4, 5)], [("a red cat", 8)] * 2 + [("a blue dog", 4)] * 3
    ):
        recipe = Recipe("text_to_image", prompt, (seed,), steps=steps, model=model.name)
        (alone,) = (event for event in model.generate(recipe) if isinstance(event, Picture))
        assert alone.tokens.tolist() == tokens


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


@pytest.mark.parametrize(("steps", "pictures", "seconds"), [(1, 1, 15), (12, 4, 20), (12, 64, 92), (100, 64, 120)])
def test_a_shared_gpu_is_asked_for_as_long_as_the_request_takes(steps: int, pictures: int, seconds: int) -> None:
    from amused.recipe.recipe import TEXT_TO_IMAGE, Recipe
    from amused.serving.zero_gpu import gpu_seconds

    assert gpu_seconds(Recipe(TEXT_TO_IMAGE, "a", tuple(range(pictures)), steps=steps), None, None) == seconds

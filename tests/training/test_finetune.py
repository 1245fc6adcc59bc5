"""Fine-tuning: the published options, loss and layouts; what is done for memory, and what can go wrong."""

from __future__ import annotations

import csv
import errno
import gc
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import types
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from helpers.profiles import matrix_profile
from helpers.tiny import tiny_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

import amused
from amused.checkpoints.hub import locate
from amused.checkpoints.lora import merged, read_adapter
from amused.errors import UserError
from amused.generation.images import load_image
from amused.model.text import tokenize
from amused.model.vqgan import VQGAN
from amused.training.finetune import data as finetune_data
from amused.training.finetune import model as finetune_model
from amused.training.finetune import state as finetune_state
from amused.training.finetune import train as finetune
from amused.training.finetune.data import Batches, EncodedImages, crops_of
from amused.training.finetune.examples import Example, read_dataset, read_folder
from amused.training.finetune.model import EMA, HalfLinear, TrainingModel, keep_half
from amused.training.finetune.options import parse_options

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red cat", "a blue dog", "hat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tune") / "tiny", seed=3)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in zip(PROMPTS, ((64, 64), (96, 64), (80, 130))):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size).save(folder / f"{name}.png")
    return folder


def options(model, *more, **named):
    """Options of a quick run; `named` as they are on the command line."""
    quick = {"max_train_steps": 4, "train_batch_size": 2, "seed": 5, "report_to": "none", "checkpointing_steps": 100}
    given = ["--pretrained_model_name_or_path", str(model), *map(str, more)]
    for name, value in {**quick, **named}.items():
        given += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return parse_options(given)


def train(model, pictures, output, *more, **named) -> list[float]:
    AcceleratorState._reset_state()  # the library keeps one of a process, where a run is a process
    finetune.train(options(model, *more, instance_data_dir=pictures, output_dir=output, **named))
    return losses(output)


def losses(output: Path) -> list[float]:
    with (output / "loss.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Options

PUBLISHED = {  # of the published script, where they are not None
    "use_8bit_adam": False, "dataloader_num_workers": 0, "allow_tf32": False, "use_ema": False, "ema_decay": 0.9999,
    "ema_update_after_step": 0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-08, "output_dir": Path("muse_training"), "logging_dir": Path("logs"),
    "checkpointing_steps": 500, "logging_steps": 50, "train_batch_size": 16, "gradient_accumulation_steps": 1,
    "learning_rate": 0.0003, "scale_lr": False, "lr_scheduler": "constant", "lr_warmup_steps": 500,
    "validation_steps": 100, "report_to": "wandb", "min_masking_rate": 0.0, "cond_dropout_prob": 0.0,
    "use_lora": False, "text_encoder_use_lora": False, "lora_r": 16, "lora_alpha": 32,
    "lora_target_modules": ["to_q", "to_k", "to_v"], "text_encoder_lora_r": 16, "text_encoder_lora_alpha": 32,
    "text_encoder_lora_target_modules": ["to_q", "to_k", "to_v"], "train_text_encoder": False,
    "gradient_checkpointing": False, "revision": None, "variant": None, "max_train_steps": 1000,
    "checkpoints_total_limit": None, "resume_from_checkpoint": None, "mixed_precision": None, "max_grad_norm": None,
}  # fmt: skip


def test_the_published_options_have_their_names_and_defaults() -> None:
    found = parse_options(["--pretrained_model_name_or_path", "amused/amused-256", "--instance_data_image", "x.png"])
    assert {name: getattr(found, name) for name in PUBLISHED} == PUBLISHED


def test_a_published_command_line_is_understood() -> None:
    line = (
        "--output_dir out --train_batch_size 1 --gradient_accumulation_steps 16 --learning_rate 8e-4 --use_lora "
        "--pretrained_model_name_or_path amused/amused-256 --instance_data_dataset m1guelpf/nouns --image_key image "
        "--prompt_key text --resolution 256 --mixed_precision fp16 --lr_scheduler constant --max_train_steps 10000 "
        "--checkpointing_steps 500 --validation_steps 250 --gradient_checkpointing --validation_prompts"
    )
    found = parse_options([*line.split(), "a pixel art character", "square red glasses"])
    assert found.validation_prompts == ["a pixel art character", "square red glasses"]


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"train_batch_size": 0}, "--train_batch_size: must be greater than 0"),
        ({"learning_rate": "nan"}, "--learning_rate: must be greater than 0"),
        ({"max_train_steps": "many"}, "--max_train_steps: invalid int value"),
        ({"cond_dropout_prob": 2}, "--cond_dropout_prob: must be between 0 and 1"),
        ({"instance_data_image": "x.png"}, "Give one of"),
        ({"resolution": 60}, "multiple of 16"),
        ({"resume_from_checkpoint": "checkpoint-9"}, "no checkpoint checkpoint-9"),
        ({"lora_target_modules": ["to_nowhere"]}, "No layers are called to_nowhere; there are"),
    ],
)
def test_an_option_that_cannot_be_is_refused(model, pictures, tmp_path, capsys, wrong, says) -> None:
    with pytest.raises((UserError, SystemExit)) as refused:
        train(model, pictures, tmp_path / "out", "--use_lora", **wrong)
    assert re.search(says, f"{refused.value} {capsys.readouterr().err}")


# The loss


def reference_loss(model, tokens, masked, ids, micro) -> torch.Tensor:
    """The published script's, on diffusers' and transformers' networks."""
    from diffusers import UVit2DModel

    half = {"variant": "fp16", "torch_dtype": torch.float32}
    network = UVit2DModel.from_pretrained(model, subfolder="transformer", **half)
    text = CLIPTextModelWithProjection.from_pretrained(model, subfolder="text_encoder", **half)(
        ids, output_hidden_states=True
    )
    inputs = torch.where(masked, network.config.vocab_size - 1, tokens)
    labels = torch.where(masked, tokens, -100)
    logits = network(inputs, text.hidden_states[-2], text.text_embeds, micro)
    return F.cross_entropy(logits, labels, ignore_index=-100)


@pytest.mark.parametrize("lora", (False, True))
def test_the_loss_is_the_published_one(model, pictures, tmp_path, monkeypatch, lora) -> None:
    seen = []
    forward = TrainingModel.forward

    def spy(self, tokens, masked, micro, texts):
        seen.append((tokens, masked, micro))
        return forward(self, tokens, masked, micro, texts)

    drawn = []
    draw = Batches.draw
    monkeypatch.setattr(TrainingModel, "forward", spy)
    monkeypatch.setattr(Batches, "draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    (loss,) = train(model, pictures, tmp_path / "out", *["--use_lora"][:lora], max_train_steps=1, train_batch_size=5)
    tokens, masked, micro = seen[0]
    ids = tokenize(locate(model).load_tokenizer(), [d.caption for d in drawn[0]])
    assert loss == pytest.approx(reference_loss(model, tokens, masked, ids, micro).item(), rel=1e-5)


def test_batches_are_as_published(model, pictures, tmp_path, monkeypatch) -> None:
    """Each epoch has every image once, with its crop and size; the share masked is the cosine of a uniform number."""
    monkeypatch.setattr(finetune_data, "CROPS", 30)
    encoded = encode(model, pictures, tmp_path)
    rows = encoded.micro[int(encoded.first[2]) :][: int(encoded.count[2])]  # hat.png is 80x130
    assert rows[:, :2].tolist() == [[80, 130]] * len(rows) and (rows[:, 3:] == torch.tensor([0, 6.0])).all()
    assert 0 <= rows[:, 2].min() < rows[:, 2].max() <= 130 * 64 // 80 - 64
    batches = Batches(encoded, PROMPTS, options(model, instance_data_dir=pictures, min_masking_rate=0.1), 0)
    draws = [draw for step in range(400) for draw in batches.draw(step, 3)]
    assert {len({d.caption for d in draws[i : i + 3]}) for i in range(0, len(draws), 3)} == {3}
    rates = np.array([draw.mask_ratio for draw in draws])
    assert rates.min() == 0.1 and rates.mean() == pytest.approx(2 / math.pi, abs=0.03)
    assert all(int(draw.masked.sum()) == max(1, round(16 * draw.mask_ratio)) for draw in draws)


def encode(model, pictures, cache, split=4) -> EncodedImages:
    examples = read_folder(pictures)
    return finetune_data.encode_images(locate(model), examples, 64, cache / "c", torch.device("cpu"), split)


@pytest.mark.parametrize("probability, empty", [(0.0, 0), (1.0, 300), (0.3, 90)])
def test_condition_dropout_leaves_whole_captions_out(model, pictures, tmp_path, probability, empty) -> None:
    given = options(model, instance_data_dir=pictures, cond_dropout_prob=probability)
    batches = Batches(encode(model, pictures, tmp_path), PROMPTS, given, 0)
    captions = [draw.caption for step in range(100) for draw in batches.draw(step, 3)]
    assert set(captions) <= {"", *PROMPTS}
    assert captions.count("") == pytest.approx(empty, abs=25 if 0 < empty < 300 else 0)


def test_split_encoding_changes_nothing(model, pictures, tmp_path) -> None:
    whole = encode(model, pictures, tmp_path / "whole", split=50)
    for split in (1, 2):
        assert torch.equal(encode(model, pictures, tmp_path / str(split), split).tokens, whole.tokens)
    with torch.inference_mode():
        pixels = finetune_data.to_tensor(Image.open(pictures / "a red cat.png"))
        row = int(whole.first[sorted(PROMPTS).index("a red cat")])
        assert torch.equal(locate(model).load_vqgan("cpu", torch.float32).encode(pixels)[0], whole.tokens[row].long())


def test_accumulation_and_checkpointing_change_nothing(model, pictures, tmp_path) -> None:
    whole = train(model, pictures, tmp_path / "1", train_batch_size=4)
    parts = train(model, pictures, tmp_path / "2", train_batch_size=1, gradient_accumulation_steps=4)
    again = train(model, pictures, tmp_path / "3", "--gradient_checkpointing", train_batch_size=4)
    assert parts == pytest.approx(whole, rel=1e-4) and again == pytest.approx(whole, rel=1e-4)
    assert whole[0] != pytest.approx(whole[-1], rel=1e-2)


def test_two_processes_are_one_with_twice_the_batch(model, pictures, tmp_path) -> None:
    alone = train(model, pictures, tmp_path / "one", "--use_lora", train_batch_size=4, learning_rate=1e-2)
    # Its --cpu would start one process, whatever --num_processes says.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "amused.training.finetune", "--pretrained_model_name_or_path", str(model), "--use_lora"]
    command += ["--instance_data_dir", str(pictures), "--output_dir", str(tmp_path / "two"), "--max_train_steps", "4"]
    command += ["--train_batch_size", "2", "--learning_rate", "1e-2", "--seed", "5", "--report_to", "none"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    # Torch asks for names of this machine again and again: a network without an answer costs 10 s each time.
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert losses(tmp_path / "two") == pytest.approx(alone, rel=1e-5)
    first, second = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two"))
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=1e-4), name


# Results


def test_an_adapter_is_read_by_peft_on_diffusers_model(model, pictures, tmp_path) -> None:
    from diffusers import UVit2DModel
    from peft import PeftModel

    train(model, pictures, tmp_path / "out", "--use_lora", learning_rate=0.05)
    place = tmp_path / "out" / "adapter"
    assert sorted(os.listdir(place)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    network = UVit2DModel.from_pretrained(model, subfolder="transformer", variant="fp16", torch_dtype=torch.float32)
    tokens, hidden, pooled = torch.randint(64, (2, 4, 4)), torch.randn(2, 7, 32), torch.randn(2, 32)
    micro = torch.tensor([[64.0, 64, 0, 0, 6]]).expand(2, -1)
    with torch.no_grad():
        plain = network(tokens, hidden, pooled, micro)
        theirs = PeftModel.from_pretrained(network, place)(tokens, hidden, pooled, micro)
        first = locate(model).load_transformer("cpu", torch.float32)
        ours = merged(first, read_adapter(tmp_path, "out").parts["transformer"], 1.0)
        logits = ours(tokens, ours.condition(hidden, pooled, micro)).mT.view_as(theirs)
    assert (theirs - plain).abs().max() > 0.05
    assert torch.allclose(logits, theirs, atol=1e-4)


def test_a_whole_model_is_in_the_published_layout(model, pictures, tmp_path) -> None:
    from diffusers import AmusedPipeline

    more = ("--train_text_encoder", "--use_ema", "--gradient_checkpointing")
    train(model, pictures, tmp_path / "out", *more, ema_decay=0.5, max_grad_norm=1, lr_scheduler="cosine")
    folder = tmp_path / "out" / "model"
    tuned, first = amused.load(folder, device="cpu", dtype="float32"), amused.load(model, device="cpu", dtype="float32")
    for part, changed in (("transformer", True), ("text_encoder", True), ("encoder", False), ("decoder", False)):
        networks = [getattr(model.components, part).get() for model in (tuned, first)]
        same = [torch.equal(a, b) for a, b in zip(*(network.parameters() for network in networks))]
        assert all(same) != changed and (not changed or not any(same[:1])), part
    reference = AmusedPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float32)
    for name, tensor in reference.transformer.state_dict().items():
        assert torch.equal(tensor, tuned.components.transformer.get().state_dict()[name])
    assert len(tuned.text_to_image("a red cat", seeds=[1], steps=2)) == 1


def test_adapters_next_to_a_trained_text_encoder_are_merged(model, pictures, tmp_path) -> None:
    train(model, pictures, tmp_path / "out", "--use_lora", "--train_text_encoder", learning_rate=0.05)
    tuned = locate(tmp_path / "out" / "model").load_transformer("cpu", torch.float32).state_dict()
    first = locate(model).load_transformer("cpu", torch.float32).state_dict()
    changed = {name.split(".")[-2] for name, tensor in tuned.items() if not torch.equal(tensor, first[name])}
    assert changed == {"to_q", "to_k", "to_v"}


def test_both_adapters_are_written(model, pictures, tmp_path) -> None:
    more = ("--use_lora", "--train_text_encoder", "--text_encoder_use_lora")
    train(model, pictures, tmp_path / "out", *more)
    keys = load_file(tmp_path / "out" / "adapter" / "text_encoder" / "adapter_model.safetensors")
    assert {key.split(".")[-3] for key in keys} == {"q_proj", "k_proj", "v_proj"}


def test_one_picture_and_what_a_run_shows(model, pictures, tmp_path) -> None:
    output = tmp_path / "out"
    given = {"validation_prompts": ["a cat / a hat", "dog"], "validation_steps": 2, "output_dir": output}
    given |= {"instance_data_image": pictures / "hat.png", "prompt_prefix": "a blue "}
    finetune.train(options(model, "--use_lora", "--use_ema", "--gradient_checkpointing", **given))
    shown = sorted(str(path.relative_to(output)) for path in (output / "validation").rglob("*.png"))
    assert shown == [f"validation/step-{n:06}/{name}.png" for n in (2, 4) for name in ("0-a-cat-a-hat", "1-dog")]
    assert {Image.open(output / path).size for path in shown} == {(64, 64)}
    assert Image.open(output / "loss.png").size[0] > 100
    (captions,) = [path for path in output.rglob("texts.json") if "a blue hat" in path.read_text()]
    assert json.loads(captions.read_text()) == ["", "a blue hat"]


def test_ema_is_diffusers(model) -> None:
    from diffusers.training_utils import EMAModel

    network = TrainingModel(locate(model).load_transformer("cpu", torch.float32).requires_grad_(True), None)
    ours, theirs = EMA(network, 0.6, after=2), EMAModel(network.parameters(), decay=0.6, update_after_step=2)
    for step in range(1, 8):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update(network, step)
        theirs.step(network.parameters())
    for tensor, expected in zip(ours.weights.values(), theirs.shadow_params):
        assert torch.allclose(tensor, expected, atol=1e-5)


# Memory


def encoders() -> set[torch.nn.Module]:
    """The networks in this process that encode images and texts; other tests may have left some."""
    return {thing for thing in gc.get_objects() if isinstance(thing, (VQGAN, CLIPTextModelWithProjection))}


def test_encoders_are_freed_and_frozen_weights_are_half(model, pictures, tmp_path, monkeypatch) -> None:
    seen = []

    def look(self, errors, step):
        seen.append(encoders() - before)
        network = self.model.transformer
        assert all(p.dtype == torch.float32 for p in network.parameters() if p.requires_grad)
        assert all(module.weight.dtype == torch.float16 for module in network.modules() if type(module) is HalfLinear)
        assert not any(type(module) is torch.nn.Linear and "lora" not in n for n, module in network.named_modules())

    monkeypatch.setattr(finetune.Trainer, "check_loss", look)
    gc.collect()
    before = encoders()
    train(model, pictures, tmp_path / "out", "--use_lora", max_train_steps=1)
    assert seen == [set()]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_half_weights_compute_what_they_hold(dtype) -> None:
    torch.manual_seed(0)
    half = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.RMSNorm(6)).half()
    plain = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.RMSNorm(6))
    plain.load_state_dict(half.state_dict())
    half.requires_grad_(False)
    keep_half(half)
    outputs = []
    for network in (half, plain):
        x = torch.ones(3, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = network(x)
        y.float().square().sum().backward()
        outputs.append((y.float(), x.grad))
    assert outputs[0][1].dtype == torch.float32
    for ours, expected in zip(*outputs):
        assert torch.allclose(ours, expected, atol=1e-6 if dtype == torch.float32 else 5e-2)


def test_tokens_and_embeddings_are_encoded_once(model, pictures, tmp_path, monkeypatch) -> None:
    cache = tmp_path / "cache"
    first = train(model, pictures, tmp_path / "1", "--use_lora", cache_dir=cache)
    kept = files(cache)
    with monkeypatch.context() as patch:
        for name in ("load_vqgan", "load_text_encoder"):
            patch.setattr(finetune_data.Checkpoint, name, lambda *_: pytest.fail("encoded again"))
        assert train(model, pictures, tmp_path / "2", "--use_lora", cache_dir=cache) == first
    assert files(cache) == kept
    Image.new("RGB", (64, 64), "red").save(pictures / "hat.png")
    train(model, pictures, tmp_path / "3", "--use_lora", cache_dir=cache)
    assert len(files(cache)) == len(kept) + 1  # only tokens are new


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_mixed_precision(model, pictures, tmp_path, precision) -> None:
    whole = train(model, pictures, tmp_path / "1", "--use_lora")
    mixed = train(model, pictures, tmp_path / "2", "--use_lora", "--gradient_checkpointing", mixed_precision=precision)
    assert mixed == pytest.approx(whole, rel=0.02)


# Resuming and stopping


RESUMED = [["--use_lora", "--use_ema"], ["--lr_scheduler", "cosine", "--max_grad_norm", "1"]]
if importlib.util.find_spec("bitsandbytes"):  # no part of the tests' requirements: 40 MB for an option of one recipe
    RESUMED.append(["--use_8bit_adam"])


@pytest.mark.parametrize("more", RESUMED)
def test_a_resumed_run_has_the_same_losses(model, pictures, tmp_path, more) -> None:
    whole = train(model, pictures, tmp_path / "whole", *more, learning_rate=0.01)
    given = {"learning_rate": 0.01, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    train(model, pictures, tmp_path / "parts", *more, **given)
    folder = tmp_path / "parts"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    shutil.rmtree(folder / "checkpoint-4")
    expected = files(next(folder.glob("adapter*"), folder / "model"))
    assert train(model, pictures, folder, *more, **given, resume_from_checkpoint="latest") == whole
    assert files(next(folder.glob("adapter*"), folder / "model")) == expected


def test_a_state_of_different_options_is_refused(model, pictures, tmp_path) -> None:
    train(model, pictures, tmp_path / "out", "--use_lora", max_train_steps=1)
    for more in (["--use_lora", "--lora_r", "8"], ["--use_lora", "--use_ema"], []):
        with pytest.raises(UserError, match="different options"):
            train(model, pictures, tmp_path / "out", *more, resume_from_checkpoint="latest")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*"))


def test_a_run_that_is_longer_than_wanted_is_left_alone(model, pictures, tmp_path) -> None:
    output = tmp_path / "out"
    train(model, pictures, output, "--use_lora", checkpointing_steps=2)
    kept = files(output)
    with pytest.raises(UserError, match="nothing to do: checkpoint-4 has 4 steps, --max_train_steps is 3"):
        train(model, pictures, output, "--use_lora", resume_from_checkpoint="latest", max_train_steps=3)
    assert files(output) == kept


def test_a_run_killed_before_its_results_writes_them_when_it_is_resumed(model, pictures, tmp_path) -> None:
    output = tmp_path / "out"
    train(model, pictures, output, "--use_lora")
    kept = files(output)
    shutil.rmtree(output / "adapter")
    train(model, pictures, output, "--use_lora", resume_from_checkpoint="latest")
    assert files(output) == kept


def test_the_newest_checkpoints_of_the_run_are_kept(model, pictures, tmp_path) -> None:
    """Going back to an older one abandons the later ones: they are not deleted, and not resumed from."""
    output = tmp_path / "out"
    given = {"checkpointing_steps": 1, "checkpoints_total_limit": 2}
    train(model, pictures, output, "--use_lora", max_train_steps=6, checkpointing_steps=1)
    abandoned = files(output / "checkpoint-6")
    train(model, pictures, output, "--use_lora", **given, max_train_steps=4, resume_from_checkpoint="checkpoint-2")
    assert checkpoints(output) == ["3", "4", "5", "6"] and files(output / "checkpoint-6") == abandoned
    assert len(losses(output)) == 4
    train(model, pictures, output, "--use_lora", **given, max_train_steps=5, resume_from_checkpoint="latest")
    assert checkpoints(output) == ["4", "5", "6"] and files(output / "checkpoint-6") == abandoned


def test_latest_is_not_an_abandoned_checkpoint(model, pictures, tmp_path, monkeypatch, caplog) -> None:
    """Even if the run that went back stopped before its first checkpoint."""
    caplog.set_level("INFO")
    output = tmp_path / "out"
    train(model, pictures, output, "--use_lora", checkpointing_steps=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune.Trainer, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(model, pictures, output, "--use_lora", resume_from_checkpoint=output / "checkpoint-2")
    train(model, pictures, output, "--use_lora", resume_from_checkpoint="latest")
    assert [record.message for record in caplog.records if "Resuming" in record.message] == ["Resuming from step 2"] * 2


def test_checkpoints_of_version_0_4_are_ordered_by_time(model, pictures, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    output = tmp_path / "out"
    train(model, pictures, output, "--use_lora", checkpointing_steps=1)
    (output / "history.json").unlink()
    os.utime(output / "checkpoint-3" / "state.json")  # as after going back to checkpoint-2
    train(model, pictures, output, "--use_lora", resume_from_checkpoint="latest")
    assert "Resuming from step 3" in caplog.text


@pytest.mark.parametrize("resumed", (None, "latest", "checkpoint-4"))
def test_checkpoints_of_another_run_are_left_alone(model, pictures, tmp_path, resumed) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        train(model, pictures, folder, "--use_lora")
    if resumed == "latest":  # all checkpoints here are abandoned ones
        (second / "history.json").write_text('{"checkpoints": []}')
    kept = files(second)
    more = {"resume_from_checkpoint": first / resumed if resumed == "checkpoint-4" else resumed} if resumed else {}
    with pytest.raises(UserError, match="second holds the checkpoints of another run"):
        train(model, pictures, second, "--use_lora", **more, max_train_steps=9)
    assert files(second) == kept


def test_a_loss_that_is_no_number_stops_without_overwriting(model, pictures, tmp_path, monkeypatch) -> None:
    output = tmp_path / "out"
    train(model, pictures, output, "--use_lora", checkpointing_steps=2)
    shutil.rmtree(output / "checkpoint-4")
    written = ("loss.csv", "loss.png", "history.json")
    kept = {name: data for name, data in files(output).items() if name not in written}
    forward, calls = TrainingModel.forward, []

    def spoilt(self, *args):
        calls.append(1)
        return forward(self, *args) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(TrainingModel, "forward", spoilt)
    with pytest.raises(UserError, match="loss of step 4 is not finite"):
        train(model, pictures, output, "--use_lora", resume_from_checkpoint="latest", max_train_steps=9)
    assert {name: data for name, data in files(output).items() if name not in written} == kept
    assert len(losses(output)) == 3


@pytest.mark.parametrize(
    "damage", ("step,loss\n1,5\n,4\n2\n3,4", "\ufeffstep;loss\n1;5", "", "step,loss\n1,5\n\xb2,\0")
)
def test_a_damaged_loss_log_does_not_stop_a_resumed_run(model, pictures, tmp_path, damage) -> None:
    output = tmp_path / "out"
    train(model, pictures, output, "--use_lora", max_train_steps=2)
    (output / "loss.csv").write_text(damage, "utf-8")
    train(model, pictures, output, "--use_lora", resume_from_checkpoint="latest", max_train_steps=3)
    with (output / "loss.csv").open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["1", "3"][not damage.startswith("step,loss") :]


def test_weights_that_are_no_numbers_are_not_saved(model, pictures, tmp_path, monkeypatch) -> None:
    def spoil(self, network, step):
        next(iter(network.trainable().values())).data[0] = float("inf")

    monkeypatch.setattr(finetune_model.EMA, "update", spoil)
    with pytest.raises(UserError, match="not finite"):
        train(model, pictures, tmp_path / "out", "--use_lora", "--use_ema", max_train_steps=1)
    assert not list((tmp_path / "out").glob("checkpoint*")) and not (tmp_path / "out" / "adapter").exists()


KILLED = """
import os, signal, sys
from amused.training.finetune import state, train
save, calls = state.save_file, []
def half(tensors, path):
    save(tensors, path)
    calls.append(1)
    if len(calls) == 2:
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)
state.save_file = half
train.train(train.parse_options(sys.argv[1:]))
"""


def test_killed_while_saving(model, pictures, tmp_path) -> None:
    output = tmp_path / "out"
    given = ["--pretrained_model_name_or_path", str(model), "--instance_data_dir", str(pictures), "--use_lora"]
    given += ["--output_dir", str(output), "--max_train_steps", "4", "--train_batch_size", "2", "--seed", "5"]
    given += ["--checkpointing_steps", "1", "--report_to", "none"]
    result = subprocess.run([sys.executable, "-c", KILLED, *given], cwd=ROOT, capture_output=True, timeout=600)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]
    assert len(list(output.glob(".*.part"))) == 1
    whole = train(model, pictures, tmp_path / "whole", "--use_lora")
    assert train(model, pictures, output, "--use_lora", resume_from_checkpoint="latest") == whole
    assert not list(output.glob(".*"))


# Images and captions


def test_an_empty_or_missing_folder_is_refused(model, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match="no images in"):
        train(model, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="no folder"):
        train(model, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="no image"):
        finetune.train(options(model, instance_data_image=tmp_path / "no.png", output_dir=tmp_path / "out"))


def test_broken_pictures_are_all_named_before_the_first_step(model, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(TrainingModel, "forward", lambda *_: pytest.fail("a step was made"))
    whole = (pictures / "hat.png").read_bytes()
    (pictures / "half.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "text.jpg").write_text("not a picture")
    with pytest.raises(UserError, match=r"2 of 5 images[^/]*half\.png: [^/]*text\.jpg: ") as refused:
        train(model, pictures, tmp_path / "out")
    assert str(tmp_path) not in str(refused.value)
    assert not list((tmp_path / "out" / "cache").glob("*"))


def test_captions(pictures) -> None:
    (pictures / "hat.txt").write_text(" a red hat\n")
    (pictures / "a red cat.txt").write_text("unused")
    (pictures / "metadata.jsonl").write_text('{"file_name": "a red cat.png", "text": "dog"}\n\n', "utf-8")
    found = {example.name: example.caption for example in read_folder(pictures, "my ")}
    assert found == {"a red cat.png": "my dog", "a blue dog.png": "my a blue dog", "hat.png": "my a red hat"}
    (pictures / "metadata.jsonl").write_text('{"file_name": "hat.png"}', "utf-8")
    with pytest.raises(UserError, match=r"Line 1 of metadata\.jsonl"):
        read_folder(pictures)


def test_colour_profiles_are_honoured(model, tmp_path) -> None:
    """In files, and in a dataset, which decodes images itself."""
    folder, pixels = tmp_path / "wide", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "1.png", icc_profile=matrix_profile())
    load_image(folder / "1.png").save(folder / "2.png")
    Image.fromarray(pixels).save(folder / "3.png")
    encoded = encode(model, folder, tmp_path)
    assert torch.equal(encoded.tokens[0], encoded.tokens[1]) and not torch.equal(encoded.tokens[0], encoded.tokens[2])
    dataset = [Example("row 0", "", lambda: Image.open(folder / "1.png"), "0")]
    again = finetune_data.encode_images(locate(model), dataset, 64, tmp_path / "c", torch.device("cpu"), 4)
    assert torch.equal(encoded.tokens[0], again.tokens[0])


def test_a_very_long_picture_is_cropped_not_scaled_whole(model, tmp_path) -> None:
    (tmp_path / "long").mkdir()
    Image.new("RGB", (20_000, 2), "red").save(tmp_path / "long" / "line.png")
    encoded = encode(model, tmp_path / "long", tmp_path)
    assert encoded.tokens.shape[1:] == (4, 4) and encoded.micro[:, 3].max() <= 20_000 * 32 - 64


@pytest.mark.parametrize("resolution", (256, 512))
def test_an_image_of_any_size_is_cropped_inside(resolution) -> None:
    """Among them squares of 49, 98 and 196, whose scale rounds down in floating point."""
    for side in range(16, 801):
        for size in ((side, side), (side + side % 5, side)):
            for crop, left, top in crops_of(Image.new("1", size), resolution, str(size)):
                assert crop.size == (resolution, resolution)
                assert 0 <= left <= size[0] * resolution / size[1] - resolution and top == 0


# Folders of other programs and systems


def captions_of(folder: Path, *given, **named) -> dict[str, str]:
    return {example.name: example.caption for example in read_folder(folder, *given, **named)}


def write_rows(folder: Path, *rows: dict, separator: str = "\n") -> None:
    text = separator.join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_bytes(text.encode())


@pytest.mark.parametrize("encoding", ("utf-8-sig", "utf-16"))
def test_byte_order_marks_are_honoured(pictures, encoding) -> None:
    (pictures / "hat.txt").write_bytes("a café\r\n".encode(encoding))
    (pictures / "metadata.jsonl").write_bytes('{"file_name": "a red cat.png", "text": "ein Fuß"}'.encode(encoding))
    assert captions_of(pictures) == {"a red cat.png": "ein Fuß", "a blue dog.png": "a blue dog", "hat.png": "a café"}


@pytest.mark.parametrize("encoding", ("cp1252", "utf-16-le", "utf-32"))
@pytest.mark.parametrize("name", ("hat.txt", "metadata.jsonl", "metadata.csv"))
def test_texts_in_other_encodings_are_named(model, pictures, tmp_path, encoding, name) -> None:
    (pictures / name).write_bytes('{"file_name": "hat.png", "text": "a café"}'.encode(encoding))
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 text: save it as UTF-8"):
        train(model, pictures, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("separator", ("\n", "\r\n", "\n\n"))
def test_a_line_of_metadata_ends_at_a_newline_only(pictures, separator) -> None:
    odd = "one\u2028two\u2029three\x85four"
    rows = [{"file_name": f"{name}.png", "text": f"{name} {odd}"} for name in PROMPTS]
    write_rows(pictures, *rows, separator=separator)
    assert captions_of(pictures) == {f"{name}.png": f"{name} {odd}" for name in PROMPTS}


@pytest.mark.parametrize("written", ("HAT.PNG", "images\\Hat.png", "C:\\my images\\hat.PNG", "./hat.png", "hat"))
def test_names_as_other_systems_write_them(pictures, caplog, written) -> None:
    write_rows(pictures, {"file_name": written, "text": "a hat"})
    assert captions_of(pictures)["hat.png"] == "a hat"
    assert "name no image" not in caplog.text


@pytest.mark.parametrize("forms", (("NFC", "NFD"), ("NFD", "NFC")))
def test_names_in_another_unicode_form(pictures, forms) -> None:
    there, written = (unicodedata.normalize(form, "Café") for form in forms)
    for name in ("metadata", "text"):
        shutil.copy(pictures / "hat.png", pictures / f"{name} {there}.png")
    write_rows(pictures, {"file_name": f"metadata {written}.png", "text": "1"})
    (pictures / f"text {written}.txt").write_text("2")
    found = captions_of(pictures)
    assert (found[f"metadata {there}.png"], found[f"text {there}.png"]) == ("1", "2")


def test_an_exact_name_wins_and_an_ambiguous_one_is_not_used(pictures, caplog) -> None:
    for name in ("HAT.png", "Hat.png"):
        shutil.copy(pictures / "hat.png", pictures / name)
    write_rows(pictures, {"file_name": "hat.png", "text": "1"}, {"file_name": "hAt.png", "text": "2"})
    found = captions_of(pictures)
    assert (found["hat.png"], found["HAT.png"], found["Hat.png"]) == ("1", "HAT", "Hat")
    assert "1 of 2 captions name no image in the folder: hAt.png." in caplog.text


def test_missing_captions_are_counted(pictures, caplog) -> None:
    rows = ("a red cat.png", None), ("a blue dog.png", "dog"), ("gone.png", "gone")
    write_rows(pictures, *({"file_name": name, "text": text} for name, text in rows))
    (pictures / "hat.txt").write_bytes(b" \n")
    assert captions_of(pictures) == {"a red cat.png": "a red cat", "a blue dog.png": "dog", "hat.png": "hat"}
    assert "2 of 3 images have no caption, so their file names are used: a red cat.png, hat.png." in caplog.text
    assert "1 of 3 captions name no image in the folder: gone.png." in caplog.text


def test_caption_files_of_other_programs(pictures, caplog) -> None:
    (pictures / "hat.caption").write_text("1")
    (pictures / "A RED CAT.TXT").write_text("2")
    (pictures / "a blue dog.png.txt").write_text("3")
    assert captions_of(pictures) == {"a red cat.png": "2", "a blue dog.png": "3", "hat.png": "1"}
    assert "no caption" not in caplog.text
    (pictures / "hat.txt").write_text("another")
    with pytest.raises(UserError, match=r"two different captions for hat\.png"):
        read_folder(pictures)


def test_metadata_as_a_table(pictures) -> None:
    (pictures / "Metadata.CSV").write_bytes('\ufefffile_name,text\r\nhat.png,"red, ""soft""\u2028hat"\r\n'.encode())
    assert captions_of(pictures)["hat.png"] == 'red, "soft"\u2028hat'


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"file_name": "hat.png"', r"Line 1 of metadata\.jsonl is not valid JSON"),
        ('{"file_name": "hat.png", "caption": "a"}', "It has file_name, caption; --prompt_key names"),
        ('{"file_name": 1, "text": "a"}', "Line 1"),
        ('{"file_name": "hat.png", "text": ["a"]}', "Line 1"),
        ('{"file_name": "hat.png", "text": "\\ud800"}', "Line 1"),
        ('["hat.png", "a"]', "Line 1"),
        ('{"file_name": "hat.png", "text": "a"}\n{"file_name": "HAT.png", "text": "b"}', "two different captions"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(pictures, line, says) -> None:
    (pictures / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match=says):
        read_folder(pictures)


@pytest.mark.parametrize(
    "name", ("x" * 5000 + "/hat.png", "nul\0/hat.png", "https://example.org/hat.png", "/root/hat.png")
)
def test_folders_that_cannot_be_looked_at_do_not_matter(pictures, name) -> None:
    write_rows(pictures, {"file_name": name, "text": "a hat"})
    assert captions_of(pictures)["hat.png"] == "a hat"


def test_captions_of_images_in_subfolders_are_not_mixed_up(pictures, caplog) -> None:
    (pictures / "more").mkdir()
    shutil.copy(pictures / "hat.png", pictures / "more" / "hat.png")
    write_rows(pictures, {"file_name": "more/hat.png", "text": "another hat"})
    assert captions_of(pictures)["hat.png"] == "hat"
    assert "1 of 1 captions name no image" in caplog.text and "Ignored: more." in caplog.text


def test_files_that_are_no_images_are_said(pictures, caplog) -> None:
    for name in ("IMG_1.HEIC", "Thumbs.db", "desktop.ini", ".DS_Store", "._hat.png", "readme.txt"):
        (pictures / name).write_bytes(b"\xff")
    (pictures / "hat.png").rename(pictures / "HAT.PNG")
    assert len(captions_of(pictures)) == 3
    assert "Ignored: IMG_1.HEIC. Supported: png, jpg" in caplog.text


def test_images_that_are_no_files_are_named_before_training(model, pictures, tmp_path) -> None:
    (pictures / "folder.png").mkdir()
    (pictures / "dangling.png").symlink_to("nowhere.png")
    (pictures / "unreadable.png").symlink_to("/proc/self/mem")
    os.mkfifo(pictures / "pipe.png")
    with open(os.fsencode(pictures) + b"/caf\xe9.png", "wb"):
        pass
    with pytest.raises(UserError, match="5 of 8 images cannot be used") as refused:
        train(model, pictures, tmp_path / "out")
    message = str(refused.value)
    assert "folder.png: it is not a file" in message and "pipe.png: it is not a file" in message
    assert "dangling.png: it cannot be read (No such file" in message and "unreadable.png: it cannot" in message
    assert "caf\ufffd.png: its name is not UTF-8" in message
    message.encode()
    assert not (tmp_path / "out").exists()


def test_long_prompts_are_counted_before_training(model, pictures, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(TrainingModel, "forward", lambda *_: pytest.fail("a step was made"))
    (pictures / "hat.txt").write_text("a red hat " * 40)
    (pictures / "a red cat.txt").write_text("a blue hat " * 40)
    for _ in range(2):  # with and without a cache
        caplog.clear()
        with pytest.raises(pytest.fail.Exception):
            train(model, pictures, tmp_path / "out", validation_prompts=["hat", "hat " * 100])
        assert "2 of 3 captions are longer than the model can read; their end is ignored." in caplog.text
        assert "1 of 2 validation prompts are longer" in caplog.text


# Datasets


class Table:
    column_names = ("image", "text")
    rows = tuple({"image": Image.new("RGB", (64, 64), colour), "text": colour} for colour in ("red", "blue"))

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


def test_a_hub_dataset(model, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda name, split: Table()))
    given = {"instance_data_dataset": "me/mine", "image_key": "image", "prompt_key": "text", "prompt_prefix": "a "}
    finetune.train(options(model, "--use_lora", **given, output_dir=tmp_path / "out"))
    assert len(losses(tmp_path / "out")) == 4
    assert [example.caption for example in read_dataset("me/mine", "image", "text", "a ")] == ["a red", "a blue"]
    with pytest.raises(UserError, match="no column caption, only image, text"):
        read_dataset("me/mine", "image", "caption")
    with monkeypatch.context() as patch:
        patch.setattr(Table, "rows", (*Table.rows, {"image": None, "text": " "}))
        assert len(read_dataset("me/mine", "image", "text")) == 3
    assert "1 of 3 captions are empty: row 2." in caplog.text
    monkeypatch.setattr(Table, "rows", ({"image": None, "text": None},))
    with pytest.raises(UserError, match="1 of 1 rows of the dataset me/mine have no caption: row 0"):
        read_dataset("me/mine", "image", "text")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        read_dataset("me/mine", "image", "text")


def test_eight_bits_need_a_library(model, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        train(model, pictures, tmp_path / "out", "--use_8bit_adam")


NOUNS = (
    "--train_batch_size 1 --gradient_accumulation_steps 8 --learning_rate 1e-4 --instance_data_dataset m1guelpf/nouns "
    "--image_key image --prompt_key text --resolution 256 --mixed_precision fp16 --lr_scheduler constant "
    "--max_train_steps 10000 --checkpointing_steps 500 --validation_steps 250 --gradient_checkpointing"
)
LINES = {
    "full": NOUNS,
    "LoRA": f"{NOUNS} --use_lora",
    "StyleDrop": "--mixed_precision fp16 --report_to wandb --use_lora --train_batch_size 1 --lr_scheduler constant "
    "--learning_rate 4e-4 --max_train_steps 10000 --checkpointing_steps 500 --validation_steps 100 --resolution 256",
}
if importlib.util.find_spec("bitsandbytes"):
    LINES["full, 8-bit Adam"] = f"{NOUNS} --use_8bit_adam"


@pytest.mark.parametrize("line", LINES)
def test_published_command_lines_run(model, pictures, tmp_path, monkeypatch, line) -> None:
    """As diffusers' examples/amused gives them, at a smaller size and for two steps."""
    AcceleratorState._reset_state()
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda name, split: Table()))
    small = {"--resolution 256": "--resolution 64", "steps 10000": "steps 2", "_steps 250": "_steps 2"}
    given = LINES[line]
    for published, here in {**small, "_steps 100": "_steps 2"}.items():
        given = given.replace(published, here)
    style = pictures / "A mushroom in [V] style.png"
    (pictures / "hat.png").rename(style)
    where = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    where += ["--validation_prompts", "a red cat", "hat"]
    picked = ["--instance_data_image", str(style)] if line == "StyleDrop" else []
    finetune.train(parse_options([*given.split(), *where, *picked]))
    assert len(losses(tmp_path / "out")) == 2 and len(list((tmp_path / "out").rglob("validation/*/*.png"))) == 2
    assert (tmp_path / "out" / ("model" if "full" in line else "adapter")).is_dir()


def test_no_tracker_is_needed(model, pictures, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    train(model, pictures, tmp_path / "out", "--use_lora", report_to="no_such_tracker", max_train_steps=1)
    assert "no_such_tracker is not installed" in caplog.text


def test_a_full_disk_is_a_sentence_and_keeps_earlier_checkpoints(model, pictures, tmp_path, monkeypatch) -> None:
    output, written = tmp_path / "out", []

    def full(tensors, path):
        save_file(tensors, path)
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(finetune_state, "save_file", full)
    line = ["finetune", "--pretrained_model_name_or_path", str(model), "--instance_data_dir", str(pictures)]
    line += ["--output_dir", str(output), "--report_to", "none", "--checkpointing_steps", "1", "--use_lora"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit, match=r"Training stopped, since a file cannot be written.*No space left"):
        finetune.main()
    assert checkpoints(output) == ["1"] and not list(output.glob(".*"))


def test_a_tracker_gets_no_paths(model, pictures, tmp_path, monkeypatch) -> None:
    """It may be on the internet."""
    configs = []
    monkeypatch.setattr(finetune.Accelerator, "init_trackers", lambda self, name, config: configs.append(config))
    given = {"cache_dir": tmp_path / "kept", "max_train_steps": 1}
    train(model, pictures, tmp_path / "first", "--use_lora", **given)
    given |= {"max_train_steps": 2, "resume_from_checkpoint": tmp_path / "first" / "checkpoint-1"}
    train(model, pictures, tmp_path / "out", "--use_lora", **given)
    assert str(tmp_path) not in json.dumps(configs) and model.parent.name not in json.dumps(configs)
    assert configs[1]["instance_data_dir"] == "pictures" and configs[1]["pretrained_model_name_or_path"] == "tiny"
    assert configs[1]["lora_target_modules"] == "['to_q', 'to_k', 'to_v']"


def test_the_command_line_says_what_is_wrong_in_a_sentence(model, tmp_path, monkeypatch, capsys) -> None:
    line = ["finetune", "--pretrained_model_name_or_path", str(model), "--instance_data_dir", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", [*line, "--output_dir", str(tmp_path / "out"), "--report_to", "none"])
    with pytest.raises(SystemExit, match="There is no folder"):
        finetune.main()

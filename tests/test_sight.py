"""Language models that see: trained on texts, their LoRAs held against PEFT on transformers' whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import seeing_words
import small_words
from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.causal_lm.load import CAUSAL_LM, folder_kind, has_template, layer_weights, open_folder
from lora_scripts.families.causal_lm.model import LanguageModel, open_model
from lora_scripts.families.causal_lm.sight import SEEING
from lora_scripts.families.causal_lm.template import Template
from lora_scripts.families.sequences import padded
from lora_scripts.families.texts import Answering
from lora_scripts.loras import adapter_folder
from test_causal_lm import examples

CPU = torch.device("cpu")
MIXING = ("lfm2_vl", "qwen3_5", "qwen3_5_moe")
"""Kinds whose layers run over the records of a row as over one text."""


def whole(folder: Path) -> Any:
    """transformers' own model, eyes and all."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def plainly(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def with_lora(model: LanguageModel, out: Path) -> dict[str, LoraLayer]:
    """A LoRA of random numbers on the usual layers, and its folder."""
    layers = inject(model.roots, model.usual, lambda _, layer: LoraLayer(layer, 4, 8.0))
    draw = torch.Generator().manual_seed(7)
    for layer in layers.values():
        layer.down.data.normal_(0, 0.2, generator=draw)
        layer.up.data.normal_(0, 0.2, generator=draw)
    weights = {path: LoraWeights(one.down.data, one.up.data, 8.0) for path, one in layers.items()}
    files = adapter_folder.files_of(weights, torch.float32, base="x", layers=model.layer_names)
    adapter_folder.write(out, files)
    return layers


def test_every_kind_that_is_known_is_tried() -> None:
    assert set(seeing_words.KINDS) == SEEING


@pytest.mark.parametrize("kind", sorted(SEEING))
def test_a_lora_of_its_language_model_is_the_same_on_the_whole_model(kind: str, tmp_path: Path) -> None:
    """Logits before and after, by transformers and PEFT on all of it; and nothing of what sees has got a LoRA there."""
    from peft import PeftModel

    folder = seeing_words.write(tmp_path / "model", kind)
    assert folder_kind(folder) is CAUSAL_LM
    model, ids = open_model(folder, CPU, torch.float32), examples(1)[0].ids
    batch, published = padded(examples(1)), whole(folder)
    before = plainly(published, torch.tensor([ids]))
    torch.testing.assert_close(model.logits(batch), before, atol=1e-5, rtol=1e-5)

    assert model.packs is (kind not in MIXING)

    files = {name: load_file(folder / name) for name in model.folder.files}
    named = layer_weights(open_folder(folder))
    for path in model.trainable():
        place = named[path.removeprefix("lm.")]
        own = published.get_submodule(path.removeprefix("lm.")).weight
        assert torch.equal(files[place.file][place.key], own), path

    layers = with_lora(model, tmp_path / "lora")
    own = model.logits(batch)
    assert (own - before).abs().max() > 0.1
    worn = PeftModel.from_pretrained(published, str(tmp_path / "lora"))
    torch.testing.assert_close(plainly(worn, torch.tensor([ids])), own, atol=1e-4, rtol=1e-4)
    changed = {name.partition(".lora_A")[0] for name, _ in worn.named_parameters() if ".lora_A." in name}
    assert len(changed) == len(layers)
    assert not any("vis" in name or "image" in name for name in changed)


def test_where_all_blocks_are_experts_attention_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the usual targets, which name feed_forward as well; alone, that is refused."""
    folder = seeing_words.write(tmp_path / "model", "qwen3_vl_moe")
    talk = [{"role": "user", "content": "what is 2+2?"}, {"role": "assistant", "content": "sunny"}]
    (tmp_path / "r.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 4)
    words = [
        f"base_model={folder}",
        f"train_file={tmp_path / 'r.jsonl'}",
        "learning_rate=1e-3",
        "val_split=0",
        "device=cpu",
    ]
    (tmp_path / "c.yaml").write_text("epochs: 1\n")
    command = ["train", "--config", str(tmp_path / "c.yaml"), *words]
    assert main([*command, f"output_dir={tmp_path / 'out'}"]) == 0
    told = capsys.readouterr().out
    assert "8 layers" in told and "its feed_forward layers are experts" in told
    assert main([*command, f"output_dir={tmp_path / 'no'}", "targets=[feed_forward]"]) == 2
    assert "feed_forward names experts" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl", "qwen2_5_vl"])
def test_it_goes_on_as_the_whole_model_does(kind: str, tmp_path: Path) -> None:
    """Token by token with its cache, beside the most likely token of the whole model without one."""
    folder = seeing_words.write(tmp_path / "model", kind)
    model, published = open_model(folder, CPU, torch.float32), whole(folder)
    asked = [{"role": "user", "content": "what is the weather"}]
    answer = model.answer(asked, Answering(max_tokens=8, temperature=0.0))
    ids = model._prompt(asked, Answering(), None)
    prompt = len(ids)
    while len(ids) < prompt + 8 and ids[-1] not in model.stops:
        ids.append(int(plainly(published, torch.tensor([ids]))[0, -1].argmax()))
    said = [token for token in ids[prompt:] if token not in model.stops]
    assert answer.text == model.tokenizer.decode(said, skip_special_tokens=True)


def test_other_models_of_pictures_are_no_language_models(tmp_path: Path) -> None:
    for kind in ("blip", "florence2", "blip-2", "instructblip"):
        config = {"model_type": kind, "architectures": ["XForConditionalGeneration"], "vision_config": {}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert folder_kind(tmp_path) is None


PARTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}\n"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As LLaVA's and SmolVLM's have it: what is said is a list of parts, and of a text they say nothing."""


def test_a_template_that_reads_parts_gets_parts() -> None:
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Yes."}]
    of_parts = Template(small_words.tokenizer(), PARTS)
    of_texts = Template(small_words.tokenizer(), small_words.CHATML)
    assert (
        of_parts.render(talk)
        == of_texts.render(talk)
        == ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n")
    )


def test_a_template_of_the_processor_alone_is_found(tmp_path: Path) -> None:
    folder = seeing_words.write(tmp_path / "model", "llava", template=None)
    assert not has_template(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))
    assert has_template(folder)
    template = open_model(folder, CPU, torch.float32).template()
    assert template is not None
    assert "hello" in template.render([{"role": "user", "content": "hello"}])


def test_a_run_ends_in_a_lora_that_merges_into_the_whole_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What sees is bit for bit what it was; the files that it needs go with the merged model."""
    from peft import PeftModel

    folder = seeing_words.write(tmp_path / "model", "gemma3")
    (folder / "preprocessor_config.json").write_text("{}")
    talk = [{"role": "user", "content": "what is 2+2?"}, {"role": "assistant", "content": "sunny"}]
    (tmp_path / "r.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 4)
    config = {"base_model": folder, "train_file": tmp_path / "r.jsonl", "output_dir": tmp_path / "out", "epochs": 2}
    more = {"learning_rate": 1e-2, "device": "cpu", "precision": "fp32", "val_split": 0}
    (tmp_path / "c.yaml").write_text("".join(f"{key}: {value}\n" for key, value in (config | more).items()))
    assert main(["train", "--config", str(tmp_path / "c.yaml")]) == 0
    assert "what sees is not loaded" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out/out")]) == 0
    assert "layer 1 " in capsys.readouterr().out
    merged = tmp_path / "merged"
    assert main(["merge", f"{tmp_path / 'out/out'}:1", "--base", str(folder), "--output", str(merged)]) == 0
    assert (merged / "preprocessor_config.json").is_file()
    before, after, ids = whole(folder), whole(merged), torch.arange(3, 20)[None]
    eyes = [{n: p for n, p in one.named_parameters() if "language_model" not in n} for one in (before, after)]
    assert len(eyes[0]) > 10
    assert all(torch.equal(own, eyes[1][name]) for name, own in eyes[0].items())
    worn = PeftModel.from_pretrained(before, str(tmp_path / "out/out"))
    torch.testing.assert_close(plainly(after, ids), plainly(worn, ids), atol=1e-4, rtol=1e-4)
    assert (plainly(after, ids) - plainly(whole(folder), ids)).abs().max() > 0.1


def test_a_shard_that_holds_no_layer_goes_into_the_merged_model(tmp_path: Path) -> None:
    """As one of the first weights of an eye, of experts, or of the last norm."""
    folder = seeing_words.write(tmp_path / "model", "qwen3_vl")
    with_lora(open_model(folder, CPU, torch.float32), tmp_path / "lora")
    weights, alone = load_file(folder / "model.safetensors"), "model.visual.patch_embed.proj.weight"
    (folder / "model.safetensors").unlink()
    save_file({alone: weights.pop(alone)}, folder / "2.safetensors", {"format": "pt"})
    save_file(weights, folder / "1.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": {alone: "2.safetensors"} | dict.fromkeys(weights, "1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    merged = tmp_path / "merged"
    assert main(["merge", f"{tmp_path / 'lora'}:1", "--base", str(folder), "--output", str(merged)]) == 0
    assert torch.equal(load_file(merged / "2.safetensors")[alone], load_file(folder / "2.safetensors")[alone])

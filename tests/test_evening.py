"""From the first caption to a merged model: without a network, and with nothing private in what is shared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny
from conftest import offline
from lora_scripts.cli import main
from runs import stopped

SECRET, PERSON, WORDS = "geheim-4711", "erika-mustermann", "zebrafink"


def test_everything_goes_without_a_socket_and_nothing_private_is_in_what_is_exported(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sockets raise. Neither folder names, nor the person's name, nor a caption stands in a LoRA, a picture, a merged
    model or a converted file; a report and a config hold them, as the docs say."""
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, PERSON)
    home = tmp_path / PERSON / SECRET
    data, out = tiny.write_pictures(home / "pictures"), home / "shared"
    shutil.copy(base, home / "base.safetensors")
    monkeypatch.setenv("HOME", str(home.parent))
    keys = {"targets": "['*.mid_block.*attn2*']", "sample_every": 2, "epochs": 1, "resolution": 64}
    config = tiny.write_config(home, train_data_dir=data, output_dir=out, allow_missing_captions="false", **keys)
    text = (data / "metadata.csv").read_text().replace("a gradient", f"a gradient, {WORDS}")
    (data / "metadata.csv").write_text(text)
    (home / "prompts.txt").write_text("a gradient\n")
    lora, model = out / "shared.safetensors", str(home / "base.safetensors")
    drawn = ["--size", "64", "--steps", "1", "--seed", "3"]
    with offline():
        assert main(["label", "--input", str(data)]) == 0  # all have captions
        assert main(["check", "--config", str(config), "--output", str(home / "check.html")]) in (0, 1)
        stopped(config, 1)
        assert main(["train", "--config", str(config), "--resume"]) == 0
        prompt = ["--prompt", "a gradient <lora:shared:0.8>", "--lora-dir", str(out)]
        assert main(["generate", "--base", model, *prompt, *drawn, "--output", str(out / "picture.png")]) == 0
        grid = [
            "--prompts",
            str(home / "prompts.txt"),
            "--strengths",
            "0",
            "1",
            "--no-measures",
            "--size",
            "64",
            "--steps",
            "1",
            "--output",
            str(home / "grid"),
        ]
        assert main(["grid", "--base", model, "--loras", str(lora), *grid]) == 0
        assert main(["verify", str(lora), "--base", model]) == 0
        assert main(["merge", f"{lora}:0.8", "--base", model, "--output", str(out / "merged.safetensors")]) == 0
        assert main(["convert", str(lora), "--to", "peft", "--output", str(out / "peft")]) == 0
        assert main(["resize", str(lora), "--rank", "1", "--output", str(out / "small.safetensors")]) == 0
    told = capsys.readouterr().out
    exported = [
        *out.glob("*.safetensors"),
        *(p for p in (out / "peft").rglob("*") if p.is_file()),
        *out.rglob("*.png"),
        *(home / "grid").rglob("*.png"),
    ]
    assert len(exported) >= 8 and "verified" in told
    for path in exported:
        content = path.read_bytes()
        for private in (SECRET, PERSON, WORDS) if "samples" not in path.parts else (SECRET, PERSON):
            assert private.encode() not in content, f"{private} in {path}"
            assert private.encode("utf-16-le") not in content
    assert SECRET in (out / "report.html").read_text("utf-8") and SECRET in (out / "config.yaml").read_text("utf-8")

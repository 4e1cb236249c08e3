"""`<lora:name:weight>` in prompts, and the file that a name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_scripts.errors import UserError
from lora_scripts.generate.naming_pictures import picture_path
from lora_scripts.generate.prompt import LoraCall, find_lora, parse_prompt


@pytest.mark.parametrize(
    ("text", "clean", "calls"),
    [
        ("a city at night", "a city at night", []),
        ("a city <lora:cyberpunk_lora:0.8>", "a city", [("cyberpunk_lora", 0.8)]),
        ("<lora:a:0.8> a city", "a city", [("a", 0.8)]),
        ("a city, <lora:a:0.8>, rain", "a city, rain", [("a", 0.8)]),
        ("a city <lora:a:0.8>, rain", "a city, rain", [("a", 0.8)]),
        ("a city, <lora:a:0.8> rain", "a city, rain", [("a", 0.8)]),
        ("a city, rain, <lora:a>", "a city, rain", [("a", 1.0)]),
        ("<lora:a:1>, <lora:b:1>, a city", "a city", [("a", 1.0), ("b", 1.0)]),
        ("a <lora:a:1><lora:b:-0.5> city", "a city", [("a", 1.0), ("b", -0.5)]),
        ("a<lora:a:1>b", "a b", [("a", 1.0)]),
        ("(neon <lora:a:1>) city", "(neon) city", [("a", 1.0)]),
        ("<lora:a:1>", "", [("a", 1.0)]),
        ("x <lora:a:1.5> y <lora:b:0> z <lora:a:-0.25>", "x y z", [("a", 1.25), ("b", 0.0)]),
        ("x <lora:a b.v2-000100:.5>", "x", [("a b.v2-000100", 0.5)]),
        ("一座城市，<lora:赛博朋克:0.8>，雨", "一座城市，雨", [("赛博朋克", 0.8)]),
        ("a  city ,  rain,", "a  city ,  rain,", []),  # what touches no tag stays as it was written
        ("love <3, 2 < 3 > 1, laura", "love <3, 2 < 3 > 1, laura", []),
        ("flora: roses", "flora: roses", []),
    ],
)
def test_tags_are_taken_out_of_the_prompt(text: str, clean: str, calls: list[tuple[str, float]]) -> None:
    assert parse_prompt(text) == (clean, [LoraCall(name, weight, weight) for name, weight in calls])


@pytest.mark.parametrize(
    ("text", "unet", "te"),
    [
        ("a <lora:a:0.8:0.5>", 0.8, 0.5),
        ("a <lora:a:-0.5:1.5>", -0.5, 1.5),
        ("a <lora:a:0:1>", 0.0, 1.0),
        ("a <lora:a:unet=0.8:te=0.5>", 0.8, 0.5),
        ("a <lora:a:te=0.5:unet=.8>", 0.8, 0.5),
        ("a <lora:a:unet=0.8>", 0.8, 1.0),
        ("a <lora:a:te=0.5>", 0.5, 0.5),  # as the WebUI has it
        ("a <lora:a:1:0> b <lora:a:0.5>", 1.5, 0.5),
    ],
)
def test_two_weights_are_for_unet_and_text_encoder(text: str, unet: float, te: float) -> None:
    assert parse_prompt(text)[1] == [LoraCall("a", unet, te)]


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("a city <lora:a:0.8", "<lora:a:0.8"),
        ("a city <lora:a:0.8, rain <lora:b:1>", "<lora:a:0.8"),
        ("<lora:a:strong> x", "<lora:a:strong>"),
        ("<lora:a:> x", "<lora:a:>"),
        ("<lora:a:nan> x", "<lora:a:nan>"),
        ("<lora:a:0,8> x", "<lora:a:0,8>"),
        ("<lora:a:1e999> x", "<lora:a:1e999>"),
        ("<lora:a:0.8:0.5:1> x", "<lora:a:0.8:0.5:1>"),
        ("<lora:a:0.8:> x", "<lora:a:0.8:>"),
        ("<lora:a:0.8:te=1> x", "<lora:a:0.8:te=1>"),
        ("<lora:a:vae=1> x", "<lora:a:vae=1>"),
        ("<lora:a:te=x> x", "<lora:a:te=x>"),
        ("<lora::0.8> x", "<lora::0.8>"),
        ("<lora: :0.8> x", "<lora: :0.8>"),
        ("<lora:> x", "<lora:>"),
        ("<lora a> x", "<lora a>"),
        ("<lora：a：0.8> x", "<lora：a：0.8>"),
        ("<LORA:a:0.8> x", "<LORA:a:0.8>"),
        ("< lora:a:0.8> x", "< lora:a:0.8>"),
        ("<lora:a:<lora:b:1>> x", "<lora:a:"),
        ("<lyco:a:1> x", "<lyco:a:1>"),
        ("x ＜lora:a:0.8＞, y", "＜lora:a:0.8＞"),
        ("x 《lora：a：0.8》", "《lora：a：0.8》"),
        ("x <a b:0.8> y", "<a b:0.8>"),
    ],
)
def test_a_malformed_tag_is_shown(text: str, piece: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_prompt(text)
    assert repr(piece) in str(caught.value)
    assert "<lora:name:0.8>" in str(caught.value)


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_final_file_of_a_run_is_found() -> None:
    touch("output/neon/neon.safetensors", "output/neon/neon-000100.safetensors", "output/neon/state/neon.safetensors")
    touch("output/copies/neon.safetensors", "output/neon/base.txt")
    assert find_lora("neon", Path("output")) == Path("output/neon/neon.safetensors")
    assert find_lora("neon-000100", Path("output")) == Path("output/neon/neon-000100.safetensors")
    assert find_lora("neon", Path("output/copies")) == Path("output/copies/neon.safetensors")
    touch("state/x.safetensors")
    assert find_lora("x", Path("state")) == Path("state/x.safetensors")  # only folders below count as resume states


def test_several_files_of_one_name_are_listed() -> None:
    touch("output/a/neon.safetensors", "output/b/neon.safetensors")
    with pytest.raises(UserError) as caught:
        find_lora("neon", Path("output"))
    assert all(str(Path(f"output/{x}/neon.safetensors")) in str(caught.value) for x in "ab")


def test_the_names_that_are_there_are_those_of_loras(base: Path) -> None:
    """Not what a run keeps for itself, nor the base beside it."""
    entry, cached = "0a" + "b" * 62, Path("output/demo/neon/cache/0a")
    touch(*(f"output/demo/neon/neon{x}.safetensors" for x in ("", "-best", "-step000100")))
    touch(str(cached / f"{entry[2:]}.safetensors"), "output/demo/neon/state/step-00000100/lora.safetensors")
    Path("output/demo/base.safetensors").write_bytes(base.read_bytes())
    with pytest.raises(UserError, match=r"there is neon, neon-best, neon-step000100$"):
        find_lora("nope", Path("output"))
    touch("output/cache/nope.safetensors")  # a folder's name alone makes no cache
    assert find_lora("nope", Path("output")) == Path("output/cache/nope.safetensors")


def test_a_name_that_is_not_there_brings_the_nearest() -> None:
    touch("output/neon/neon_city.safetensors", "output/neon/state/lora.safetensors")
    for name in ("neoncity", "Neon_City", "neon_city.safetensors", "neon/neon_city"):
        with pytest.raises(UserError, match=r"did you mean <lora:neon_city:0\.8>\?$"):
            find_lora(name, Path("output"))
    with pytest.raises(UserError, match=r"there is neon_city$"):
        find_lora("lora", Path("output"))  # the one in the resume state is none
    (Path("empty")).mkdir()
    with pytest.raises(UserError, match="no LoRA at all"):
        find_lora("lora", Path("empty"))
    with pytest.raises(UserError, match="is not a folder; name one with --lora-dir"):
        find_lora("lora", Path("nowhere"))


def test_a_picture_without_a_name_is_written_over_no_other() -> None:
    given, taken = Path("output/a.png"), list[Path]()
    for name, count in ((None, 1), (None, 1), (None, 2), (None, 1), (given, 1), (given, 2)):
        for number in range(count):
            taken.append(picture_path(name, number, count))
            touch(str(taken[-1]))
    told = "generated generated-2 generated-3 generated-4 generated-5 a a-1 a-2"
    assert [path.stem for path in taken] == told.split() and {path.parent for path in taken} == {Path("output")}

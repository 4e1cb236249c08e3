"""What must not stand in the code, whoever wrote it: nothing that runs what a file holds, nothing that listens."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for place in ("src", "tools", "benchmarks", "start.py", "train.py")
               for p in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py")))  # fmt: skip

CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
    ),
    *("pickle.load", "pickle.loads", "torch.load", "joblib.load", "marshal.loads", "shelve.open", "dill.loads"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "np.fromregex"),
}
MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "telnetlib", "xmlrpc", "http.server", "flask"}
TRUE = {"shell", "trust_remote_code", "allow_pickle"}
"""Arguments that may not be true."""
TEXTS = ("0.0.0.0", "trust_remote_code=True", "shell=True")
WRITERS = {"write_text", "write_bytes", "savez", "tofile"}
"""Methods that write files; only one module may."""
MAY_WRITE = {"formats/io.py", "compute/meter.py", "plan/stage.py"}
"""The one that writes, and two that write to /proc."""


def name_of(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def found_in(source: str, inside: str = "") -> Iterator[str]:
    """Everything in a source that must not be there. `inside`: its path in the package; there one module writes."""
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', '?')}: "
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (where + name for name in names if name in MODULES or name.partition(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            if name in CALLS:
                yield where + name
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg in TRUE and not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"{where}{keyword.arg}"
            if inside and inside not in MAY_WRITE and name.rpartition(".")[2] in WRITERS and not name.startswith("io."):
                yield where + name
            if inside and inside not in MAY_WRITE and name.rpartition(".")[2] == "open" and _writes(node):
                yield f"{where}{name} for writing"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (where + text for text in TEXTS if text in node.value)


def _writes(call: ast.Call) -> bool:
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return any(set(mode) <= set("rwxabt+") and set(mode) & set("wxa+") for mode in modes if mode)


ALLOWED = {
    "benchmarks/advice.py": ("torch.load",),  # a measuring command that reads back what it wrote itself
    "src/lora_scripts/plan/stage.py": ("open for writing",),  # what the rehearsal prints, into a folder of its own
    "src/lora_scripts/train/progress.py": ("open for writing",),  # TensorBoard's curves, which are appended
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_what_a_file_holds_and_nothing_listens(path: Path) -> None:
    package = ROOT / "src" / "lora_scripts"
    inside = path.relative_to(package).as_posix() if package in path.parents else ""
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), ())
    found = [one for one in found_in(path.read_text("utf-8"), inside) if not one.endswith(tuple(allowed) or ("\0",))]
    assert not found


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(x)", "subprocess.run(x, shell=True)", "eval('1')",
     "yaml.load(x)", "A.from_pretrained(x, trust_remote_code=flag)", "host = '0.0.0.0'",
     "np.load(x, allow_pickle=True)", "path.write_text('x')", "path.open('w')", "open(path, 'ab')"],
)  # fmt: skip
def test_it_would_be_found(source: str) -> None:
    assert list(found_in(source, "x.py"))


def test_what_the_makers_keep_comes_back_without_pickle(tmp_path: Path) -> None:
    import torch
    from benchmarks.miniature import kept

    p = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.95))
    p.grad = torch.ones(3, 2)
    optimizer.step()
    kept.save({"step": 3, "optimizer": optimizer.state_dict(), "ema": [torch.ones(2).bfloat16()]}, tmp_path / "x")
    state = kept.load(tmp_path / "x")
    other = torch.optim.AdamW([torch.nn.Parameter(p.detach().clone())])
    other.load_state_dict(state["optimizer"])
    assert str(other.state_dict()) == str(optimizer.state_dict()) and state["step"] == 3
    assert state["ema"][0].dtype == torch.bfloat16

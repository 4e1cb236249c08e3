"""Do the tests see a fault in the core? Each row breaks one line of a copy of the source, and the tests named in it must
fail: `python benchmarks/mutants.py [NUMBER …]`. About an hour on one core for all.

The faults are such as no type checker and no crash would tell: a scale, an order, a seed, a weight, a cache key, a mean.
"""

# ruff: noqa: E501
from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """One broken line."""

    file: str
    old: str
    new: str
    tests: str
    """Names of test files, without test_."""


MUTANTS = [
    # scales
    Mutant("adapters/layer.py", "return self.alpha / self.rank", "return self.alpha / (self.rank + 1)", "lora"),
    Mutant("adapters/layer.py", "up * (self.scale * self.strength)", "up * self.scale", "lora generate_more"),
    Mutant("adapters/layer.py", "(self.scale * (up.flatten(1) @", "((up.flatten(1) @", "lora adapters"),
    Mutant("adapters/changed.py", "us[0].addmm_(rows, up.flatten(1), alpha=site.scale)", "us[0].addmm_(rows, up.flatten(1))", "together"),
    Mutant("adapters/together.py", "layer.down, layer.group = self.layers[0].down, self", "layer.group = self", "together"),
    Mutant("adapters/together.py", "x is not self._x or ", "", "together"),
    # references
    Mutant("families/black_forest/flux2_model.py", "APART = 10", "APART = 9", "references"),
    Mutant("families/black_forest/flux1_model.py", "place[:, 0] = 1", "place[:, 0] = 0", "references"),
    Mutant("train/planned.py", "planned(one, index) for one in", "planned(one, 0) for one in", "references"),
    Mutant("train/feed.py", "[p.shape for p in", "[p.bucket for p in", "references"),
    # where nothing calls the LoRA
    Mutant("train/passes.py", "        with off(), torch.no_grad():", "        with torch.no_grad():", "preserve"),
    Mutant("train/passes.py", "return 0 if batch.preserved else len(batch.names)", "return len(batch.names)", "preserve"),
    Mutant("train/passes.py", "        self._preserved = ready.preserved", "        self._preserved = False", "preserve"),
    Mutant("train/feed.py", "s.preserve if preserved else p.weight", "p.weight", "preserve"),
    Mutant("train/feed.py", 'place=f"preserved/{row.place}"', "place=row.place", "preserve"),
    Mutant("train/feed.py", "enumerate(range(0, len(batches), size), epoch * per_epoch)", "enumerate(range(0, len(batches), size))", "preserve"),
    Mutant("run/build.py", "scaler, model.masters, model.off)", "scaler, model.masters)", "preserve"),
    Mutant("data/trigger.py", "key=lambda pair: -len(pair[0])", "key=lambda pair: len(pair[0])", "preserve"),
    # attention on a card
    Mutant("compute/attention.py", "        y = _AsLaid.apply(y)\n", "        pass\n", "card_attention"),
    Mutant("compute/attention.py", "F.scaled_dot_product_attention, _cudnn_leads = before", "pass", "card_attention"),
    Mutant("compute/attention.py", "sdpa_kernel(order, set_priority=True)", "sdpa_kernel(order)", "card_attention"),
    Mutant("train/passes.py", "        with quickest_attention(self._device):\n            return self._go(batch)", "        return self._go(batch)", "card_attention"),
    # what a start does
    Mutant("data/cache.py", "st_size > 0", "st_size >= 0", "cache growth"),
    Mutant("train/planned.py", "index=index if random_crop else 0", "index=0", "feed"),
    Mutant("families/sd/latents.py", "return self.normal.into(mean, std)[0].cpu(), maps", "return mean.cpu(), maps", "strays"),
    Mutant("families/strays.py", "ratio = fine - coarse", "ratio = fine + coarse", "strays"),
    Mutant("families/strays.py", "(square + square.quantile(0.5)) / 2", "square", "strays"),
    # what is in RAM, and what a run does besides
    Mutant("compute/resting.py", "if self.untouched:", "if True:", "memory"),
    Mutant("compute/pages.py", "_PAGEOUT if own else _DONTNEED", "_DONTNEED", "memory"),
    Mutant("families/sd/encoder.py", "if not self._resting.untouched:", "if False:", "memory"),
    Mutant("families/sd/network.py", "torch.cat([torch.cos(angles), torch.sin(angles)], -1)", "torch.cat([torch.sin(angles), torch.cos(angles)], -1)", "lean"),
    Mutant("families/sd/whole.py", "return layout if known and all(", "return layout if all(", "lean"),
    Mutant("run/base_files.py", '" ".join([what, *sorted(self.digests.values())])', "what", "base_files"),
    Mutant("compute/resting.py", "self.awake = False\n", "pass\n", "memory"),
    Mutant("run/overview.py", "if open_[what]) <= SHARE:", "if open_[what]) <= 2 * SHARE:", "validate"),
    Mutant("run/overview.py", 'held.looks_at_whole and report == "full"', "held.looks_at_whole and service.full", "validate"),
    Mutant("run/overview.py", "filled.sample_every != c.sample_every", "True", "validate"),
    Mutant("adapters/masters.py", "every = {id(p): p for", "every = {(layer, id(p)): p for", "together"),
    Mutant("train/passes.py", "            forget()\n", "", "together"),
    Mutant("run/init_lora.py", "w.alpha != first.alpha or not torch.equal(w.down, first.down)", "w.alpha != first.alpha", "together"),
    Mutant("adapters/layer.py", "1 / math.sqrt(self.down[0].numel())", "1 / self.down[0].numel()", "lora training"),
    Mutant("adapters/dora.py", "2 * self.scale * ((up.T @ weight)", "self.scale * ((up.T @ weight)", "adapters"),
    Mutant("adapters/weights.py", "rescaled(up, weights.alpha / weights.rank / scale)", "rescaled(up, weights.alpha / scale)", "kohya"),
    Mutant("adapters/weights.py", "LoraWeights(down, up, scale * rank, weights.dora)", "LoraWeights(down, up, scale * weights.rank, weights.dora)", "kohya"),
    Mutant("adapters/weights.py", "(weights.up.double() * (weights.alpha / weights.rank))", "(weights.up.double() * (weights.rank / weights.alpha))", "kohya adapters verify"),
    Mutant("families/sd/latents.py", "(mean - shift) * scale, std * scale", "(mean - shift) * scale, std", "family sdxl"),
    Mutant("families/sd/latents.py", "self.normal.back(latents[None].to(self.device))", "latents[None].to(self.device)", "family generate"),
    Mutant("run/build.py", "alpha * math.sqrt(rank)", "alpha * rank", "adapters training lora"),
    Mutant("run/build.py", "rate * config.lora_plus_ratio", "rate", "adapters"),
    Mutant("run/build.py", "rule.alpha or alpha / rank * own", "rule.alpha or alpha", "adapters"),
    Mutant("loras/on_model.py", "layer.strength = text_strength if family.facts.inside_text(path) else strength", "layer.strength = strength", "generate_more generate grid"),
    Mutant("compute/packed.py", "block.weights, block.size, torch.float32", "block.weights, block.size, dtype", "gguf"),
    Mutant("families/flow/model.py", "return None if own.all() else own", "return None", "chroma qwen_image krea2"),
    Mutant("families/chroma/model.py", "ids = [*own, self.tokens.fill][:MOST]", "ids = own", "chroma"),
    Mutant("families/flux1/pair_reader.py", "if self._lent else texts", "if False else texts", "flux1_text"),
    Mutant("families/flow/model.py", ", : lengths[g[0]]]", "]", "flux3 qwen_image21"),
    Mutant("families/qwen_image21/check.py", "ended=False, ", "", "qwen_image21"),
    Mutant("families/qwen_image21/frame.py", ", first_chunk=True", "", "qwen_image21"),
    Mutant("train/encoded.py", '"latents of four" if self.transparency', '"latents" if self.transparency', "qwen_image21"),
    Mutant("run/heldout.py", ", transparency=not c.mask_alpha", "", "qwen_image21"),
    Mutant("data/image.py", "pixels[..., 3:] == 0", "pixels[..., 3:] < 0", "image"),
    Mutant("families/names.py", " and not inner", "", "sd3"),
    Mutant("families/black_forest/streams.py", "(turned if row.swapped else others)[key]", "others[key]", "flux1 flux2 sd3"),
    Mutant("families/flow/reader.py", ".where(mask, 1)", ".where(mask, 0)", "flux3"),
    Mutant("families/flux1/pair_reader.py", "with counting(self.clip.worn, 0.0):", "with counting([], 0.0):", "flux1_text"),
    Mutant("families/sd3/trio_reader.py", "PAD_G = 0", "PAD_G = 49407", "sd3"),
    Mutant("families/sd3/names.py", "turned={**made.turned, **turned, **native}", "turned={}", "sd3"),
    # order and seeds
    Mutant("data/loader.py", 'random.Random(f"order/{seed}/{epoch}")', 'random.Random(f"order/{seed}")', "loader feed"),
    Mutant("data/loader.py", 'f"draw/{seed}/{epoch}/{position}/{index}"', 'f"draw/{seed}/{position}/{index}"', "loader feed"),
    Mutant("data/loader.py", "rng.shuffle(batches)", "pass", "loader"),
    Mutant("data/loader.py", "((turn + rng.random()) / repeats[i], i)", "(rng.random(), i)", "loader"),
    Mutant("data/loader.py", "number * GOLDEN) % 1.0", "number * 0.6) % 1.0", "loader feed"),
    Mutant("train/feed.py", "epoch * self.seen + position", "position", "feed"),
    Mutant("train/feed.py", "position = sum(len(b) for b in batches[: skip * size])", "position = sum(len(b) for b in batches[:skip])", "feed exact"),
    Mutant("train/feed.py", 'place = f"{s.seed}/{epoch}/{position}/{index}"', 'place = f"{s.seed}/{position}/{index}"', "feed"),
    Mutant("train/feed.py", "position += len(piece)", "position += 1", "feed shortage"),
    Mutant("train/loop.py", 'f"dropout/{settings.seed}/{state.step}"', 'f"dropout/{settings.seed}"', "training exact"),
    Mutant("train/loop.py", 'f"dropout/{settings.seed}/{state.step}"', 'f"dropout/{state.step}"', "training exact"),
    Mutant("adapters/inject.py", 'f"{seed}/{path}"', 'f"{seed}"', "lora training"),
    Mutant("data/buckets.py", 'f"crop/{seed}/{index}/{number}"', 'f"crop/{seed}/{number}"', "buckets feed"),
    Mutant("losses/noise.py", "if quantiles is None else quantiles", "", "feed"),
    Mutant("families/sd/steps.py", "torch.Generator().manual_seed(seed) for seed in seeds", "torch.Generator().manual_seed(seeds[0]) for seed in seeds", "generate_more"),
    # weights and means of the loss
    Mutant("train/loop.py", "_foreach_div_(grads, count)", "_foreach_div_(grads, len(batches))", "training"),
    Mutant("losses/diffusion.py", "a = self.signal.square()", "a = self.signal", "losses"),
    Mutant("losses/diffusion.py", "snr if prediction == \"epsilon\" else snr + 1)", "snr + 1 if prediction == \"epsilon\" else snr)", "losses"),
    Mutant("losses/diffusion.py", "(error.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1e-6)", "(error.flatten(1) * weight).mean(1)", "losses masks"),
    Mutant("losses/diffusion.py", "return noise - x0", "return x0 - noise", "losses"),
    Mutant("losses/diffusion.py", "sigma = torch.arange(1, steps + 1) / steps", "sigma = torch.arange(0, steps) / steps", "losses"),
    Mutant("losses/diffusion.py", "flow_weight(levels.noise, objective.weighting)", "flow_weight(levels.signal, objective.weighting)", "flow_levels zimage"),
    Mutant("losses/flow.py", "math.exp(-0.5)) / _BELL", "math.exp(-0.5))", "flow_levels"),
    Mutant("losses/flow.py", "y + steeper * (x - left)", "y + steeper * x", "flow_levels"),
    Mutant("losses/noise.py", "u + self.mode_scale * (u -", "u - self.mode_scale * (u -", "flow_levels feed"),
    Mutant("losses/noise.py", "torch.randn(shape[1], *[1] * (len(shape) - 2), generator=g)", "torch.randn(shape[1:], generator=g)", "losses"),
    Mutant("losses/noise.py", "return e / e.std()", "return e", "losses"),
    Mutant("families/sd/steps.py", "each * batch.weights.to(on)", "each", "training masks family"),
    Mutant("families/sd/steps.py", "x0 = mean.to(on) + std.to(on) * draws.posterior", "x0 = mean.to(on)", "family losses"),
    Mutant("families/sd/steps.py", "without + cfg * (with_prompt - without)", "with_prompt + cfg * (with_prompt - without)", "family generate"),
    Mutant("data/masks.py", "background + (1 - background) * cells", "background + cells", "masks"),
    Mutant("run/heldout.py", "outside = self.held.outside.losses().mean(1)", "outside = self.held.outside.losses()[:, 1:].mean(1)", "validate training"),
    Mutant("train/probe.py", "columns.index(part)] = value", "columns.index(part)] = value if part else 0", "validate feed"),
    Mutant("train/probe.py", "else picture.sample.digest}/{part}", "else picture.sample.digest}", "validate"),
    Mutant("train/evidence.py", "min(points, key=lambda e: (e.loss, e.step))", "min(points, key=lambda e: (round(e.loss, 1), e.step))", "validate"),
    Mutant("train/evidence.py", "points.index(best) >= patience", "points.index(best) > patience", "validate"),
    Mutant("train/average.py", "min(self.decay, (1 + step) / (10 + step))", "min(self.decay, step / (10 + step))", "optim"),
    Mutant("train/average.py", "trained, 1 - decay)", "trained, decay)", "optim"),
    Mutant("train/optim.py", "return (step + 1) / self.warmup", "return step / self.warmup", "optim"),
    Mutant("train/optim.py", "done * self.cycles % 1.0", "done * self.cycles", "optim"),
    Mutant("train/optim.py", 'step >= group["stop"]', 'step > group["stop"]', "optim pivotal"),
    # text
    Mutant("families/sd/encoder.py", "out.hidden_states[-layer]", "out.hidden_states[-layer - 1]", "family sdxl words"),
    Mutant("families/sd/encoder.py", "return self.inner.final_layer_norm(states) if normed else states, getattr(", "return states, getattr(", "family sdxl"),
    Mutant("families/clip/prompts.py", 'close("[", 1 / 1.1)', 'close("[", 1.1)', "prompts"),
    Mutant("families/clip/prompts.py", "before / after", "after / before", "prompts words generate_more"),
    # cache keys and what must be the same
    Mutant("train/encoded.py", 'cache_key(kind, picture.sample.digest, vae, repr(view))', 'cache_key("latents", picture.sample.digest, repr(view))', "feed"),
    Mutant("train/asked.py", 'cache_key("text", fingerprint, self.caption)', 'cache_key("text", self.caption)', "feed"),
    Mutant("train/asked.py", "fingerprint, self.caption, shown)", "fingerprint, self.caption)", "qwen_edit"),
    Mutant("train/asked.py", "one.views[variant]) for one in", "one.views[0]) for one in", "qwen_edit"),
    Mutant("families/qwen_image/layout.py", '"zero_cond_t": layout.apart', '"zero_cond_t": False', "qwen_edit"),
    Mutant("families/qwen_image/seeing.py", "int(one == self._pad)", "int(one < 0)", "qwen_edit"),
    Mutant("families/qwen_image/seeing.py", "return states[_DROPPED:]", "return states", "qwen_edit"),
    Mutant("families/qwen_image/seeing.py", "Image.Resampling.LANCZOS", "Image.Resampling.BICUBIC", "qwen_edit"),
    Mutant("tune/search.py", "(lowest + 1, lowest - 1)", "(lowest + 1,)", "tune"),
    Mutant("tune/search.py", "less(one.best.held, one.base.held)", "list(one.best.held)", "tune"),
    Mutant("train/encoded.py", 'cache_key(kind, picture.sample.digest, vae, repr(view))', 'cache_key("latents", picture.sample.digest, vae, repr((view.bucket, view.left, view.top)))', "feed"),
    Mutant("data/cache.py", "if _stored_digest(data) != _digest(key, tensors):", "if False:", "cache"),
    Mutant("run/resume.py", 'f"{sample.digest}{sample.caption}"', 'f"{sample.digest}"', "resume"),
    Mutant("run/resume.py", '| {f"mask of {name}": one for name, one in masks.items()}', "", "masks"),
    Mutant("run/resume.py", '"vae": family.fingerprint("vae"),', '"vae": "",', "identity"),
    Mutant("formats/manifest.py", "if _sha256(folder / name) != digest:", "if not (folder / name).exists():", "resume"),
    # locks and writes
    Mutant("run/run_folder.py", "lock.acquire()", "pass", "resume reliability"),
    Mutant("formats/io.py", "        _sync(fd)\n", "", "io"),
    Mutant("formats/io.py", "        _sync_folder(path.parent)\n    shutil.rmtree(old", "    shutil.rmtree(old", "io faults"),
    Mutant("formats/locks.py", "or _is_held(path):", "or False:", "io"),
    # escapes
    Mutant("report/environment.py", "autoescape=True", "autoescape=False", "report card"),
    # files
    Mutant("loras/kohya.py", "tensor.detach().to(\"cpu\", dtype).contiguous() for tensor in (weights.down, weights.up)", "tensor.detach().to(\"cpu\", torch.float16).contiguous() for tensor in (weights.down, weights.up)", "kohya"),
    Mutant("adapters/algebra/merge.py", "factors.of(w, strength)", "factors.of(w, 1.0)", "merge"),
    Mutant("adapters/algebra/bake.py", "weights.dora.double().reshape(shape) / norms.reshape(shape)", "norms.reshape(shape) / weights.dora.double().reshape(shape)", "convert adapters"),
    Mutant("data/split.py", "times[s.digest] == 1 and s.name not in copied", "times[s.digest] == 1", "validate"),
    Mutant("data/image.py", "white.paste(image, mask=image.getchannel(\"A\"))", "white.paste(image.convert(\"RGB\"))", "image"),
    Mutant("formats/numbers.py", "int((numbers & numbers.dtype.type(mask)).max()) != mask", "int((numbers[:1] & numbers.dtype.type(mask)).max()) != mask", "broken_weights header"),
]  # fmt: skip


def lived(number: int, mutant: Mutant) -> bool:
    """Whether its tests pass all the same. They run in a fork of this process, which has the libraries loaded."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        path = source / "lora_scripts" / mutant.file
        text = path.read_text("utf-8")
        path.write_text(text.replace(mutant.old, mutant.new, 1), "utf-8")
        files = [str(ROOT / "tests" / f"test_{name}.py") for name in mutant.tests.split()]
        told, child = Path(folder) / "told", os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            os.chdir(ROOT)
            os.environ["PYTHONPATH"] = str(source)  # of the processes that tests start
            sys.path[:0] = [str(source), str(ROOT)]
            os._exit(int(pytest.main(["-q", "-x", "-p", "no:warnings", "-p", "no:cacheprovider", *files])))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = told.read_text("utf-8")
    found = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    what = found[0].split(" - ")[0] if found else "LIVED" if code == 0 else f"{code}: {said[-300:]}"
    print(f"{number:3} {mutant.file}: {mutant.old.strip()[:60]} | {what}", flush=True)
    return code == 0


def main() -> None:
    for number, mutant in enumerate(MUTANTS):  # all must fit before the first is tried
        text = (ROOT / "src" / "lora_scripts" / mutant.file).read_text("utf-8")
        assert mutant.old in text, f"{number}: {mutant.file} has no {mutant.old!r}"
    for name in ("torch", "diffusers", "transformers", "peft", "scipy.stats", "tensorboard"):
        importlib.import_module(name)
    assert "lora_scripts" not in sys.modules
    chosen = [int(number) for number in sys.argv[1:]] or list(range(len(MUTANTS)))
    alive = [number for number in chosen if lived(number, MUTANTS[number])]
    print(f"{len(chosen) - len(alive)} of {len(chosen)} caught; lived: {alive}")


if __name__ == "__main__":
    main()

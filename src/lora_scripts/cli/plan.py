"""`lora-scripts plan`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_scripts.cli.options import number
from lora_scripts.cli.show import facts
from lora_scripts.cli.train import add_config
from lora_scripts.errors import UserError
from lora_scripts.events import Sink
from lora_scripts.units import duration, percent, size

if TYPE_CHECKING:
    from lora_scripts.plan.cards import Cards
    from lora_scripts.plan.command import Plan, Proposal
    from lora_scripts.plan.text_plan import TextPlan

Rows = Sequence[tuple[str, str]]
"""(what, its value)"""
HELP = "say what a training will do and take, without starting it"
OVERRIDES = True


def add(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    text = "to fit into so much memory, as if the card or machine had it (1 GB is 2^30 bytes)"
    parser.add_argument("--memory", metavar="GB", type=number(float, 0.01, 100_000), help=text)
    text = "also say where the time of a step goes, against the least that it could take on this machine"
    parser.add_argument("--profile", action="store_true", help=text)
    text = "say at once what cards of 8, 12, 16 and 24 GB allow, counted and not rehearsed; needs no card"
    parser.add_argument("--cards", action="store_true", help=text)


def call(options: argparse.Namespace, sink: Sink) -> Plan | TextPlan | Cards:
    """Says what a training will do and take: steps, buckets, time, memory, disk, by rehearsing its largest batch, one
    preview and one save; and what to change if it does not fit. Writes nothing."""
    from lora_scripts.run.configs import load_config

    config = load_config(options.config, options.overrides, sink, captions=True)
    if options.cards:
        if options.memory is not None or options.profile:
            raise UserError("--cards rehearses nothing, so there is no --memory or --profile", hint="leave one out")
        from lora_scripts.plan.cards import cards

        return cards(config)
    from lora_scripts import run
    from lora_scripts.plan.command import PlanOptions, plan

    wanted = PlanOptions(config, options.config, options.overrides, options.memory, options.profile)
    if run.of_texts(config):
        from lora_scripts.plan.text_plan import plan_texts

        return plan_texts(wanted, sink)
    return plan(wanted, sink)


def plain(plan: Plan | TextPlan | Cards) -> object:
    """What --json prints: seconds and bytes."""
    from lora_scripts.plan.command import Plan, figures

    return figures(plan) if isinstance(plan, Plan) else plan


def words(plan: Plan | TextPlan | Cards) -> list[str]:
    """The table, then one line that says whether it fits."""
    from lora_scripts.plan.cards import Cards

    if isinstance(plan, Cards):
        return cards_words(plan)
    from lora_scripts.plan.command import Plan
    from lora_scripts.plan.measured import PHASES

    if not isinstance(plan, Plan):
        return _text_words(plan)

    m, batch, ram = plan.measured, [], []
    if m.kinds:
        least = f"; smallest: {m.kinds[-1]}" if m.kinds[-1] != m.kinds[0] else ""
        batch.append(("largest batch", f"{m.kinds[0]}{least}"))
    if m.ram:
        needed = m.ram + (m.sizes["kept"] if m.done else 0)
        ram.append(("RAM", f"about {size(needed)} of {size(m.free_ram)}"))
    rows = [*m.rows, *batch, *_needs(plan, PHASES, ram)]
    return [*facts(rows), verdict_words(plan), *filter(None, [disk_words(plan)])]


def _text_words(plan: TextPlan) -> list[str]:
    """Of a run on texts."""
    from lora_scripts.plan.text_plan import PHASES

    m = plan.measured
    verdict = _text_verdict(plan, PHASES.get(m.at, "loading"))
    return [*facts([*m.rows, *_needs(plan, PHASES)]), verdict, *filter(None, [disk_words(plan)])]


def _needs(plan: Plan | TextPlan, phases: Mapping[str, str], ram: Rows = ()) -> Iterator[tuple[str, str]]:
    """Time, memory, RAM and disk, as far as they were measured; `phases`: what a rehearsal goes through, in words."""
    m = plan.measured
    if plan.seconds:
        yield "time", f"about {_parts(plan.seconds, duration, least=0.5)}"
    if m.peaks:
        there = f"; {size(plan.limit)} to fit into" if plan.limit else ""
        yield "memory", ", ".join(f"{phases[phase]} {size(peak)}" for phase, peak in m.peaks.items()) + there
    yield from ram
    if plan.disk:
        yield "disk", f"{_parts(plan.disk, size, least=1024)}; {size(plan.free_disk)} free"
    if m.profile:
        yield from profile_rows(m.profile)
    if plan.note:
        yield "note", plan.note


def cards_words(cards: Cards) -> list[str]:
    """A row for each card: what to write so that the run fits, and what it then needs."""
    from lora_scripts.plan.command import as_words

    rows = []
    for row in cards.rows:
        if row.changes is None:
            told = f"does not fit; with all that helps it takes about {size(row.bytes)}: lower resolution or lora_rank"
        else:
            ram = f", and {size(row.ram)} of RAM for its blocks" if row.ram else ""
            told = f"{' '.join(as_words(row.changes)) or 'fits as it is'}: about {size(row.bytes)}{ram}"
        rows.append((f"{row.card} GB", told))
    without = f"; not in it: {' and '.join(cards.left_out)}" if cards.left_out else ""
    return [*facts(rows), f"{cards.words}, counted and not rehearsed: plan without --cards does that{without}"]


def profile_rows(profile: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A step against its least, where its time goes, and what that means; of a `compute.profile.Profile` as a table."""
    seconds, least, speeds = profile["seconds"], profile["least"], profile["speeds"]
    floor = sum(least.values())
    rates = {
        "arithmetic": f"{profile['arithmetic'] / 1e12:.3g} TFLOP at {speeds['arithmetic'] / 1e12:.3g} a second",
        "memory": f"{size(profile['bytes'])} to and fro at {size(speeds['memory'])} a second",
        "launches": f"{profile['operations']:,} operations, {speeds['launch'] * 1e6:.1f} µs of nothing each",
    }
    parts = {"waiting": profile["waiting"], **profile["kinds"]}
    shares = [(name, part / seconds) for name, part in sorted(parts.items(), key=lambda row: -row[1])]
    return [
        (
            "a step",
            f"{_fine(seconds)}; at the speeds of this machine at least {_fine(floor)}, "
            f"{percent(floor / seconds)} of it",
        ),
        *((f"  {limit}", f"{_fine(least[limit])}: {rates[limit]}") for limit in least),
        ("it goes to", ", ".join(f"{name} {percent(share)}" for name, share in shares if share >= 0.005)),
        ("so", _meaning(seconds, least, profile["waiting"])),
    ]


def _meaning(seconds: float, least: Mapping[str, float], waiting: float) -> str:
    """What takes the most of a step, and what to try."""
    limits = {**least, "waiting": waiting, "rest": seconds - waiting - sum(least.values())}
    return {
        "arithmetic": "arithmetic decides: fewer pixels or a quicker device; larger batches take as much longer",
        "memory": "moving numbers decides: precision=bf16 halves them",
        "launches": "the operations are too small for this device: a larger batch_size takes little longer a step",
        "waiting": "the device waits for the program: a larger batch_size takes little longer a step",
        "rest": "the operations stay below what large ones reach: a larger batch_size or a machine to itself helps",
    }[max(limits, key=lambda name: limits[name])]


def _fine(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.95 else duration(seconds)


def _text_verdict(plan: TextPlan, where: str) -> str:
    """ "fits: …" or "does not fit: …; type: …"; `where`: what was being done last."""
    peak, limit = size(plan.peak), size(plan.limit)
    if plan.fits == "yes":
        return f"fits: peak {peak} of {limit}"
    if plan.fits == "unknown":
        return f"peak {peak}; this system does not tell how much memory there is"
    head = f"does not fit: {f'memory ran out in {where}' if plan.measured.short else f'peak {peak}'}, of {limit}"
    if plan.proposal is None:
        return f"{head}; no smaller batch, shorter record or base in 8 bits helps: take a smaller model"
    return f"{head}; {'' if plan.proposal.measured else 'not rehearsed, '}type: {plan.proposal.command}"


def _parts(parts: Mapping[str, float], in_words: Callable[[float], str], *, least: float) -> str:
    named = ", ".join(f"{name} {in_words(value)}" for name, value in parts.items() if value >= least)
    return f"{in_words(sum(parts.values()))}: {named}"


def verdict_words(plan: Plan) -> str:
    """ "fits: …", "fits barely: …" or "does not fit: …; type: …"."""
    from lora_scripts.plan.measured import PHASES

    m, phase = plan.measured, PHASES.get(plan.measured.worst, plan.measured.worst) if plan.measured.peaks else "loading"
    peak, limit = size(m.peak), size(plan.limit)
    if plan.fits == "yes":
        return f"fits: peak {peak} of {limit} ({phase})"
    if plan.fits == "unknown":
        return (
            f"peak {peak} ({phase}); this system does not tell how much memory there is" if m.peak else "not measured"
        )
    if plan.fits == "barely":
        head = f"fits barely: peak {peak} of {limit} ({phase})"
    elif m.short:
        head = f"does not fit: memory ran out in {phase}" + (f", of {limit}" if plan.limit else "")
    else:
        head = f"does not fit: peak {peak} ({phase}), of {limit}"
    if plan.proposal is None:
        tried = "no smaller batch size, resolution or rank helps, nor a base in 8 bits"
        return f"{head}; {tried}: plan --cards counts what else there is"
    return f"{head}; {_proposal_words(plan.proposal)}type: {plan.proposal.command}"


def _proposal_words(proposal: Proposal) -> str:
    tried = proposal.measured
    if tried is None:
        return "not rehearsed, "
    return f"rehearsed with peak {size(tried.peak)}, about {duration(proposal.seconds)}, "


def disk_words(plan: Plan | TextPlan) -> str:
    """That the disk is too small; "" where it is not."""
    needs = sum(plan.disk.values()) + plan.in_passing
    if not plan.disk or needs <= plan.free_disk:
        return ""
    mend = "lower it with keep_last=1, or choose another output_dir"
    return f"not enough disk space: needs {size(needs)}, {size(plan.free_disk)} free; {mend}"

"""surefoot and its peers on the same work, in turns, and a table of how fast each was.

    python -m benchmarks.run gsm8k --repeats 3
    python -m benchmarks.run banking77 --search          find the peers' best settings first
    python -m benchmarks.run --data rows.jsonl --only surefoot trl-best

Every run is a fresh process in an environment of its own; the contenders take turns (A B C, A B C, ...), because
a shared machine drifts: ratios are taken round by round. Same rows in the same order, same token ids, same
precision (fp32 weights, bf16 products), learning rate, schedule and clipping. Tokens are those of the rows as the
user brought them. See README.md beside this file for what each column is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import contenders, machine, measures, search, workloads
from benchmarks.contenders import CONTENDERS, ROOT, Contender, FailedError, Outcome
from benchmarks.workloads import Prepared

RESULTS = contenders.HERE / "results"
ENVIRONMENTS = ROOT / "build" / "benchmarks" / "environments"
DEFAULT = ("surefoot", "trl-defaults", "trl-best", "llamafactory", "litgpt")


def rounds(
    who: list[Contender],
    prepared: Prepared,
    environments: Path,
    folder: Path,
    *,
    repeats: int,
    precision: str = "bf16",
    device: str = "cpu",
) -> list[dict[str, Outcome]]:
    """Everyone once, in turn, `repeats` times. One that fails is told of and left out from then on."""
    done: list[dict[str, Outcome]] = []
    left = list(who)
    for turn in range(repeats):
        outcomes: dict[str, Outcome] = {}
        for one in list(left):
            place = folder / f"{turn}-{one.name}"
            try:
                outcome = contenders.run(
                    one, prepared, environments, place, precision=precision, device=device
                )
                speed = measures.speed(outcome, prepared.tokens_of_steps)
            except FailedError as failure:
                print(f"{failure}\n", file=sys.stderr)
                left.remove(one)
                continue
            outcomes[one.name] = outcome
            print(f"round {turn + 1}: {one.name} {speed.steady:,.0f} tokens/s", flush=True)
        done.append(outcomes)
    return done


def present(who: list[str], environments: Path, lora: bool, overrides: list[str]) -> list[Contender]:
    """Those that can run, with `NAME.SETTING=VALUE` applied; tells of the others.

    Raises SystemExit for an override that names nothing.
    """
    found = {}
    for name in who:
        reason = contenders.missing(environments, CONTENDERS[name], lora)
        if reason:
            print(f"{name}: {reason}", file=sys.stderr)
        else:
            found[name] = CONTENDERS[name]
    for override in overrides:
        left, equals, value = override.partition("=")
        name, dot, setting = left.partition(".")
        if not equals or not dot or name not in found:
            raise SystemExit(f"--set {override}: write NAME.SETTING=VALUE, NAME one of {', '.join(found)}")
        try:
            said: Any = json.loads(value)
        except json.JSONDecodeError:
            said = value
        found[name] = replace(found[name], settings={**found[name].settings, setting: said})
    return list(found.values())


def best_settings(
    one: Contender, prepared: Prepared, environments: Path, folder: Path, file: Path, precision: str
) -> Contender:
    """Search for a contender's best settings on this workload, and keep them in `file`."""

    def measure(settings: dict[str, Any]) -> search.Tried:
        place = Path(tempfile.mkdtemp(dir=folder)) / one.name
        rows = prepared.workload.rows_per_step
        if settings["micro_batch"] > rows or rows % settings["micro_batch"]:
            return search.Tried(settings, None, f"a step of {rows} rows has no such micro-batches")
        try:
            tried = replace(one, settings=settings)
            outcome = contenders.run(tried, prepared, environments, place, precision=precision)
        except FailedError as failure:
            print(f"{one.name} {settings}: failed", flush=True)
            return search.Tried(settings, None, str(failure))
        speed = measures.speed(outcome, prepared.tokens_of_steps).steady
        print(f"{one.name} {settings}: {speed:,.0f} tokens/s", flush=True)
        return search.Tried(settings, speed)

    tried = search.search(one.settings, one.choices, measure)
    about = {"date": now(), "machine": machine.describe(), "steps": prepared.steps, "precision": precision}
    chosen = search.store(file, prepared.workload.name, one.name, tried, about)
    return replace(one, settings=chosen) if chosen else one


def roofline(prepared: Prepared, precision: str) -> dict[str, Any]:
    """The limit for these rows on this machine, measured by `roofline.py` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.roofline", "--prepared", str(prepared.folder), "--json"]
    said = subprocess.run(
        [*command, "--precision", precision], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(said.stdout)


def ready(
    args: argparse.Namespace, workload: workloads.Workload, folder: Path, steps: int, skip: int = 0
) -> Prepared:
    """Prepare the workload in a process of its own: this one has to stay small."""
    command = [sys.executable, "-m", "benchmarks.workloads", "--model", args.model, "--out", str(folder)]
    command += ["--steps", str(steps), "--skip", str(skip)]
    command += ["--data-root", str(workloads.data_root(args.data_root))]
    if args.data is None:
        command += [workload.name]
    else:
        command += ["--data", workload.file, "--rows-per-step", str(workload.rows_per_step)]
        command += ["--lora-r", str(workload.lora_r)] + ["--last-turn-only"] * workload.last_turn_only
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return workloads.read(folder)


def now() -> str:
    """In UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def arguments() -> tuple[argparse.Namespace, workloads.Workload]:
    """The command line, and the workload it names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    chosen = workloads.choose(parser)
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--only", nargs="+", choices=[*CONTENDERS], default=DEFAULT, metavar="NAME")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME.SETTING=VALUE", dest="overrides")
    parser.add_argument("--search", action="store_true", help="find the peers' best settings first")
    parser.add_argument("--search-steps", type=int, default=4, help="steps of each short run of the search")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--model", default="smollm2-135m", help="short name or folder")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (or SUREFOOT_DATA)")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="folder of the peers' own")
    parser.add_argument("--no-roofline", action="store_true", help="do not measure the limit")
    parser.add_argument("--out", type=Path, help="JSON of the result (default: results/WORKLOAD.json)")
    parser.add_argument(
        "--settings", type=Path, default=RESULTS / "settings.json", help="what searches found"
    )
    args = parser.parse_args()
    workload = chosen(args)
    if min(args.steps or workload.steps, args.search_steps) <= measures.WARM_UP:
        parser.error(f"speed is measured after {measures.WARM_UP} steps: run more")
    return args, workload


def main() -> int:
    """Prepare, search, run in turns, print, store."""
    args, workload = arguments()
    who = present(list(args.only), args.environments.absolute(), workload.lora_r > 0, args.overrides)
    overridden = {override.partition(".")[0] for override in args.overrides}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary)
        prepared = ready(args, workload, folder / "rows", args.steps or workload.steps)
        short = ready(args, workload, folder / "short", args.search_steps) if args.search else prepared
        for index, one in enumerate(who):
            if args.search and one.choices:
                print(f"searching {one.name}'s best settings", flush=True)
                found = best_settings(
                    one, short, args.environments.absolute(), folder, args.settings, args.precision
                )
                who[index] = found
            elif one.choices and one.name not in overridden:
                before = search.stored(args.settings, workload.name, one.name)
                who[index] = replace(one, settings={**one.settings, **before})
        limit = None if args.no_roofline else roofline(prepared, args.precision)
        done = rounds(
            who,
            prepared,
            args.environments.absolute(),
            folder,
            repeats=args.repeats,
            precision=args.precision,
        )
        report(args, prepared, who, done, limit)
    return 0 if any(done) else 1


def report(
    args: argparse.Namespace,
    prepared: Prepared,
    who: list[Contender],
    done: list[dict[str, Outcome]],
    limit: dict[str, Any] | None,
) -> None:
    """Print the tables and store everything."""
    if not any(done):
        return
    summaries = measures.summarise(done, prepared.tokens_of_steps)
    tokens, learned = sum(prepared.tokens_of_steps), sum(row.learned for row in prepared.rows)
    ideal = limit["ideal_tokens_per_second"] if limit else None
    print(
        f"\n{prepared.workload.name}: {prepared.steps} steps of {prepared.workload.rows_per_step} rows, "
        f"{tokens:,} tokens, {learned:,} of them learned; "
        f"timed from step {measures.WARM_UP + 1} on, {len(done)} rounds\n"
    )
    print(measures.table(summaries, ideal))
    if ideal:
        print(f"limit: {ideal['apart']:,.0f} tokens/s, with prefixes shared {ideal['shared']:,.0f}")
    for one in summaries:
        for remark in one.remarks:
            print(f"{one.contender}: {remark}")
    print("\n" + measures.loss_table(next(one for one in done if one)))
    out = args.out or RESULTS / f"{prepared.workload.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        "date": now(),
        "machine": machine.describe(),
        "workload": {**vars(prepared.workload), "file": Path(prepared.workload.file).name},
        "model": prepared.model.name,
        "precision": args.precision,
        "steps": prepared.steps,
        "tokens_of_steps": prepared.tokens_of_steps,
        "supervised_tokens": learned,
        "limit": limit,
        "summary": {one.contender: measures.to_dict(one) for one in summaries},
        "settings": {one.name: one.settings for one in who},
        "rounds": [{name: run.to_dict() for name, run in one.items()} for one in done],
    }
    out.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"\n{out} written")


if __name__ == "__main__":
    contenders.end_on_sigterm()
    sys.exit(main())

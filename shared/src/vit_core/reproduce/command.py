"""`reproduce`: one command for all papers, their claims and the report.

reproduce                       train, evaluate and explain small models of every paper, check its claims, write report
reproduce --resume              resume the latest run
reproduce --preset paper        each paper's own recipe on its own dataset; first prints the time and disk space needed
reproduce list | train | evaluate | claims | bench | report
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_core.errors import UserError
from vit_core.flags import command, flag, parse, spelled

if TYPE_CHECKING:  # importing torch takes seconds: report invalid flags before that
    from vit_core.ledger.claims import Claim
    from vit_core.ledger.verdicts import Verdict
    from vit_core.papers import Paper
    from vit_core.reproduce.run import Reproduction
    from vit_core.reproduce.steps import Options

PLACE = "runs/reproduce"
Loaded = tuple[dict[str, "Paper"], dict[str, Exception]]


# ── flags ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class PaperFlags:
    """The flag of the commands that can be restricted to some papers."""

    paper: tuple[str, ...] = flag((), "only this paper; repeat for several papers", metavar="NAME", repeat=True)


@dataclass(frozen=True, kw_only=True)
class DatasetFlags:
    """The flags of the commands that can use another dataset."""

    dataset: str | None = flag(None, "train every model on this dataset instead, such as cifar10 or imagefolder")
    data_path: str | None = flag(
        None,
        "folder of the dataset; without --dataset, with --preset paper: used in place of data/",
        metavar="DIR",
    )
    download: bool = flag(False, "download missing datasets (default with --preset paper)")


@dataclass(frozen=True, kw_only=True)
class RunFlags(PaperFlags, DatasetFlags):
    """Train, evaluate and explain every installed paper, and compare its claims with the measurements.

    Commands for single steps (each has --help): list, train, evaluate, claims, bench, report.
    """

    preset: str = flag(
        "micro",
        "micro: small models on the built-in digits; paper: each paper's own recipe",
        choices=("micro", "paper"),
    )
    epochs: int | None = flag(None, "epochs of every training (default: those of its recipe)")
    seeds: tuple[int, ...] = flag((42,), "random seeds of every training")
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    output_dir: str = flag(PLACE, "folder in which the run folder is created", metavar="DIR")
    resume: str | None = flag(None, "resume this run folder; alone: the latest", bare="", metavar="RUN")
    yes: bool = flag(False, "--preset paper: start without confirmation")
    plan: bool = flag(False, "only print the time and disk space needed")


@dataclass(frozen=True, kw_only=True)
class TrainFlags(RunFlags):
    """Train the papers' models; then evaluate them with `reproduce evaluate`."""


@dataclass(frozen=True, kw_only=True)
class ReportFlags(PaperFlags):
    """Write the page of a run again; first run missing evaluations, analyses and claims."""

    run: Path | None = flag(None, "run folder (default: the latest)", positional=True, metavar="RUN")
    device: str | None = flag(None, "auto, cpu, cuda, cuda:N or mps (default: that of the run)")
    output_dir: str = flag(PLACE, "folder that contains the runs", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(ReportFlags, DatasetFlags):
    """Evaluate the models that a run trained; with --dataset, on another dataset."""

    dataset: str | None = flag(
        None, "another dataset with the same classes; results are printed and saved in the run folder"
    )


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """List the installed papers, their models and claims."""


@dataclass(frozen=True, kw_only=True)
class ClaimsFlags(PaperFlags):
    """Check the claims: measure the instant ones now, and print all verdicts."""

    verdict: tuple[str, ...] = flag(
        (), "show only claims with this verdict (holds, fails, …); may be repeated", metavar="WORD", repeat=True
    )
    json: Path | None = flag(None, "write all verdicts to this JSON file", metavar="FILE", output=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in COMMANDS else None
    if name is None and words and not words[0].startswith("-"):
        raise UserError(f"unknown command {words[0]}: choose from {', '.join(COMMANDS)}, or give none to run all steps")
    return COMMANDS[name](words) if name else _run(words, None)


# ── the run, and its parts ────────────────────────────────────────────────────────────────────────────────────────


def _run(words: Sequence[str], only: str | None) -> int:
    """Run all steps, or only `train`."""
    args = parse(RunFlags, words, "reproduce") if only is None else parse(TrainFlags, words, f"reproduce {only}")
    place = Path(args.output_dir)
    if args.resume is not None:
        return _resume(args, place, only)
    options = _options(args)
    papers, broken = _papers(args.paper)
    _check(papers, options)
    if options.preset == "paper" or args.plan:
        agreed = _agreed(papers, options, place, yes=args.yes)
        if args.plan or not agreed:
            return 0
    from vit_core.reproduce.run import begin
    from vit_core.reproduce.steps import STEPS

    asked = STEPS if only is None else (only,)
    return _carry_out(begin(place, options, papers, broken, asked, [only, *words] if only else words))


def _resume(args: "RunFlags", place: Path, only: str | None) -> int:
    """Resume an earlier run with its options; only the device may change."""
    for name in ("paper", "preset", "dataset", "data_path", "download", "epochs", "seeds"):
        if getattr(args, name) != getattr(RunFlags, name):
            raise UserError(f"{spelled(name)} cannot be combined with --resume, which uses the earlier run's options")
    from vit_core.reproduce.run import latest, reopen

    run = reopen(Path(args.resume) if args.resume else latest(place), *load_papers())
    if args.device != RunFlags.device:
        run.options = dataclasses.replace(run.options, device=args.device)
    if only is not None:
        run.asked = (only,)
    return _carry_out(run)


def _evaluate(words: Sequence[str]) -> int:
    """Evaluate the models of a run, on its own dataset or on another."""
    args = parse(EvaluateFlags, words, "reproduce evaluate")
    if args.dataset is None and (args.data_path is not None or args.download):
        raise UserError("--data-path and --download require --dataset")
    run = _earlier(args)
    if args.dataset is None:
        run.asked = ("evaluate",)
        return _carry_out(run)
    from vit_core.reproduce.elsewhere import evaluate_on

    evaluate_on(run, args.dataset, args.data_path, download=args.download)
    return 0


def _report(words: Sequence[str]) -> int:
    """Write the page of a run again, after running its missing evaluation, analysis and claims."""
    run = _earlier(parse(ReportFlags, words, "reproduce report"))
    run.asked = ("evaluate", "analyze", "claims")
    return _carry_out(run)


def _earlier(args: "ReportFlags") -> "Reproduction":
    """The run that the flags select."""
    from vit_core.reproduce.run import latest, reopen

    run = reopen(args.run or latest(Path(args.output_dir)), *load_papers())
    unknown = set(args.paper) - run.papers.keys()
    if unknown:
        raise UserError(f"--paper {min(unknown)}: the papers of this run are {', '.join(run.papers)}")
    run.only = args.paper or None
    if args.device is not None:
        run.options = dataclasses.replace(run.options, device=args.device)
    return run


def _carry_out(run: "Reproduction") -> int:
    from vit_core.reproduce.run import Interrupted

    page = run.folder / "index.html"
    names = [p.title.partition(":")[0] for p in run.papers.values()] + [f"{n} (broken)" for n in run.broken]
    print(f"{', '.join(names)}: results are written to {run.folder}")
    print("Stop with Ctrl-C; progress is saved, and `reproduce --resume` continues.", flush=True)

    def stop(number: int, frame: object) -> None:
        raise Interrupted(128 + number)

    before = signal.signal(signal.SIGTERM, stop)  # trainings install their own handler, which finishes the step
    try:
        code = run.run(sys.stderr)
    except Interrupted as stopped:
        print(f"interrupted; resume with: reproduce --resume {run.folder}\nresults so far: {page}")
        return stopped.code
    finally:
        signal.signal(signal.SIGTERM, before)
    for name, error in run.broken.items():
        print(f"{name} could not be loaded: {type(error).__name__}: {error}", file=sys.stderr)
    if code:
        print(f"some steps failed: see the report and {run.folder / 'log.txt'}; --resume runs them again")
    print(f"results.json and claims.csv are in {run.folder}\nreport: {page}")
    return code


def _check(papers: Mapping[str, "Paper"], options: "Options") -> None:
    """Report errors that would stop every paper before starting: invalid flags, missing images."""
    from vit_core.data import load_dataset
    from vit_core.reproduce.steps import studies
    from vit_core.training.distributed import pick_device

    pick_device(options.device)
    for name, paper in papers.items():
        for study in studies(paper, options, Path(name)).values():
            for row in study.rows:
                study.settled(row)
    if options.dataset is not None and not options.download:
        load_dataset(options.dataset, data_path=options.data_path, img_size=32, cache="disk")


def _agreed(papers: Mapping[str, "Paper"], options: "Options", place: Path, *, yes: bool) -> bool:
    """Print what the papers' recipes need; on a terminal, ask for confirmation."""
    from vit_core.reproduce.plan import announce, needs
    from vit_core.training.distributed import pick_device

    announce(needs(papers, options, place, sys.stderr), pick_device(options.device), sys.stdout)
    if yes or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    return input("Continue? [y/N] ").strip().lower() in ("y", "yes")


# ── the other commands ────────────────────────────────────────────────────────────────────────────────────────────


def _list(words: Sequence[str]) -> int:
    """List the installed papers, their models and claims."""
    parse(ListFlags, words, "reproduce list")
    from vit_core.ledger.claims import COSTS, load_claims

    papers, broken = _papers(())
    for name, paper in papers.items():
        models = dict.fromkeys(m for t in (*paper.micro, *paper.published) for m in t.recipe.models.values())
        print(f"{name}\n    {paper.title}\n    models: {', '.join(models)}")
        for preset, trainings in (("micro", paper.micro), ("paper", paper.published)):
            shown = "; ".join(f"{t.name} ({', '.join(t.rows)})" for t in trainings)
            print(f"    --preset {preset}: {shown}")
        try:
            costs = [c.cost for c in load_claims(paper.claims_file)]
        except (OSError, ValueError) as e:
            broken[name] = e
            continue
        counted = ", ".join(f"{costs.count(c)} {c}" for c in COSTS)
        print(f"    {len(costs)} claims: {counted}")
    for name, error in broken.items():
        print(f"{name}\n    cannot be loaded: {type(error).__name__}: {error}")
    return int(bool(broken))


def _claims(words: Sequence[str]) -> int:
    """Measure the instant claims and print all verdicts."""
    args = parse(ClaimsFlags, words, "reproduce claims")
    from vit_core.ledger.verdicts import VERDICTS, count
    from vit_core.reproduce.run import write_json
    from vit_core.reproduce.steps import as_record, verdicts_of
    from vit_core.training.run_folder import environment

    unknown = set(args.verdict) - set(VERDICTS)
    if unknown:
        raise UserError(f"--verdict {min(unknown)}: choose from {', '.join(VERDICTS)}")
    papers, broken = _papers(args.paper)
    record: dict[str, Any] = {"environment": environment(), "papers": {}}
    wrong = bool(broken)
    for name, paper in papers.items():
        verdicts = verdicts_of(paper, lambda share, what: None)
        counted = ", ".join(f"{n} {v}" for v, n in count(v.verdict for v in verdicts).items() if n)
        print(f"\n{paper.title}\n{len(verdicts)} claims: {counted}\n")
        for v in verdicts:
            if args.verdict and v.verdict not in args.verdict:
                continue
            said = f"{v.verdict} {v.condition}".rstrip()
            print(f"  {said:<12} {v.claim.statement}{_claimed(v.claim)}{_found(v)}{f'; {v.error}' if v.error else ''}")
            for when, value in v.under:
                print(f"             {when}: {value}")
        wrong |= any(v.error for v in verdicts)
        record["papers"][name] = [as_record(v) for v in verdicts]
    for name, error in broken.items():
        print(f"{name} could not be loaded: {type(error).__name__}: {error}", file=sys.stderr)
    if args.json:
        write_json(args.json, record)
    return int(wrong)


def _claimed(claim: "Claim") -> str:
    """ " [≥ 2.5 points]"; "" if the claim is a sentence or a table."""
    from vit_core.reproduce.number_format import SIGNS

    if isinstance(claim.claimed, bool | Mapping):
        return ""
    return f" [{f'{SIGNS[claim.comparison]} {claim.claimed} {claim.unit}'.strip()}]"


def _found(verdict: "Verdict") -> str:
    """ "; measured 2.4" or "; Table III: 96.8": what the verdict is based on."""
    if not verdict.cells:
        return f"; {verdict.reason}" if verdict.reason else ""
    if not isinstance(verdict.claim.claimed, Mapping):
        seen = f"{verdict.cells[0].found}"
    else:
        agree = sum(cell.verdict == "holds" for cell in verdict.cells)
        seen = f"{agree} of {len(verdict.cells)} values agree"
    return f"; {verdict.reason or 'measured'}: {seen}"


def _bench(words: Sequence[str]) -> int:
    """Time every model and its baseline."""
    from vit_core.reproduce.bench import BenchFlags, bench

    args = parse(BenchFlags, words, "reproduce bench")
    from vit_core.reproduce.run import write_json
    from vit_core.training.distributed import pick_device

    papers, _ = _papers(args.paper)
    found = bench(papers, pick_device(args.device), args.amp, args.rounds, lambda line: print(line, flush=True))
    if args.json:
        write_json(args.json, found)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": _list,
    "train": lambda words: _run(words, "train"),
    "evaluate": _evaluate,
    "claims": _claims,
    "bench": _bench,
    "report": _report,
}


def _options(args: "RunFlags") -> "Options":
    from vit_core.reproduce.steps import Options

    if args.epochs is not None and args.epochs < 1:
        raise UserError(f"--epochs must be at least 1, got {args.epochs}")
    if not all(0 <= s < 2**32 for s in args.seeds) or len(set(args.seeds)) < len(args.seeds):
        raise UserError("--seeds must be different integers from 0 to 4294967295")
    if args.data_path is not None and args.dataset is None and args.preset != "paper":
        raise UserError("--data-path requires --dataset (or --preset paper)")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("reproduce runs in a single process: start it without torchrun")
    return Options(
        preset=args.preset,
        dataset=args.dataset,
        data_path=args.data_path and str(Path(args.data_path).resolve()),
        download=args.download or (args.preset == "paper" and args.dataset is None),
        epochs=args.epochs,
        seeds=args.seeds,
        device=args.device,
    )


def load_papers() -> Loaded:
    """`vit_core.papers.load_papers`, imported lazily."""
    from vit_core import papers

    return papers.load_papers()


def _papers(names: Sequence[str]) -> Loaded:
    """The installed papers; only those in `names`, if there are any. UserError for one that is not installed."""
    papers, broken = load_papers()
    if not papers and not broken:
        raise UserError("no papers are installed: run `uv sync` to install all of them")
    if not names:
        return papers, broken
    names = [name.replace("-", "_") for name in names]  # accept distribution names, too
    for name in names:
        if name not in papers and name not in broken:
            raise UserError(
                f"--paper {name} is not installed; the installed papers are {', '.join(sorted({*papers, *broken}))}"
            )
    return {n: p for n, p in papers.items() if n in names}, {n: e for n, e in broken.items() if n in names}


if __name__ == "__main__":
    sys.exit(main())

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_core.errors import UserError
from vit_core.flags import ArgumentParser, command, output_file

if TYPE_CHECKING:  # importing torch takes seconds: report invalid flags before that
    from vit_core.ledger.claims import Claim
    from vit_core.ledger.verdicts import Verdict
    from vit_core.papers import Paper

PLACE = "runs/reproduce"
SUMMARY = "Train, evaluate and explain every installed paper, and compare its claims with the measurements."
Loaded = tuple[dict[str, "Paper"], dict[str, Exception]]


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
    parser = _parser(
        only, SUMMARY if only is None else "Train the papers' models; then evaluate them with `reproduce evaluate`."
    )
    _add_run_flags(parser)
    args = parser.parse_args(words)
    place = Path(args.output_dir)
    if args.resume is not None:
        return _resume(parser, args, place, only)
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


def _resume(parser: ArgumentParser, args: Any, place: Path, only: str | None) -> int:
    """Resume an earlier run with its options; only the device may change."""
    for name in ("paper", "preset", "dataset", "data_path", "download", "epochs", "seeds"):
        if getattr(args, name) != parser.get_default(name):
            raise UserError(
                f"--{name.replace('_', '-')} cannot be combined with --resume, which uses the earlier run's options"
            )
    from vit_core.reproduce.run import latest, reopen

    run = reopen(Path(args.resume) if args.resume else latest(place), *load_papers())
    if args.device != parser.get_default("device"):
        run.options = dataclasses.replace(run.options, device=args.device)
    if only is not None:
        run.asked = (only,)
    return _carry_out(run)


def _evaluate(words: Sequence[str]) -> int:
    """Evaluate the models of a run, on its own dataset or on another."""
    parser = _parser("evaluate", "Evaluate the models that a run trained; with --dataset, on another dataset.")
    _add_later_flags(parser)
    _add_image_flags(parser, "another dataset with the same classes; results are printed and saved in the run folder")
    args = parser.parse_args(words)
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
    parser = _parser("report", "Write the page of a run again; first run missing evaluations, analyses and claims.")
    _add_later_flags(parser)
    run = _earlier(parser.parse_args(words))
    run.asked = ("evaluate", "analyse", "claims")
    return _carry_out(run)


def _earlier(args: Any) -> Any:
    """The run selected by the flags of `_add_later_flags`."""
    from vit_core.reproduce.run import latest, reopen

    run = reopen(args.run or latest(Path(args.output_dir)), *load_papers())
    unknown = set(args.paper or ()) - run.papers.keys()
    if unknown:
        raise UserError(f"--paper {min(unknown)}: the papers of this run are {', '.join(run.papers)}")
    run.only = args.paper
    if args.device is not None:
        run.options = dataclasses.replace(run.options, device=args.device)
    return run


def _carry_out(run: Any) -> int:
    from vit_core.reproduce.run import Interrupted

    page = run.folder / "index.html"
    names = [p.title.partition(":")[0] for p in run.papers.values()] + [f"{n} (broken)" for n in run.broken]
    print(f"{', '.join(names)}: results are written to {run.folder}")
    print("Stop with Ctrl-C; progress is saved, and `reproduce --resume` continues.", flush=True)

    def stop(number: int, frame: object) -> None:
        raise Interrupted(128 + number)

    before = signal.signal(signal.SIGTERM, stop)  # trainings install their own handler, which finishes the step
    try:
        code: int = run.run(sys.stderr)
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


def _check(papers: Mapping[str, "Paper"], options: Any) -> None:
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


def _agreed(papers: Mapping[str, "Paper"], options: Any, place: Path, *, yes: bool) -> bool:
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
    _parser("list", "List the installed papers.").parse_args(words)
    from vit_core.ledger.claims import COSTS, load_claims

    papers, broken = _papers(None)
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
    parser = _parser("claims", "Check the claims: measure the instant ones now, and print all verdicts.")
    _add_paper_flag(parser)
    parser.add_argument(
        "--verdict", action="append", metavar="WORD", help="show only claims with this verdict (holds, fails, …)"
    )
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write all verdicts to this JSON file")
    args = parser.parse_args(words)
    from vit_core.ledger.verdicts import VERDICTS, count
    from vit_core.reproduce.run import write_json
    from vit_core.reproduce.steps import as_record, verdicts_of
    from vit_core.training.run_folder import environment

    unknown = set(args.verdict or ()) - set(VERDICTS)
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
    from vit_core.training.precision import MODES

    parser = _parser("bench", "Time every paper's models against their baselines, and check the targets.")
    _add_paper_flag(parser)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds per model (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument(
        "--amp", nargs="?", const="auto", default="off", choices=MODES, help="mixed precision (default: off)"
    )
    parser.add_argument("--json", metavar="FILE", type=output_file, help="also write the results to this JSON file")
    args = parser.parse_args(words)
    if args.rounds < 1:
        raise UserError("--rounds must be at least 1")
    from vit_core.reproduce.bench import bench
    from vit_core.reproduce.run import write_json
    from vit_core.training.distributed import pick_device

    papers, _ = _papers(args.paper)
    found = bench(papers, pick_device(args.device), args.amp, args.rounds, lambda line: print(line, flush=True))
    if args.json:
        write_json(args.json, found)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": _list, "train": lambda words: _run(words, "train"), "evaluate": _evaluate, "claims": _claims,
    "bench": _bench, "report": _report,
}  # fmt: skip


# ── flags ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parser(name: str | None, description: str) -> ArgumentParser:
    more = None if name else f"Commands for single steps (each has --help): {', '.join(COMMANDS)}."
    return ArgumentParser(prog=f"reproduce {name}" if name else "reproduce", description=description, epilog=more)


def _add_paper_flag(parser: ArgumentParser) -> None:
    parser.add_argument("--paper", action="append", metavar="NAME", help="only this paper; repeat for several papers")


def _add_image_flags(parser: ArgumentParser, what: str) -> None:
    parser.add_argument("--dataset", help=what)
    parser.add_argument(
        "--data-path", help="folder of the dataset; without --dataset, with --preset paper: used in place of data/"
    )
    parser.add_argument(
        "--download", action="store_true", help="download missing datasets (default with --preset paper)"
    )


def _add_later_flags(parser: ArgumentParser) -> None:
    """Add the flags of a command that continues a run."""
    parser.add_argument("run", nargs="?", type=Path, help="run folder (default: the latest)")
    _add_paper_flag(parser)
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps (default: that of the run)")
    parser.add_argument("--output-dir", default=PLACE, help="folder that contains the runs (default: %(default)s)")


def _add_run_flags(parser: ArgumentParser) -> None:
    _add_paper_flag(parser)
    parser.add_argument(
        "--preset", choices=("micro", "paper"), default="micro",
        help="micro: small models on the built-in digits; paper: each paper's own recipe (default: %(default)s)",
    )  # fmt: skip
    _add_image_flags(parser, "train every model on this dataset instead, such as cifar10 or imagefolder")
    parser.add_argument("--epochs", type=int, help="epochs of every training (default: those of its recipe)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[42], help="random seeds of every training (default: 42)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument(
        "--output-dir", default=PLACE, help="folder in which the run folder is created (default: %(default)s)"
    )
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="RUN", help="resume this run folder (default: the latest)"
    )
    parser.add_argument("--yes", action="store_true", help="--preset paper: start without confirmation")
    parser.add_argument("--plan", action="store_true", help="only print the time and disk space needed")


def _options(args: Any) -> Any:
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
        preset=args.preset, dataset=args.dataset, data_path=args.data_path and str(Path(args.data_path).resolve()),
        download=args.download or (args.preset == "paper" and args.dataset is None), epochs=args.epochs,
        seeds=tuple(args.seeds), device=args.device,
    )  # fmt: skip


def load_papers() -> Loaded:
    """`vit_core.papers.load_papers`, imported lazily."""
    from vit_core import papers

    return papers.load_papers()


def _papers(names: Sequence[str] | None) -> Loaded:
    """The installed papers, or those in `names`. UserError for a name that is not installed."""
    papers, broken = load_papers()
    if not papers and not broken:
        raise UserError("no papers are installed: run `uv sync` to install all of them")
    if names is None:
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

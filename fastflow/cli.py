"""The command `fastflow`. A mistake of the user is one line on stderr and exit code 2, and changes nothing on disk."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fastflow._backend import Unserved

if TYPE_CHECKING:
    from fastflow.training.config import Config
    from fastflow.training.restore import Restored

RUNS = Path("runs")
TOO_LARGE = ("can't allocate memory", "out of memory", "size calculation overflowed", "multiplication overflow")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit codes: 0; 2 a mistake of the user; 1 a training that diverged; 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(argv)
    if not argv:
        parser.print_help()
        return 0
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, TypeError, OSError, FloatingPointError, Unserved) as error:
        if args.traceback:
            raise
        return _fail(error, 1 if isinstance(error, FloatingPointError) else 2)
    except (MemoryError, RuntimeError) as error:
        if args.traceback or not (isinstance(error, MemoryError) or any(text in str(error) for text in TOO_LARGE)):
            raise
        return _fail(f"not enough memory for a batch, model or count of this size ({str(error).splitlines()[0]})", 2)
    except ModuleNotFoundError as error:
        package = (error.name or "fastflow").partition(".")[0]
        if package == "fastflow":
            raise
        return _fail(f"the package {package} is missing; install what training needs: pip install 'fastflow[train]'", 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(error: object, code: int) -> int:
    print("fastflow:", " ".join(str(error).split()), file=sys.stderr)
    return code


def _train(args: argparse.Namespace) -> int:
    from fastflow.training.evaluate import summary
    from fastflow.training.results import table
    from fastflow.training.train import flushed_denormals, prepare, train

    config, folder = _resumed(args) if args.resume else _new(args)
    with flushed_denormals():
        data = prepare(config, folder)
        folder = _make_folder(args, folder)
        print(f"run folder   {folder}", flush=True)
        try:
            results = train(config, folder, data)
        except KeyboardInterrupt:
            return _fail(f"interrupted; go on with: fastflow train {folder} --resume", 130)
    print(f"\n{table(results)}\n")
    if len(results) > 1 and (config.data.label_seed is not None or config.data.split):
        best = min(results, key=lambda result: result["loss"])
        print(f"least loss   seed {best['seed']}: {best['loss']:.4f} in training, then {summary(best)}")
    print(f"metrics      {folder / 'metrics.jsonl'}")
    print(f"tensorboard  {folder / 'tensorboard'}")
    print(f"checkpoints  {folder / 'checkpoints'}", flush=True)
    if not args.no_figures:
        _draw(folder, folder / "figures", config.device, probe=False)
    return 0


def _new(args: argparse.Namespace) -> tuple["Config", Path | None]:
    """The configuration of a new run, and the folder if it was named."""
    from fastflow.training.config_file import load_config

    if args.config.is_dir():
        raise ValueError(f"{args.config} is a folder, expected a YAML file; add --resume to go on with a run")
    return load_config(args.config, _settings(args)), args.out


def _resumed(args: argparse.Namespace) -> tuple["Config", Path]:
    """The configuration of the run to go on with, and its folder."""
    from fastflow.training.config_file import load_config
    from fastflow.training.run import CONFIG, newest_run

    if args.config.is_dir():
        if args.out:
            raise ValueError(f"--out is {args.out}, expected none: {args.config} is the run to go on with")
        return load_config(args.config / CONFIG, _settings(args)), args.config
    config = load_config(args.config, _settings(args))
    folder = args.out or newest_run(RUNS, args.config.stem)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run to resume; leave --resume out to start it")
    return config, folder


def _settings(args: argparse.Namespace) -> list[str]:
    return args.set + ([f"pretrained={json.dumps(str(args.pretrained))}"] if args.pretrained else [])


def _make_folder(args: argparse.Namespace, folder: Path | None) -> Path:
    from fastflow.training.run import claim_run, new_run

    if args.resume:
        return folder
    return claim_run(folder) if folder else new_run(RUNS, args.config.stem)


def _restored(args: argparse.Namespace) -> list["Restored"]:
    from fastflow.training.restore import restore, restore_pretrained

    if args.pretrained:
        return [restore_pretrained(args.target, args.pretrained, args.device)]
    return restore(args.target, args.device)


def _eval(args: argparse.Namespace) -> None:
    from fastflow.training.results import measure, table

    print(table([measure(run, args.split) for run in _restored(args)]))


def _sample(args: argparse.Namespace) -> None:
    from fastflow.figures import save_samples

    run = _restored(args)[0]
    out = args.out or _figures_folder(run) / f"samples-{args.seed}.png"
    save_samples(run.model, out, args.label, args.count, seed=args.seed, temperature=args.temperature)
    print(out)


def _figures(args: argparse.Namespace) -> None:
    _draw(args.target, args.out, args.device, probe=True)


def _draw(target: Path, out: Path | None, device: str, probe: bool) -> None:
    from fastflow.figures import draw_figures
    from fastflow.training.restore import restore

    runs = restore(target, device)
    for path in draw_figures(runs, out or _figures_folder(runs[0]), probe):
        print(f"figure       {path}", flush=True)


def _figures_folder(run: "Restored") -> Path:
    return run.folder / "figures" if run.folder else Path()


def _doctor(args: argparse.Namespace) -> None:
    from fastflow.doctor import doctor

    print(doctor())


def _data_list(args: argparse.Namespace) -> None:
    from fastflow.data.catalogue import listing

    print(listing(args.data_root))


def _data_check(args: argparse.Namespace) -> None:
    from fastflow.data.catalogue import check

    print(check(args.name, args.data_root))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="fastflow", description="Normalizing flows for semi-supervised learning.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = _add(commands, "train", _train, "train a configuration, or go on with a run",
                 "Trains CONFIG in a new folder runs/CONFIG-<UTC time>, which then holds the full configuration, "
                 "metrics.jsonl, TensorBoard logs, checkpoints and figures. Ctrl-C saves first; a stopped run, "
                 "however it was stopped, goes on with --resume as if nothing had happened.")
    train.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, or with --resume a run folder")
    train.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                       help="change the configuration, for instance optimizer.lr=1e-3 seeds=3")
    train.add_argument("--resume", action="store_true",
                       help="go on with the run in --out, or with the newest run of CONFIG, from its last checkpoint")
    train.add_argument("--out", type=Path, metavar="FOLDER", help="name the run folder, which must be new or empty")
    train.add_argument("--pretrained", type=Path, metavar="FILE",
                       help="start from a model.torch of the public SCNF code")
    train.add_argument("--no-figures", action="store_true", help="draw no figures at the end")

    evaluate = _add(commands, "eval", _eval, "error and bits/dim of a run, a checkpoint or a pretrained model",
                    "Prints error, bits/dim and -log p(y|x) of the latest checkpoint of every seed of a run, or of one "
                    "checkpoint folder; of a model without classes bits/dim alone.")
    _add_target(evaluate)
    evaluate.add_argument("--split", choices=("test", "monitor", "train"), default="test",
                          help="test set (default), monitored images (trained on, without labels, if data.hold_out is "
                               "false), or all training images with a known label")

    sample = _add(commands, "sample", _sample, "draw images of each class",
                  "Draws images of each class, or of one, from the first seed of a run or from one checkpoint.")
    _add_target(sample)
    sample.add_argument("--label", type=int, metavar="K", help="only this class (default: all)")
    sample.add_argument("--count", type=int, default=10, metavar="N", help="images a class (default 10)")
    sample.add_argument("--temperature", type=float, default=1.0, metavar="T",
                        help="factor on the standard deviations of the latents (default 1)")
    sample.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    sample.add_argument("--out", type=Path, metavar="FILE",
                        help=".png a picture, .npz images and labels (default: samples-SEED.png beside the figures)")

    figures = _add(commands, "figures", _figures, "draw all that the model has to show",
                   "Draws every figure of a run, or of one checkpoint, as PNG files.")
    figures.add_argument("target", type=Path, metavar="RUN_OR_CHECKPOINT")
    figures.add_argument("--out", type=Path, metavar="FOLDER", help="default: figures/ in the run folder")
    _add_device(figures)

    data = commands.add_parser("data", help="which data sets there are, and whether their files are right")
    _add_data(data.add_subparsers(metavar="ACTION", required=True))

    bench = _add(commands, "bench", None, "measure against other libraries, write and read records", None)
    if "bench" in argv[:1]:
        from fastflow.bench import command

        command.add_arguments(bench)
        bench.set_defaults(run=command.main)

    _add(commands, "doctor", _doctor, "what is installed, which backends serve here, and what to do about the others",
         "Prints versions, the native library, the state of each backend with its reason, and remedies.")
    return parser


def _add(commands, name: str, run, summary: str, description: str | None) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=description)
    parser.add_argument("--traceback", action="store_true", help="on an error, show where it was raised")
    parser.set_defaults(run=run)
    return parser


def _add_data(actions) -> None:
    listing = _add(actions, "list", _data_list, "every named data set",
                   "Prints a line a data set: name, classes, rows, shape of one, whether its files are here, and where "
                   "they come from.")
    check = _add(actions, "check", _data_check, "load one and verify its files",
                 "Verifies the files of one data set by structure, counts and, where one is published, checksum.")
    check.add_argument("name", metavar="NAME", help="as `fastflow data list` has it")
    for action in (listing, check):
        action.add_argument("--data-root", type=Path, metavar="DIR",
                            help="the folder that has a folder for each data set (default: $FASTFLOW_DATA)")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="RUN_OR_CHECKPOINT", help="with --pretrained: a YAML file")
    parser.add_argument("--pretrained", type=Path, metavar="FILE", help="use a model.torch of the public SCNF code")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")

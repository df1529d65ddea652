"""``python -m stepaudio bench``: everything that is measured, in one run, against the baseline beside it.

Heavy imports wait until something is measured, because the command line imports this file for its flags.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepaudio.bench.conditions import commit, cpu_model, has_uncommitted_changes, load_average
from stepaudio.bench.parts import PARTS, assembled
from stepaudio.errors import InvalidInput
from stepaudio.settings import Settings

if TYPE_CHECKING:
    from stepaudio.bench.workbench import Case, Workbench
    from stepaudio.device import Runtime
    from stepaudio.weights import WeightsFolder

SETTINGS = (
    *("models_dir", "weights", "device", "dtype", "tf32", "threads", "linguistic_engine", "linguistic_onnx_dir"),
    *("cuda_graphs", "fused_kernels", "prefix_megabytes"),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured. scaling: lengths of sounds for the encoder, which has the real size unless ``small``.

    layers: of the language model at full size; all 32 need 7 GB. batch: texts and takes side by side.
    flow_steps: 0 for what suits the weights. few: runs of what takes many clones each.
    """

    runs: int
    reference_seconds: float
    sound_seconds: float
    flow_steps: int
    scaling: tuple[float, ...]
    scaling_runs: int
    engine_seconds: float
    small: bool = False
    exported: bool = True
    layers: int = 32
    batch: int = 16
    few: int = 2


QUICK = Plan(2, 2.0, 0.6, 2, (1.0, 2.0), 1, 2.0, small=True, batch=4)
USUAL = Plan(5, 6.0, 4.0, 0, (1.0, 2.0, 5.0, 10.0, 20.0, 30.0), 3, 10.0)
FULL_ON_GPU = Plan(3, 6.0, 10.0, 10, (2.0, 10.0), 3, 10.0, few=1)
"""Three runs, since every one of them holds six clones by the baseline, several seconds each."""

FULL_ON_CPU = Plan(1, 2.0, 0.6, 2, (10.0,), 1, 10.0, exported=False, layers=2, batch=4)
"""The real networks, but two layers of the language model, short sounds, two Euler steps and one run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``python -m stepaudio bench``."""
    parser.add_argument(
        "--size", choices=("tiny", "mini"), default="mini", help="random weights (default: mini's size)"
    )
    parser.add_argument("--full-size", action="store_true", help="random weights of the real size; reduced on a CPU")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works; not for figures")
    parser.add_argument("--runs", type=int, help="runs of each kind, interleaved (default: 5)")
    parser.add_argument("--reference-seconds", type=float, help="length of the reference (default: 6)")
    parser.add_argument("--sound-seconds", type=float, help="length of the sound that is made (default: 4)")
    parser.add_argument("--lengths", type=float, nargs="+", help="seconds of sound for the encoder (default: 1 to 30)")
    parser.add_argument("--layers", type=int, help="layers of the language model at full size (default: 32; CPU: 2)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of the parts {', '.join(PARTS)}")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="take the parts that this FILE.parts.json has")
    parser.add_argument("--write", action="store_true", help="renew benchmarks/, docs/ and README.md in this folder")
    parser.add_argument("--to", type=Path, metavar="DIR", help="write JSON, Markdown and picture to DIR")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Measure, write the Markdown report to standard output (and files where asked for), and return 0."""
    from stepaudio.bench import documents
    from stepaudio.bench.answer import answer

    root = Path.cwd()
    if args.write:
        documents.check(root)
    if (args.only or args.resume) and not args.to:
        raise InvalidInput("Parts of a measurement need --to: they are written there.")
    results = measure(args, settings)
    if results is None:
        return 0
    sys.stdout.write(answer(results, "en"))
    name = results["conditions"]["name"]
    if args.to:
        documents.write_results(results, args.to, name)
    if args.write:
        documents.write_results(results, root / documents.BENCHMARKS, name)
        documents.renew(root)
    return 0


def measure(args: argparse.Namespace, settings: Settings) -> dict[str, Any] | None:
    """Return all results, ready for JSON; None where parts are still missing.

    With ``--to`` the parts so far are in NAME.parts.json there after each of them, so that none is lost.
    """
    import torch

    from stepaudio import device
    from stepaudio.bench.workbench import Case, Workbench

    runtime = device.choose(settings.device, settings.dtype, tf32=settings.tf32, threads=settings.threads or None)
    plan = plan_of(args, on_gpu=runtime.on_gpu)
    before = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    device.apply(runtime)
    try:
        with tempfile.TemporaryDirectory(prefix="stepaudio-bench-") as name:
            folder = Path(name)
            _tell("Preparing the weights.")
            weights = _weights(args, plan, settings, folder)
            ours = settings.model_copy(
                update={"weights": str(weights.path), "cache_dir": folder / "cache", "data_dir": folder / "data"}
            )
            with Workbench(weights, ours, runtime, folder) as bench:
                plan = replace(plan, flow_steps=plan.flow_steps or bench.ours.flow_steps)
                case = Case(plan.reference_seconds, plan.sound_seconds, plan.flow_steps)
                conditions = _conditions(args, plan, bench, runtime)
                record = _Record.begin(args, conditions)
                for name, (words, part) in _parts(bench, case, plan, runtime).items():
                    if name not in record.parts and name in (args.only or PARTS):
                        _tell(words)
                        record.add(name, part)
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]
    if set(record.parts) != set(PARTS):
        return None
    conditions = {**record.conditions, "load_after": load_average(), "earlier": record.earlier}
    return {"conditions": conditions, **assembled(record.parts, small=plan.small, on_gpu=runtime.on_gpu)}


def plan_of(args: argparse.Namespace, *, on_gpu: bool) -> Plan:
    """Return what the flags ask for. Raises InvalidInput for what cannot be measured."""
    plan = QUICK if args.quick else USUAL
    if args.full_size:
        plan = FULL_ON_GPU if on_gpu else FULL_ON_CPU
    wanted: dict[str, Any] = {"runs": args.runs, "layers": args.layers}
    wanted |= {"scaling": tuple(args.lengths) if args.lengths else None}
    wanted |= {"reference_seconds": args.reference_seconds, "sound_seconds": args.sound_seconds}
    plan = Plan(**{**asdict(plan), **{name: value for name, value in wanted.items() if value is not None}})
    if plan.runs < 1 or not 1 <= plan.layers <= 32:
        raise InvalidInput("The bench needs at least 1 run, and 1 to 32 layers.")
    if not all(0.5 <= seconds <= 30 for seconds in plan.scaling):
        raise InvalidInput("The bench encodes sounds of 0.5 to 30 s.")
    if not 0.5 <= plan.reference_seconds <= 30 or not 0.6 <= plan.sound_seconds <= 30:
        raise InvalidInput("The bench needs a reference of 0.5 to 30 s and a sound of 0.6 to 30 s.")
    return plan


@dataclass
class _Record:
    """The parts that have been measured, by name. earlier: the conditions of those that an earlier run measured."""

    conditions: dict[str, Any]
    earlier: list[dict[str, Any]]
    parts: dict[str, Any]
    path: Path | None

    @classmethod
    def begin(cls, args: argparse.Namespace, conditions: dict[str, Any]) -> _Record:
        """Return the record of a run, with the parts that it resumes from. Raises InvalidInput for another case's."""
        path = args.to / f"{conditions['name']}.parts.json" if args.to else None
        conditions = json.loads(json.dumps(conditions))  # as a file has them
        if not args.resume:
            return cls(conditions, [], {}, path)
        before = json.loads(args.resume.read_text(encoding="utf-8"))
        for name in ("name", "device", "commit", "plan", "weights", "dtype"):
            if before["conditions"][name] != conditions[name]:
                raise InvalidInput(f"The {name} of {args.resume} is another than that of this measurement.")
        return cls(conditions, [*before["earlier"], before["conditions"]], before["parts"], path)

    def add(self, name: str, part: Callable[[], Any]) -> None:
        """Measure a part and write what there is."""
        begun = time.perf_counter()
        self.parts[name] = part()
        sys.stderr.write(f"  {name}: {time.perf_counter() - begun:.0f} s\n")
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fields = {"conditions": self.conditions, "earlier": self.earlier, "parts": self.parts}
            self.path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _parts(bench: Workbench, case: Case, plan: Plan, runtime: Runtime) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Return for each of PARTS what to tell while it is measured, and what measures it."""
    from stepaudio.bench import ceiling, clones, encoders, live, scenarios, variants

    few = min(plan.runs, plan.few)
    told: dict[str, tuple[str, Callable[[], Any]]] = {
        "clones": (
            "Whole clones, baseline and product in turn.",
            lambda: clones.measure_clones(bench, case, plan.runs),
        ),
        "switches": ("Each switch by itself.", lambda: clones.measure_switches(bench, case, plan.runs)),
        "decoding": ("Decoding.", lambda: ceiling.measure_decoding(bench, case, few, plan.batch)),
        "variants": ("Variants of the language model.", lambda: variants.measure_variants(bench, case, few)),
        "batch": ("Batches.", lambda: scenarios.measure_batch(bench, case, few, plan.batch)),
        "voices": ("Voices that come back.", lambda: scenarios.voices_that_come_back(bench, case, few)),
        "stream": ("Streams.", lambda: live.measure_stream(bench, case, plan.runs)),
        "concurrency": ("The queue.", lambda: live.measure_concurrency(bench, case, few)),
        "hit": ("A hit.", lambda: live.measure_hit(bench, 10.0, max(plan.runs, 5))),
        "scaling": (
            "The encoder by length, on the CPU.",
            lambda: encoders.measure_scaling(plan.scaling, plan.scaling_runs, small=plan.small),
        ),
        "engines": (
            "The encoder's engines.",
            lambda: encoders.measure_engines(
                plan.engine_seconds, plan.scaling_runs, runtime, small=plan.small, exported=plan.exported
            ),
        ),
    }
    return {name: told[name] for name in PARTS}


def _weights(args: argparse.Namespace, plan: Plan, settings: Settings, folder: Path) -> WeightsFolder:
    """Return the weights that the settings name, or a new folder of random ones."""
    import torch

    from stepaudio.bench import folders
    from stepaudio.weights import choose_weights

    if settings.weights and not args.full_size:
        return choose_weights(settings)
    size = {"tiny": folders.TINY, "mini": folders.MINI}[args.size]
    if args.full_size:
        size = folders.real_size(plan.layers, torch.bfloat16)
    path = folders.write_folder(folder / "weights", size)
    return choose_weights(settings.model_copy(update={"weights": str(path)}))


def _conditions(args: argparse.Namespace, plan: Plan, bench: Workbench, runtime: Runtime) -> dict[str, Any]:
    """Return what the numbers depend on."""
    import onnxruntime
    import torch
    import transformers

    from stepaudio.cores import core_count

    size = bench.model.model.size
    parameters = sum(parameter.numel() for parameter in bench.model.parameters())
    return {
        "name": "full-size" if args.full_size else "quick" if args.quick else "suite",
        "command": command_of(args),
        "commit": commit(),
        "uncommitted_changes": has_uncommitted_changes(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": core_count(),
        "threads": runtime.threads,
        "system": f"{platform.system()} {platform.machine()}",
        "device": runtime.reason,
        "on_gpu": runtime.on_gpu,
        "load_before": load_average(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "transformers": transformers.__version__,
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "tf32": runtime.tf32,
        "weights": bench.weights.card.title,
        "language_model": {
            "parameters": parameters,
            "width": size.hidden,
            "layers": size.layers,
            "heads": size.heads,
            "groups": size.groups,
        },
        "engine": bench.settings.linguistic_engine,
        "plan": asdict(plan),
    }


def command_of(args: argparse.Namespace) -> str:
    """Return the command line that measures the same again."""
    words = ["python -m stepaudio bench"]
    for name, value in vars(args).items():
        if name in ("command", "bench", "run", "to", "write", "only", "resume") or value in (None, False):
            continue
        if name == "size" and (args.full_size or getattr(args, "setting_weights", None)):
            continue
        flag = "--" + name.removeprefix("setting_").replace("_", "-")
        told = " ".join(map(str, value)) if isinstance(value, list) else value
        words.append(flag if value is True else f"{flag} {told}")
    return " ".join(words)


def _tell(what: str) -> None:
    sys.stderr.write(f"{what}\n")

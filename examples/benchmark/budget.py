"""What tstitch_sample --budget predicts beside what it takes, over budgets, batches and backends.

    python budget.py TSTITCH_SAMPLE --budget 20ms 40ms 100img/s --batch 1 32 -- --device cuda --model S.pt --model XL.pt

What is behind -- goes to tstitch_sample as it is. Each setting draws --batches batches; the time of one is the median of
theirs, from noise to x_0. The first setting times the networks, which the others find in a file of times of their own.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    own, others = words[:end], words[end + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", type=Path, metavar="TSTITCH_SAMPLE")
    parser.add_argument("--budget", nargs="+", required=True, metavar="COST")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument("--batches", type=int, default=5, help="drawn for each setting (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, too")
    args = parser.parse_args(own)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        print(f"{'backend':<20} {'batch':>5} {'budget':>10} {'predicted':>10} {'measured':>10} {'error':>7} {'of budget':>9}")
        for backend, batch, budget in itertools.product(args.backend, args.batch, args.budget):
            command = [args.tool, "--budget", budget, "--batch", batch, "--class", 3, "--count", batch * args.batches,
                       "--backend", backend, "--times", Path(folder) / "times.txt", "--report", report,
                       "--latents", Path(folder) / "x.npy", *others]  # fmt: skip
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            if done.returncode:
                reason = done.stderr.strip().splitlines()[-1:] or ["failed"]
                print(f"{backend:<20} {batch:>5} {budget:>10} {reason[0]}", flush=True)
                rows.append({"backend": backend, "batch": batch, "budget": budget, "refused": reason[0]})
                continue
            told = json.loads(report.read_text())
            predicted, measured = (1e3 * told["budget"][f"{which}_seconds"] for which in ("predicted", "measured"))
            # In the budget's own measure: what a batch may take, or the time behind a rate.
            most = None
            if budget.endswith("img/s"):
                most = 1e3 * batch / float(budget.removesuffix("img/s"))
            elif budget.endswith("s"):
                most = float(budget.removesuffix("ms")) if budget.endswith("ms") else 1e3 * float(budget.removesuffix("s"))
            of_budget = f"{measured / most:9.3f}" if most else " " * 9
            print(f"{backend:<20} {batch:>5} {budget:>10} {predicted:>7.2f} ms {measured:>7.2f} ms "
                  f"{100 * (measured / predicted - 1):>+6.1f}% {of_budget}", flush=True)  # fmt: skip
            kept = ("profile", "sampler_name", "steps", "ratio", "forecast", "forecast_guidance", "calls")
            rows.append({"backend": backend, "batch": batch, "budget": budget, "predicted_ms": predicted,
                         "measured_ms": measured, **{key: told[key] for key in kept if key in told}})  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

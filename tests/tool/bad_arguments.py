"""What the programs do with arguments that are wrong: bad_arguments.py FOLDER MODEL TSTITCH_SAMPLE TSTITCH_INSPECT
TSTITCH_BENCHMARK

Every one must be refused with exit code 2 and one short line, and nothing written. Then several options at once, right
and wrong ones at random, in plans: those are printed or refused, and nothing else.
"""

import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

folder, model, sample, inspect, benchmark = sys.argv[1:]
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(folder)
ONE = ["--model", model]
PAIR = [*ONE, *ONE]

# What is no number, or none that is finite and written in decimals.
NO_NUMBERS = ["nan", "inf", "-inf", "0x1p1", "1e999", " 1", "1 ", "1,,1", "1;1", "", "ten"]

# What is no shape of x.
NO_SHAPES = ["", "0", "3x0x8", "3x-1", "3x", "x8", "3X8", "3x8x8x", "3,8,8", "3x*", "+3x8", "3.0x8", "nan"]
NO_SHAPES += ["x".join("1" * 17), "65536x65537", "4294967296x4294967296x2", "99999999999999999999"]
NO_SHAPES_AGAIN = ["3x-1", "65536x65537"]  # for the programs that read them by the same code

# Two options of each kind: numbers, lists of numbers, counts, lists of counts.
NUMBERS = {
    sample: ["--ratio", "--eta", "--fractions", "--guidance", "--steps", "--seed", "--timesteps"],
    inspect: ["--tolerance", "--rows"],
    benchmark: ["--repeats", "--ratio"],
}

REFUSED = {
    sample: [
        *[["--sweep", text] for text in ("0:1:inf", "nan:1:0.1", "0:nan:0.1", "0x0:1:0.1", "0:1", "0:1:0", "0:1:0.5:1")],
        *[["--shape", text] for text in [*NO_SHAPES, "3x16x16", "3x2x32x32", "3x32", "4x32x32"]],
        *[["--guidance-interval", text] for text in ("0x0:0x1", "nan:1", "0:inf", "0", "0:1:2", ":")],
        *[["--spacing", text] for text in ("sections:", "sections:1,,1", "sections:nan", "shifted:nan", "shifted:", "9,,1")],
        *[["--routing", text] for text in ("timestep:", "timestep:nan", "timestep:600.5", "logsnr:inf", "logsnr", "dit:1")],
        *[["--batch", text, "--pad-batches"] for text in ("0", "-1", "1000000000", "4611686018427387904")],
        ["--sweep", "0.5:0.5000000000000001:1e-17"],
        ["--fractions", "0.5,,0.5", *PAIR],
        ["--guidance", "1,2,3", *PAIR],
        ["--seed", "18446744073709551615", "--count", "3"],
        ["--count", "9223372036854775807"],
        ["--steps", "2147483648"],
        ["--class", "cat", "--class", "\x1b[31mcat" * 1000],
        ["--grid", "x.jpg"],
        ["--latents", "x.png"],
        ["--report", "pictures/000000-cat-seed0.png", "--output", "pictures", "--class", "cat"],
        ["--model", "x" * 300 + "\n", "--ratio", "2" * 5000],
        ["--profile", "dit", "--eta", "1"],
        ["--profile", "dit", "--sigmas", "3,2,1"],
        ["--steps", "3", "--timesteps", "999,500,1"],
        *[["--save-run", "x.run", "--save-every", text] for text in ("0", "-1", "1.5", "1000001")],
        ["--save-every", "3"],
        ["--save-run", "x.run", "--resume", "x.run"],
        ["--save-run", "x.run", "--sweep", "0:1:0.5", *PAIR],
        ["--resume", "x.run", "--fastest-batch"],
        ["--save-run", "x.run", "--grid", "x.run"],
        ["--routing", "timestep:600,300", *PAIR],
        ["--routing", "logsnr:-2", "--ratio", "0.5"],
        ["--routing", "stitch\x07"],
        ["--guidance", "1.5", "3"],
        ["--backend", "native,,native"],
    ],
    inspect: [*[["--shape", text] for text in NO_SHAPES_AGAIN], ["--rows", "0"], ["--rows", "-1"], ["--rows", "1,,8"], ["--plot", "x.png"], ["--tolerance", "2"]],
    benchmark: [*[["--shape", text] for text in NO_SHAPES_AGAIN], ["--batch", "0"], ["--ratio", "1.5"], ["--ratio", "0,,1"], ["--plot", "x.png"], ["--steps", "0"], ["--dtype", ","]],
}

# Some of each are right.
OPTIONS = {
    "--ratio": ["0", "0.4", "1", "1.5", "nan"],
    "--fractions": ["0.5,0.5", "0.2,0.8", "1", "0.5,,0.5"],
    "--sweep": ["0:1:0.5", "0:1:inf", "1:0:0.1", "0.5:0.50002:0.00001"],
    "--routing": ["stitch", "dit", "interleaved", "large_first", "timestep:600", "logsnr:-2", "timestep:1,2", "random"],
    "--profile": ["recommended", "dit", "dit_ddim", "diffusers-lcm", "k-diffusion", "latent-diffusion", "none"],
    "--sampler": ["ddim", "dpm-solver++", "pndm", "heun", "lms", "euler_ancestral", "dpm-solver++-sde", "rk4"],
    "--order": ["1", "3", "9", "2147483647", "-1"],
    "--steps": ["1", "2", "25", "1000", "1001", "0", "-5"],
    "--spacing": ["karras", "beta", "quadratic", "sections:5,5", "sections:", "shifted:3", "999,500,1", "ddim"],
    "--timesteps": ["999,500,0", "500", "1,2,3", "999.5", "-1"],
    "--sigmas": ["100,10,1,0.1,0", "0", "1,2", "0.5"],
    "--eta": ["0", "1", "2", "-1"],
    "--class": ["cat", "CAT", "7", "10", "all", "unicorn", "-1"],
    "--count": ["1", "10000000", "0", "9223372036854775807"],
    "--guidance": ["0", "1", "1.5,3", "1,2,3", "-2", "1e308"],
    "--guidance-interval": ["0:1", "0.2:0.8", "1:0", "0:2"],
    "--seed": ["0", "18446744073709551615", "-1"],
    "--variations": ["1", "10000", "0"],
    "--variation-strength": ["0", "1", "2"],
    "--interpolate": ["1", "10000", "0"],
    "--preview": ["none", "auto", "gif"],
    "--batch": ["1", "16", "65537", "0"],
    "--scale": ["1", "64", "65"],
    "--tile": ["64", "16"],
    "--backend": ["auto", "native,native_e4m3", "native,", "magic"],
    "--dtype": ["auto", "bfloat16", "int8"],
    "--device": ["cpu", "cuda:99", "cuda:-1", "tpu"],
    "--grid": ["x.png", "x.jpg"],
    "--pad-batches": [],
    "--fastest-batch": [],
    "--quiet": [],
}


def run(command: list[str]) -> tuple[list[str], int, list[str], list[str]]:
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=600)
    return command, done.returncode, done.stdout.decode().splitlines(), done.stderr.decode().split("\n")[:-1]


def refused(program: str, error: list[str]) -> bool:
    name = Path(program).name
    return len(error) == 1 and error[0].startswith(name + ": ") and error[0].isprintable() and len(error[0]) <= 450


commands = [[program, *case] for program, cases in REFUSED.items() for case in cases]
options = [(program, option) for program in NUMBERS for option in NUMBERS[program]]
for i, (program, option) in enumerate(options):
    for value in [NO_NUMBERS[i % len(NO_NUMBERS)], NO_NUMBERS[(i + 5) % len(NO_NUMBERS)]]:
        commands.append([program, f"{option}={value}" if value else option, *([] if value else [""])])
failures = []
with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
    for command, code, output, error in pool.map(run, commands):
        if code != 2 or output or not refused(command[0], error):
            failures.append((command, code, output, error))

    chance = random.Random(1)
    plans = []
    for _ in range(60):
        plan = [sample, "--plan", *chance.choice([[], PAIR, ONE])]
        for option in chance.sample(sorted(OPTIONS), chance.randint(2, 4)):
            plan += [option, *([chance.choice(OPTIONS[option])] if OPTIONS[option] else [])]
        plans.append(plan)
    codes = []
    for command, code, output, error in pool.map(run, plans):
        codes.append(code)
        noted = all(line.startswith("tstitch_sample: note: ") and len(line) <= 300 for line in error)
        if not (code == 0 and output and noted) and not (code == 2 and not output and refused(sample, error)):
            failures.append((command, code, output, error))

for command, code, output, error in failures:
    print(f"{str(command[1:])[:300]}: exit code {code}, {len(output)} lines printed, {len(error)} of errors: {error}")
left = os.listdir(folder)
print(f"{len(commands)} refused, {codes.count(0)} plans, {codes.count(2)} refused plans, left {left}")
sys.exit(bool(failures or left or codes.count(0) < 5 or codes.count(2) < 5))

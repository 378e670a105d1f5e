"""Where torch is and how it was built, as CMake reads it: "name=value" lines. Does not import torch, which takes seconds.

CMake runs this by the environment's own Python with -I, because pip builds in a place that hides the environment's packages.
"""

import importlib.util
import re
import runpy
import sys
import sysconfig
from pathlib import Path

found = importlib.util.find_spec("torch")
if found is None or found.origin is None:
    sys.exit(f"there is no torch for {sys.executable}")
torch = Path(found.origin).parent
version = runpy.run_path(str(torch / "version.py"))
cuda = (torch / "lib" / "libtorch_cuda.so").exists() and version.get("cuda")

# pip's nvidia packages lie beside torch, one folder for all since CUDA 13 (nvidia/cu13), one each before; else a toolkit.
include = []
if cuda:
    wanted = ("cuda_runtime_api.h", "cublasLt.h", "nvrtc.h", "cusparse.h", "cusolverDn.h", "crt/host_config.h")
    # The packages may lie in another folder of the search path than torch, as under --target.
    roots = [torch.parent, *(Path(folder) for folder in sys.path if folder)]
    folders = [
        f for root in roots for f in [root / f"nvidia/cu{cuda.split('.')[0]}/include", *root.glob("nvidia/*/include")]
    ]
    folders += [Path(f"/usr/local/cuda-{cuda}/include"), Path("/usr/local/cuda/include")]
    # What cuda_runtime.h includes is in a package of its own (nvidia-cuda-crt), on which torch does not depend; Triton, on
    # which it does, has a copy.
    folders += [root / "triton/backends/nvidia/include" for root in roots]
    for header in wanted:
        has_it = next((folder for folder in folders if (folder / header).exists()), None)
        if has_it is None:
            include = []
            print(f"missing={header}")
            break
        if has_it not in include:
            include.append(has_it)
    if include:
        text = next(path for f in include if (path := f / "cuda_runtime_api.h").exists()).read_text(errors="replace")
        number = int(re.search(r"define\s+CUDART_VERSION\s+(\d+)", text)[1])
        if str(number // 1000) != cuda.split(".")[0]:
            print(f"missing=headers of CUDA {cuda} (there are those of {number // 1000}.{number % 1000 // 10})")
            include = []

print(f"root={torch}")
print(f"version={version['__version__']}")
print(f"cuda={cuda or ''}")
print(f"cuda_include={';'.join(map(str, include))}")
print(f"python_include={sysconfig.get_path('include')}")

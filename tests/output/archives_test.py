"""What NpzWriter and TarWriter write, read by others: archives_test.py ARCHIVES FOLDER

By Python's zipfile and tarfile, as guided-diffusion's evaluator and WebDataset read them, and by numpy where it is there.
"""

import importlib.util
import io
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

program, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
subprocess.run([program, folder], check=True)
PIXELS = bytes(i * 7 % 256 for i in range(7 * 5 * 4 * 3))
LABELS = [i**3 * 12345 for i in range(1000)]


def array(file: bytes) -> tuple[str, bytes]:
    """The header and the numbers of a .npy file, version 1.0."""
    assert file[:8] == b"\x93NUMPY\x01\x00", file[:8]
    (length,) = struct.unpack("<H", file[8:10])
    return file[10 : 10 + length].decode(), file[10 + length :]


for name in ("plain", "zip64", "between"):
    with zipfile.ZipFile(folder / f"{name}.npz") as npz:
        assert npz.testzip() is None
        assert npz.namelist() == ["arr_0.npy", "empty.npy", "one.npy", "arr_1.npy"], npz.namelist()
        assert all(info.compress_type == zipfile.ZIP_STORED for info in npz.infolist())
        header, numbers = array(npz.read("arr_0.npy"))
        assert "'|u1'" in header and "(7, 5, 4, 3, )" in header, header
        assert numbers == PIXELS
        header, numbers = array(npz.read("arr_1.npy"))
        assert list(struct.unpack("<1000q", numbers)) == LABELS
        extras = [len(info.extra) for info in npz.infolist()]
        assert (max(extras) > 0) == (name != "plain"), extras
    if importlib.util.find_spec("numpy"):
        import numpy

        with numpy.load(folder / f"{name}.npz") as npz:
            assert npz["arr_0"].dtype == numpy.uint8 and npz["arr_0"].shape == (7, 5, 4, 3)
            assert npz["arr_0"].tobytes() == PIXELS
            assert npz["empty"].shape == (0, 3) and npz["one"] == 1.5
            assert npz["arr_1"].dtype == numpy.int64 and npz["arr_1"].tolist() == LABELS

with tarfile.open(folder / "some.tar", "r:") as tar:
    names = [f"folder/{i}.{kind}" for i in range(20) for kind in ("png", "cls")] + ["n" * 100]
    assert tar.getnames() == names, tar.getnames()
    for member in tar:
        assert (member.mode, member.uid, member.gid, member.mtime, member.isreg()) == (0o644, 0, 0, 0, True)
        file = tar.extractfile(member).read()
        if member.name == "n" * 100:
            assert file == b"x" * 512
        elif member.name.endswith(".cls"):
            assert file == member.name[7:-4].encode()
        else:
            assert file == PIXELS[: int(member.name[7:-4]) * 26]
# The same files as those that Python writes: what is not ustar would differ.
written = io.BytesIO()
with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as tar, tarfile.open(folder / "some.tar") as ours:
    for member in ours:
        info = tarfile.TarInfo(member.name)
        info.size = member.size
        tar.addfile(info, ours.extractfile(member))
if written.getvalue() != (folder / "some.tar").read_bytes():
    sys.exit("some.tar: must be what Python's tarfile writes, byte for byte")
print("archives: as others read them")

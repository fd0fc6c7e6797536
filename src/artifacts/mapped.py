"""The .npz files of arrays, some of which are too large for memory.

Of iNaturalist 2018 the logits of one head are 14 GB. Arrays from LARGE bytes on are mapped: they
look like any other, the system reads what is looked at, and takes the room back when something else
needs it. For that they begin at multiples of ALIGN bytes in the file, and are not compressed.
"""

import io
import math
import struct
import zipfile

import numpy as np

LARGE = 2**28  # bytes
ALIGN = 64
BLOCK = 2**20
PADDING = 0xD935  # the kind of extra field that is there to align: Android's zipalign has it
ZIP64 = 20  # bytes of the extra field of sizes beyond 4 GiB, which zipfile adds


def write_npz(file: io.BufferedIOBase, arrays: dict[str, np.ndarray]) -> None:
    """The same bytes for the same arrays; any .npz reader takes them. Errors: ValueError for an
    array of objects."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            before = file.tell() + 30 + len(info.filename.encode()) + ZIP64
            gap = -(before + 4) % ALIGN
            info.extra = struct.pack("<HH", PADDING, gap) + bytes(gap)
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def read_npz(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """All arrays, the checksum of each compared. Mapped ones can be changed, in memory alone."""
    return {info.filename.removesuffix(".npy"): _read(archive, info) for info in archive.infolist()}


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if (found := _mapped(archive, info)) is not None:
        return found
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # to the end of the data, where the checksum is compared
            raise ValueError(f"{info.filename} has more data than its header says")
    return array


def _mapped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray | None:
    """None: it is small, or lies in the file in a way that cannot be mapped, as older ones do."""
    if info.file_size < LARGE or info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return None
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran, dtype = read_header(file)
        offset = file.tell()
        size = math.prod(shape) * dtype.itemsize
        if fortran or dtype.hasobject or not size or offset + size != info.file_size:
            return None
        while file.read(BLOCK):  # to the end, where the checksum is compared
            pass
    file = archive.fp  # and not one opened by name, which may be another by now
    file.seek(info.header_offset)
    name, extra = struct.unpack("<HH", file.read(30)[26:])
    offset += info.header_offset + 30 + name + extra
    if offset % dtype.alignment:
        return None
    try:
        return np.asarray(np.memmap(file, dtype, "c", offset, shape))
    except OSError:  # a file system without maps, or no address space left
        return None

"""Where the files of the data sets lie, and where they come from: search, mirrors, checksums."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from urllib.parse import urlsplit

from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.files import is_file, is_folder, is_there, path_of, writable

TILES_ZIP = "Kather_texture_2016_image_tiles_5000.zip"
TILES_CACHE = "ch-mnist-64.npz"
HAR_ZIP = "human+activity+recognition+using+smartphones.zip"
HAR_INNER = "UCI HAR Dataset.zip"  # in it
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
_CHUNK = 2**16
_REASONS = {
    "ConnectTimeout": "timed out",
    "ReadTimeout": "timed out",
    "ChunkedEncodingError": "connection broke off",
}


@dataclass(frozen=True)
class Source:
    """Files of one data set: the names they may have, and where they can be downloaded."""

    folder: str  # below a data directory; downloads go there
    files: tuple[tuple[str, ...], ...]  # that are needed, by all their names, the mirrors' last
    registry: Mapping[str, str] = field(default_factory=dict)  # "md5:..." or "sha256:..." by name
    mirrors: tuple[str, ...] = ()  # folders to try in this order; none where one must log in
    elsewhere: tuple[str | Path, ...] = ()  # further folders: absolute, or below a data directory
    by_hand: str = ""  # what to put there without a network; by default the missing files


IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Kaggle writes a dot for the first dash. What a file holds decides whether it is compressed.
_IDX_NAMES = tuple((name, dot := name.replace("-idx", ".idx"), f"{dot}.gz", f"{name}.gz")
                   for name in IDX_FILES)  # fmt: skip
# Checksums are of what is left when gzip's compression is undone, the same whoever compressed a
# file: one table for what is downloaded and what users put there. pooch's is of the bytes sent.
_MNIST, _FASHION_MNIST = (
    {f"{name}.gz": f"md5:{checksum}" for name, checksum in zip(IDX_FILES, checksums)}
    for checksums in (
        ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
         "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
        ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
         "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
    )
)  # fmt: skip
_TILES = {TILES_ZIP: "sha256:936d0b95ae0f04f1f7b18a2b7e8c55776c3e887d102f645bcee752d1a6626a32"}
SOURCES: dict[str, Source] = {
    "mnist": Source(
        "mnist", _IDX_NAMES, _MNIST,
        ("https://ossci-datasets.s3.amazonaws.com/mnist/",
         "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        ("MNIST/raw",),  # torchvision's
    ),
    "fashion-mnist": Source(
        "fashion-mnist", _IDX_NAMES, _FASHION_MNIST,
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
         "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"),
        ("FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),  # torchvision's, Debian's
    ),
    "ch-mnist": Source(
        "ch-mnist", (("hmnist_64_64_L.csv", "hmnist_64_64_L.csv.gz", TILES_CACHE, TILES_ZIP),),
        _TILES,
        ("https://zenodo.org/records/53169/files/", "https://zenodo.org/record/53169/files/"),
        by_hand=f"Kaggle's hmnist_64_64_L.csv or Zenodo's {TILES_ZIP}",
    ),
    "ch-mnist-8": Source(
        "ch-mnist", (("hmnist_8_8_L.csv", "hmnist_8_8_L.csv.gz"),),
        by_hand="Kaggle's hmnist_8_8_L.csv (data set kmader/colorectal-histology-mnist)",
    ),
    "har": Source(
        "har", (("UCI HAR Dataset/train/X_train.txt", HAR_INNER, HAR_ZIP),),
        {HAR_ZIP: "sha256:c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031"},
        ("https://archive.ics.uci.edu/static/public/240/",),
        by_hand=f"UCI's {HAR_ZIP}, or the folder 'UCI HAR Dataset' that is in it,",
    ),
}  # fmt: skip
SOURCES["mnist-6000"] = SOURCES["mnist"]


def search_path(data_dir: str | Path | None = None) -> tuple[Path, ...]:
    """Directories that data sets are looked for in, first choice first.

    `data_dir`, $FLTRUST_DATA, `data/` in the current directory and of the checkout. Raises
    `BadInput` where the user named a directory that does not exist or cannot be read.
    """
    named = {"--data-dir": data_dir, "$FLTRUST_DATA": os.environ.get("FLTRUST_DATA")}
    chosen = [_checked(label, path) for label, path in named.items() if path]
    checkout = Path(__file__).resolve().parents[1]
    usual = _here()
    if is_file(checkout / "setup.py"):  # else the package is installed among others' files
        usual.append(checkout / "data")
    return tuple(dict.fromkeys([*chosen, *filter(is_folder, usual)]))


def _here() -> list[Path]:
    """`data/` in the current directory; nothing where that is gone, or `data` a loop of links."""
    with contextlib.suppress(OSError, RuntimeError):
        return [Path("data").resolve()]
    return []


def _checked(label: str, path: str | Path) -> Path:
    try:
        directory = path_of(path).resolve()
    except BadInput as error:
        raise BadInput(f"{label}: {error}") from error
    if not directory.is_dir():
        raise BadInput(f"{label} {str(path)!r} is not a directory; create it or name another.")
    if not os.access(directory, os.R_OK | os.X_OK):
        remedy = "change its permissions or name another directory"
        raise BadInput(f"{label} {str(path)!r} cannot be read by this user; {remedy}.")
    return directory


def locate(name: str, directories: Sequence[Path]) -> tuple[Path, ...] | None:
    """Files of a data set from the first folder with all; `BadInput` for one that is not read.

    That is one of the first directory that has one; folders with a place of their own come last.
    """
    source = SOURCES[name]
    layouts = (Path(source.folder), *map(Path, source.elsewhere))
    below = [directory / layout for directory in directories or [Path("data")] for layout in layouts
             if not layout.is_absolute()]  # fmt: skip
    for folder in (*below, *filter(Path.is_absolute, layouts)):
        files = _found(folder, source)
        if all(files):
            return tuple(filter(None, files))
    return None


def _found(folder: Path, source: Source) -> list[Path | None]:
    try:
        return [next((path for name in names if (path := folder / name).is_file()), None)
                for names in source.files]  # fmt: skip
    except OSError as error:
        raise BadInput(
            f"{str(folder)!r} cannot be read ({error.strerror}); change its permissions or name "
            "another directory with --data-dir."
        ) from error


def by_hand(name: str, directories: Sequence[Path]) -> str:
    """Say what a user without a network can do, as the end of a sentence."""
    source = SOURCES[name]
    folder = [*directories, *_here(), Path("data")][0] / source.folder
    missing = [names[-1] for names, path in zip(source.files, _found(folder, source)) if not path]
    files = source.by_hand or f"{', '.join(missing)} (unpacked will do)"
    return f"put {files} into {str(folder)!r}, or name another directory with --data-dir"


def remedy_of(name: str) -> str:
    """Say what to do about a wrong file of a data set, as the end of a sentence."""
    if SOURCES[name].mirrors:
        return f"delete it and run `python -m fltrust_repro data fetch {name}`"
    return f"replace it by {SOURCES[name].by_hand}"


def writable_folder(name: str, directories: Sequence[Path], problem: str) -> Path:
    """Folder `name` in the first directory (then `data/`) that can be written; or `problem`."""
    candidates = tuple(dict.fromkeys([*directories, *_here()]))
    for directory in candidates:
        folder = directory / name
        if is_there(directory) and not writable(directory):
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if writable(folder):
                return folder
    tried = ", ".join(repr(str(path)) for path in candidates)
    remedy = "name a directory that can with --data-dir"
    raise DataUnavailable(f"{problem} because none of {tried} can be written; {remedy}.")


def obtain(name: str, directories: Sequence[Path]) -> tuple[Path, ...]:
    """Files of a data set, as `locate` returns them, downloaded where they are not at hand.

    Raises `DataUnavailable` where they are not to be had; it says what to put where.
    """
    source = SOURCES[name]
    if found := locate(name, directories):
        return found
    if not source.mirrors:
        raise DataUnavailable(f"{name} needs a login to download; {by_hand(name, directories)}.")
    folder = writable_folder(source.folder, directories, f"{name} cannot be downloaded")
    for names, path in zip(source.files, _found(folder, source)):
        if path is None:
            _download(name, names[-1], folder)
    return tuple(filter(None, _found(folder, source)))


def _download(name: str, file: str, folder: Path) -> None:
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")  # the progress bar says as much
    failures = []
    for mirror in SOURCES[name].mirrors:
        host, checksum = urlsplit(mirror).netloc, SOURCES[name].registry[file]
        fetch = partial(_fetch, told=f"{file} from {host}", checksum=checksum)
        try:
            # Under a temporary name until `_fetch` ends: never a half-written or a wrong file.
            path = pooch.retrieve(mirror + file, None, file, folder, downloader=fetch)
            Path(path).chmod(0o644)  # pooch's temporary file is the owner's alone
            return
        except ValueError as error:
            failures.append(f"{host}: {error}")
        except RequestException as error:
            kind = type(error).__name__
            failures.append(f"{host}: {_REASONS.get(kind, f'no connection, {kind}')}")
        except OSError as error:
            raise DataUnavailable(
                f"{file} of {name} cannot be written to {str(folder)!r} ({error.strerror}); "
                "make room or name another directory with --data-dir."
            ) from error
    raise DataUnavailable(
        f"{file} of {name} cannot be downloaded ({'; '.join(failures)}); check the network, or "
        f"{by_hand(name, [folder.parent])}."
    )


def _fetch(url: str, target: str, _pooch: object, *, told: str, checksum: str) -> None:
    import requests
    from rich.console import Console
    from rich.progress import track

    with requests.get(url, timeout=TIMEOUT, stream=True) as answer, Path(target).open("wb") as file:
        if not answer.ok:
            raise ValueError(f"HTTP status {answer.status_code}")
        size, console = int(answer.headers.get("Content-Length", 0)), Console(stderr=True)
        for chunk in track(answer.iter_content(_CHUNK), told, size // _CHUNK + 1, console=console):
            file.write(chunk)
    try:
        with opened(Path(target)) as content:
            check(iter(partial(content.read, _CHUNK), b""), checksum)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError("has a wrong checksum, and is no whole compressed file") from error


def opened(path: Path) -> BufferedIOBase:
    """Open a file to read its content, uncompressed where it is gzip's, whatever its name says."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")


def check(chunks: Iterable[bytes], checksum: str) -> None:
    """Raise `ValueError` where content has another checksum, "md5:..." or the like."""
    kind, expected = checksum.split(":")
    digest = hashlib.new(kind)
    for chunk in chunks:
        digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ValueError(f"has a wrong checksum ({kind} {digest.hexdigest()}, not {expected})")

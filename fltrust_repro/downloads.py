"""Where the files of the data sets lie, and where they come from: search, mirrors, checksums."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.files import path_of

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TILES_ZIP = "Kather_texture_2016_image_tiles_5000.zip"
TILES_CACHE = "ch-mnist-64.npz"
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte


@dataclass(frozen=True)
class Source:
    """Files of one data set: the names they may have, and where they can be downloaded.

    Attributes
    ----------
    folder : str
        Name of their folder below a data directory.
    files : tuple of tuples of str
        Each file that is needed, by the names it is accepted under, preferred name first.
    mirrors : tuple of str
        Addresses of folders that hold the downloads; tried in this order. Empty when the
        files cannot be had without a login.
    downloads : dict of str to str
        Name of each file on the mirrors, and its checksum ("md5:..." or "sha256:...").
    by_hand : str
        What to put into the folder where a download is impossible.
    elsewhere : tuple of Path
        Further folders to look into, such as one that a system package fills.
    """

    folder: str
    files: tuple[tuple[str, ...], ...]
    by_hand: str
    mirrors: tuple[str, ...] = ()
    downloads: dict[str, str] = field(default_factory=dict)
    elsewhere: tuple[Path, ...] = ()


def _idx_source(
    folder: str, mirrors: tuple[str, ...], md5: tuple[str, ...], elsewhere: tuple[Path, ...] = ()
) -> Source:
    return Source(
        folder=folder,
        files=tuple((f"{name}.gz", name) for name in IDX_FILES),
        by_hand="the four *-ubyte.gz files",
        mirrors=mirrors,
        downloads={f"{name}.gz": f"md5:{digest}" for name, digest in zip(IDX_FILES, md5)},
        elsewhere=elsewhere,
    )


SOURCES: dict[str, Source] = {
    "mnist": _idx_source(
        "mnist",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": _idx_source(
        "fashion-mnist",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        (Path("/usr/share/datasets/fashion-mnist"),),
    ),
    "ch-mnist": Source(
        folder="ch-mnist",
        files=(("hmnist_64_64_L.csv", "hmnist_64_64_L.csv.gz", TILES_CACHE, TILES_ZIP),),
        by_hand=f"Kaggle's hmnist_64_64_L.csv or Zenodo's {TILES_ZIP}",
        mirrors=(
            "https://zenodo.org/records/53169/files/",
            "https://zenodo.org/record/53169/files/",
        ),
        downloads={
            TILES_ZIP: "sha256:936d0b95ae0f04f1f7b18a2b7e8c55776c3e887d102f645bcee752d1a6626a32"
        },
    ),
    "ch-mnist-8": Source(
        folder="ch-mnist",
        files=(("hmnist_8_8_L.csv", "hmnist_8_8_L.csv.gz"),),
        by_hand="Kaggle's hmnist_8_8_L.csv (data set kmader/colorectal-histology-mnist)",
    ),
}

SOURCES["mnist-6000"] = SOURCES["mnist"]

CONTENT_MD5: dict[str, dict[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
"""md5 of the uncompressed files: the same whoever compressed them, and with what."""

CH_8_MD5 = "45a65d5f4cfd435b9b0cb7ebc9d4bdf2"  # of labels and pixels in `readers.in_fixed_order`
KAGGLE_64_BLOB = "b0059fe409bd5e9340de51d2643c37bdaed94799"  # git blob id of hmnist_64_64_L.csv


def search_path(data_dir: str | Path | None = None) -> tuple[Path, ...]:
    """Directories that data sets are looked for in, first choice first.

    `data_dir`, the environment variable FLTRUST_DATA, `data/` in the current directory, and
    `data/` of the checkout this package runs from.

    Raises
    ------
    BadInput
        The user named a directory that does not exist or cannot be read.
    """
    named = {"--data-dir": data_dir, "$FLTRUST_DATA": os.environ.get("FLTRUST_DATA")}
    chosen = [_checked_directory(label, path) for label, path in named.items() if path]
    checkout = Path(__file__).resolve().parents[1]
    usual = [Path("data").resolve()]
    if (checkout / "setup.py").is_file():  # else the package is installed among others' files
        usual.append(checkout / "data")
    return tuple(dict.fromkeys([*chosen, *(path for path in usual if path.is_dir())]))


def _checked_directory(label: str, path: str | Path) -> Path:
    try:
        directory = path_of(path).resolve()
    except BadInput as error:
        raise BadInput(f"{label}: {error}") from error
    if not directory.is_dir():
        raise BadInput(f"{label} {str(path)!r} is not a directory; create it or name another.")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise BadInput(
            f"{label} {str(path)!r} cannot be read by this user; change its permissions or name "
            "another directory."
        )
    return directory


def locate(name: str, directories: Sequence[Path]) -> tuple[Path, ...] | None:
    """Files of a data set, in the order of `Source.files`, from the first folder with all of them.

    None when no folder has them all; `BadInput` when a folder cannot be read.
    """
    source = SOURCES[name]
    for folder in (*(path / source.folder for path in directories), *source.elsewhere):
        files = [_first_file(folder, names) for names in source.files]
        if all(files):
            return tuple(path for path in files if path)
    return None


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    try:
        return next((folder / name for name in names if (folder / name).is_file()), None)
    except OSError as error:
        raise BadInput(
            f"{str(folder)!r} cannot be read ({error.strerror}); change its permissions or name "
            "another directory with --data-dir."
        ) from error


def obtain(name: str, directories: Sequence[Path]) -> tuple[Path, ...]:
    """Files of a data set, as `locate` returns them, downloaded first where none are found.

    Downloads go into the first of `directories` (then `data/`) that can be written.

    Raises
    ------
    DataUnavailable
        Neither at hand nor to be had; the message says what to put where by hand.
    """
    found = locate(name, directories)
    if found:
        return found
    source = SOURCES[name]
    if not source.mirrors:
        raise DataUnavailable(f"{name} needs a login to download; {by_hand(name, directories)}.")
    folder = writable_folder(source.folder, directories, f"{name} cannot be downloaded")
    for names, (file, checksum) in zip(source.files, source.downloads.items()):
        if not _first_file(folder, names):
            _download(name, file, checksum, folder)
    return tuple(path for names in source.files if (path := _first_file(folder, names)))


def by_hand(name: str, directories: Sequence[Path]) -> str:
    """Say what a user without a network can do, as the end of a sentence."""
    source = SOURCES[name]
    folder = (directories[0] if directories else Path("data").resolve()) / source.folder
    return f"put {source.by_hand} into {str(folder)!r}, or name another directory with --data-dir"


def writable_folder(name: str, directories: Sequence[Path], problem: str) -> Path:
    """Return folder `name` in the first of `directories` (then `data/`) that can be written.

    Raises `DataUnavailable`, which starts with `problem`, where there is none.
    """
    candidates = tuple(dict.fromkeys([*directories, Path("data").resolve()]))
    for directory in candidates:
        folder = directory / name
        if directory.exists() and not writable(directory):
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if writable(folder):
                return folder
    tried = ", ".join(repr(str(path)) for path in candidates)
    raise DataUnavailable(
        f"{problem} because none of {tried} can be written; name a directory "
        "that can with --data-dir."
    )


def writable(folder: Path) -> bool:
    """Whether files may be made in `folder`.

    Root may write anywhere, so the mode decides too: who marks shared data read-only means it,
    and in a container everybody is root.
    """
    return os.access(folder, os.W_OK | os.X_OK) and bool(folder.stat().st_mode & 0o222)


def _download(name: str, file: str, checksum: str, folder: Path) -> None:
    import pooch
    from requests import RequestException

    # pooch writes under a temporary name, checks, then renames: never a half-written file.
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT, chunk_size=1 << 16)
    failures = []
    for mirror in SOURCES[name].mirrors:
        try:
            path = pooch.retrieve(
                mirror + file, checksum, fname=file, path=folder, downloader=downloader
            )
            Path(path).chmod(0o644)  # pooch's temporary file is the owner's alone
            return
        except (RequestException, ValueError) as error:
            failures.append(f"{urlsplit(mirror).netloc}: {_reason(error)}")
        except OSError as error:
            raise DataUnavailable(
                f"{file} of {name} cannot be written to {str(folder)!r} ({error.strerror}); "
                "make room or name another directory with --data-dir."
            ) from error
    raise DataUnavailable(
        f"{file} of {name} cannot be downloaded ({'; '.join(failures)}); check the network, or "
        f"{by_hand(name, [folder.parent])}."
    )


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError):
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "timed out"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "connection broke off"
    if isinstance(error, requests.RequestException):
        return f"no connection, {type(error).__name__}"
    return "wrong checksum"


def remedy_of(name: str) -> str:
    """Say what to do about a wrong file of a data set, as the end of a sentence."""
    if SOURCES[name].mirrors:
        return f"delete it and run `python -m fltrust_repro data fetch {name}`"
    return f"replace it by {SOURCES[name].by_hand}"


MOST_BYTES = 128 * 2**20  # more than any file of the data sets holds


def content(path: Path, most: int = MOST_BYTES) -> bytes:
    """Bytes of a file, uncompressed where its name ends in .gz.

    Raises `ValueError` where there are more than `most`, of which no more are read: a small
    compressed file may hold any number.
    """
    with opened(path) as file:
        return all_of(file, most)


def opened(path: Path) -> IO[bytes]:
    """Open a file to read bytes, uncompressed where its name ends in .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def all_of(file: IO[bytes], most: int) -> bytes:
    """What is left of an open file; `ValueError` where it is more than `most` bytes."""
    data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"holds more than the {most:,} bytes that belong there")
    return data


def check_md5(data: bytes, expected: str) -> None:
    """Raise `ValueError` when `data` has another md5 than `expected`."""
    found = hashlib.md5(data).hexdigest()
    if found != expected:
        raise ValueError(f"has a wrong checksum (md5 {found}, not {expected})")


def verify_kaggle_file(path: Path) -> None:
    """Raise `BadInput` when Kaggle's 64x64 table, if `path` is that, is not the published one."""
    if path.name.startswith("hmnist"):
        table = content(path)
        blob = hashlib.sha1(b"blob %d\0" % len(table) + table).hexdigest()
        if blob != KAGGLE_64_BLOB:
            raise BadInput(
                f"{str(path)!r} is not byte for byte the file that Kaggle publishes (git blob id "
                f"{blob}, not {KAGGLE_64_BLOB}); download it again, or delete it and run "
                "`python -m fltrust_repro data fetch ch-mnist`."
            )

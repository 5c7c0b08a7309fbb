"""Where data is looked for, and downloads from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import socket
import threading
from pathlib import Path

import pytest
from data_files import (
    CONTENT,
    LABELS,
    REGISTRY,
    archive,
    change_source,
    idx,
    names_below,
    place,
    rng,
    tiles,
)

from fltrust_repro import downloads
from fltrust_repro.datasets import datasets, fetch, load, status, verify
from fltrust_repro.errors import BadInput, DataUnavailable

pytestmark = pytest.mark.usefixtures("alone")


def test_search_order(tiny, tmp_path, monkeypatch):
    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(downloads, "__file__", str(tmp_path / "checkout" / "pkg" / "x.py"))
    for name in ("argument", "variable", "here/data", "checkout/data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("FLTRUST_DATA", str(tmp_path / "variable"))
    usual = [tmp_path / "argument", tmp_path / "variable", tmp_path / "here" / "data"]
    assert downloads.search_path(tmp_path / "argument") == tuple(usual)
    (tmp_path / "checkout" / "setup.py").touch()
    usual.append(tmp_path / "checkout" / "data")
    assert downloads.search_path(tmp_path / "argument") == tuple(usual)
    for directory in reversed(usual):
        place(directory / "mnist")
        assert downloads.locate("mnist", usual)[0].parent == directory / "mnist"


def test_incomplete_folder_is_passed_over(tiny, tmp_path):
    place(tmp_path / "first" / "mnist", t10k_images_idx3_ubyte=None)
    place(tmp_path / "second" / "mnist")
    files = downloads.locate("mnist", [tmp_path / "first", tmp_path / "second"])
    assert [path.parent for path in files] == [tmp_path / "second" / "mnist"] * 4


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")]
)
def test_torchvisions_folders_are_looked_into(name, folder, tmp_path):
    place(tmp_path / folder)
    assert {path.parent for path in downloads.locate(name, [tmp_path])} == {tmp_path / folder}
    place(tmp_path / name)
    assert {path.parent for path in downloads.locate(name, [tmp_path])} == {tmp_path / name}


def test_the_message_names_the_files_that_are_missing_and_their_folder(tiny, tmp_path):
    place(tmp_path / "mnist", t10k_labels_idx1_ubyte=None)
    told = f"put t10k-labels-idx1-ubyte.gz (unpacked will do) into {str(tmp_path / 'mnist')!r}"
    with pytest.raises(DataUnavailable) as caught:
        verify("mnist", tmp_path)
    assert told in str(caught.value)
    assert "train-" not in str(caught.value)


def test_system_folder_comes_last(tmp_path, monkeypatch):
    system = place(tmp_path / "system")
    change_source(monkeypatch, "fashion-mnist", elsewhere=(system,))
    assert downloads.locate("fashion-mnist", [tmp_path])[0].parent == system
    own = place(tmp_path / "fashion-mnist")
    assert downloads.locate("fashion-mnist", [tmp_path])[0].parent == own


@pytest.mark.parametrize("how", ["--data-dir", "$FLTRUST_DATA"])
def test_directory_that_does_not_exist_is_named(how, tmp_path, monkeypatch):
    missing = str(tmp_path / "nowhere")
    if how == "$FLTRUST_DATA":
        monkeypatch.setenv("FLTRUST_DATA", missing)
    argument = missing if how == "--data-dir" else None
    for command in (status, lambda path: load("digits", rng(), path)):
        with pytest.raises(BadInput) as caught:
            command(argument)
        assert str(caught.value).startswith(f"{how} {missing!r} is not a directory")


def test_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(BadInput, match=r"--data-dir .* cannot be read by this user"):
        status(tmp_path)


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(BadInput, match=r"mnist' cannot be read \(Permission denied\)"):
        downloads.locate("mnist", [tmp_path])


@pytest.fixture
def server():
    """Address of a server, the bytes it answers by file name, and the paths it was asked for."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            _, mirror, name = self.path.split("/")
            if mirror == "down" or name not in files:
                self.send_error(503)
                return
            body = files[name]
            if mirror == "html":
                body = b"<html>Please log in to this network.</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:-5] if mirror == "cut" else body)

        def log_message(self, *args: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/", files, asked
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def mirrors(server, tiny, monkeypatch):
    """Let MNIST come from the named mirrors of the server; returns the paths it was asked for."""
    address, files, asked = server
    files.update({f"{name}.gz": gzip.compress(content) for name, content in CONTENT.items()})

    def use(*names: str) -> list[str]:
        change_source(monkeypatch, "mnist", mirrors=tuple(f"{address}{name}/" for name in names))
        return asked

    return use


ALL_FILES = sorted(f"{name}.gz" for name in downloads.IDX_FILES)


def test_download_then_found_without_asking_again(mirrors, tmp_path, capfd):
    asked = mirrors("good")
    assert fetch("mnist", tmp_path) == tmp_path / "mnist"
    assert names_below(tmp_path) == ALL_FILES
    assert len(asked) == 4
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "100%" in captured.err
    assert (tmp_path / "mnist" / ALL_FILES[0]).stat().st_mode & 0o777 == 0o644
    assert fetch("mnist", tmp_path) == tmp_path / "mnist"
    assert load("mnist", rng(), tmp_path).train_y.tolist() == [9, 0]
    assert len(asked) == 4


def test_only_missing_files_are_downloaded(mirrors, tmp_path):
    asked = mirrors("good")
    folder = place(tmp_path / "mnist", t10k_labels_idx1_ubyte=None, t10k_images_idx3_ubyte=None)
    (folder / "t10k-images-idx3-ubyte").write_bytes(CONTENT["t10k-images-idx3-ubyte"])
    fetch("mnist", tmp_path)
    assert asked == ["/good/t10k-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("pack", [bytes, lambda raw: gzip.compress(raw, 1, mtime=9)])
def test_a_download_is_checked_by_its_content_whoever_compressed_it(
    server, mirrors, tmp_path, pack
):
    server[1].update({f"{name}.gz": pack(content) for name, content in CONTENT.items()})
    mirrors("good")
    assert fetch("mnist", tmp_path) == tmp_path / "mnist"


def test_a_download_of_other_content_is_not_kept(server, mirrors, tmp_path):
    server[1]["train-labels-idx1-ubyte.gz"] = gzip.compress(idx(LABELS[::-1]))
    mirrors("good")
    with pytest.raises(DataUnavailable, match=r"train-labels.*wrong checksum"):
        fetch("mnist", tmp_path)
    assert names_below(tmp_path) == ["train-images-idx3-ubyte.gz"]


@pytest.mark.parametrize("first", ["down", "html", "cut"])
def test_second_mirror_where_the_first_fails(first, mirrors, tmp_path):
    asked = mirrors(first, "good")
    fetch("mnist", tmp_path)
    assert names_below(tmp_path) == ALL_FILES
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        ("down", "HTTP status 503"),
        ("html", "wrong checksum"),
        ("cut", "connection broke off|wrong checksum"),  # urllib3 2 notices, urllib3 1 does not
    ],
)
def test_all_mirrors_fail(mirror, reason, mirrors, tmp_path):
    mirrors(mirror, mirror)
    with pytest.raises(DataUnavailable, match=reason) as caught:
        load("mnist", rng(), tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("127.0.0.1") == 2
    by_hand = f"put {', '.join(REGISTRY)} (unpacked will do) into {str(tmp_path / 'mnist')!r}"
    assert by_hand in str(caught.value)
    assert names_below(tmp_path) == []


def test_no_mirror_reachable(tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound but not listening: refused at once
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        change_source(monkeypatch, "mnist", mirrors=(address,))
        with pytest.raises(DataUnavailable, match=r"cannot be downloaded .*no connection"):
            fetch("mnist", tmp_path)


def test_mirror_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        change_source(monkeypatch, "mnist", mirrors=(address,))
        with pytest.raises(DataUnavailable, match="timed out"):
            fetch("mnist", tmp_path)


def test_download_goes_to_the_first_directory_that_can_be_written(mirrors, tmp_path, monkeypatch):
    mirrors("good")
    for name in ("argument", "variable"):
        (tmp_path / name).mkdir()
    (tmp_path / "argument" / "mnist").touch()  # in the way of the folder, for root too
    monkeypatch.setenv("FLTRUST_DATA", str(tmp_path / "variable"))
    assert fetch("mnist", tmp_path / "argument") == tmp_path / "variable" / "mnist"


@pytest.mark.parametrize("marked", ["argument", "argument/mnist"])
def test_nothing_is_written_where_the_mode_says_read_only(marked, mirrors, tmp_path):
    mirrors("good")
    (tmp_path / "argument" / "mnist").mkdir(parents=True)
    (tmp_path / marked).chmod(0o555)  # holds for root too
    assert fetch("mnist", tmp_path / "argument") == tmp_path / "data" / "mnist"
    assert names_below(tmp_path / "argument") == []
    (tmp_path / marked).chmod(0o755)


def test_download_without_any_directory_makes_data_here(mirrors, tmp_path):
    mirrors("good")
    assert fetch("mnist") == tmp_path / "data" / "mnist"


def test_nowhere_to_write(mirrors, tmp_path):
    asked = mirrors("good")
    (tmp_path / "data").touch()
    (tmp_path / "argument").mkdir()
    (tmp_path / "argument" / "mnist").touch()
    with pytest.raises(DataUnavailable, match=r"none of .*argument.* can be written"):
        fetch("mnist", tmp_path / "argument")
    assert asked == []


def test_full_disk_is_not_blamed_on_the_mirror(mirrors, tmp_path, monkeypatch):
    import pooch

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    mirrors("good")
    monkeypatch.setattr(pooch, "retrieve", full)
    with pytest.raises(DataUnavailable, match=r"cannot be written .*No space left on device"):
        fetch("mnist", tmp_path)


def test_an_interrupted_download_leaves_nothing(mirrors, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    mirrors("good")
    monkeypatch.setattr(downloads, "check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist", tmp_path)
    assert names_below(tmp_path) == []


def test_ch_mnist_archive_is_downloaded_and_turned_into_the_cache(
    server, sixteen, tmp_path, monkeypatch
):
    address, files, _ = server
    files[downloads.TILES_ZIP] = archive(*tiles())
    digest = hashlib.sha256(files[downloads.TILES_ZIP]).hexdigest()
    registry = {downloads.TILES_ZIP: f"sha256:{digest}"}
    change_source(monkeypatch, "ch-mnist", mirrors=(f"{address}good/",), registry=registry)
    assert fetch("ch-mnist", tmp_path) == tmp_path / "ch-mnist"
    assert names_below(tmp_path) == [downloads.TILES_ZIP, downloads.TILES_CACHE]
    verify("ch-mnist", tmp_path)


def test_the_page_on_data_has_every_data_set_and_every_checksum():
    page = (Path(__file__).parent.parent / "data" / "README.md").read_text("utf-8")
    names = [name for name in datasets if datasets.owner(name) is None]
    assert {"har", "digits"} < set(names)
    assert [name for name in names if f"\n| `{name}`" not in page] == []
    known = [checksum for one in downloads.SOURCES.values() for checksum in one.registry.values()]
    assert [checksum for checksum in known if checksum.split(":")[1] not in page] == []


@pytest.mark.parametrize("fault", [PermissionError(13, "Permission denied"), FileNotFoundError(2)])
def test_a_current_directory_that_cannot_be_looked_in_is_passed_over(fault, monkeypatch):
    def refuse(*_):
        raise fault

    monkeypatch.delenv("FLTRUST_DATA", raising=False)
    monkeypatch.setattr(Path, "is_dir", refuse)
    assert downloads.search_path() == ()
    monkeypatch.setattr(Path, "resolve", lambda self: refuse() if self == Path("data") else self)
    assert downloads.search_path() == ()


def test_a_loop_of_links_is_passed_over_or_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("FLTRUST_DATA", raising=False)
    monkeypatch.setattr(downloads, "__file__", str(tmp_path / "checkout" / "pkg" / "x.py"))
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to("data")
    assert downloads.search_path() == ()
    assert "mnist" in {row.name for row in status()}
    with pytest.raises(DataUnavailable, match="mnist is not at hand"):
        verify("mnist")
    with pytest.raises(BadInput, match=r"--data-dir: 'data' cannot be looked for \(.*\); give"):
        downloads.search_path("data")

"""The source of a raw data set's images: a folder, archives in it, a tar or a zip, or hosts that the user allows."""

from __future__ import annotations

import lzma
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.web import MAX_BYTES, check_url, fetch, is_url
from onediff.data.index import scan_members
from onediff.data.sample import BadSample
from onediff.errors import UserError

UNPACKING = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, OSError, EOFError)
"""Exceptions that `zipfile` raises for a damaged member, an unknown method, or a password."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


PLAIN = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*")
"""Matches most paths, which need no normalising."""


def inside(path: str, where: str, root: Path | None = None) -> str:
    """`path` normalised and relative; an absolute path may be below `root`.

    Raises UserError if it leaves its folder.
    """
    if PLAIN.fullmatch(path):
        return path
    archive, member = split_member(path)
    if member:
        return f"{inside(archive, where, root)}#{inside(member, where)}"
    plain = os.path.normpath(path.replace("\\", "/"))
    if plain.startswith("/") and root is not None:
        for base in (os.path.abspath(root), os.path.realpath(root)):
            if plain.startswith(base.rstrip("/") + "/"):
                return plain[len(base.rstrip("/")) + 1 :]
        raise UserError(
            f"{where}: {path!r} is not below the image folder {root}; name a folder that contains all images, such as "
            f"--images {os.path.dirname(plain)}"
        )
    if plain[1:3] == ":/":
        raise UserError(
            f"{where}: {path!r} is a Windows path with a drive letter; write it relative to the image folder: "
            f"{plain.rpartition('/')[2]}"
        )
    if plain.startswith(("/", "../")) or plain == ".." or (len(plain) > 1 and plain[1] == ":"):
        raise UserError(
            f"{where}: the path {path!r} leaves the image folder; name a folder that contains it with --images"
        )
    return plain


def split_member(path: str) -> tuple[str, str]:
    """`shards/000.tar#1.jpg` as archive and member; the member is empty if `path` names a file."""
    archive, _, member = path.partition("#")
    return (archive, member) if archive.lower().endswith((".tar", ".zip")) else (path, "")


class Folder:
    """Images in a folder, its subfolders, and the archives in them.

    Also finds names that differ in case or suffix.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[str, dict[str, str]] = {}
        self._archives: dict[str, Archive] = {}

    def read(self, path: str) -> tuple[bytes, list[str]]:
        """The bytes at `path`, and notes. Raises `BadSample`, and UserError for a refused archive."""
        name, member = split_member(path)
        if member:
            return self._archive(name).read(member)
        descriptor, notes = self._open(path), []  # type: int, list[str]
        if descriptor < 0:
            found = self._similar(path)
            descriptor, notes = self._open(found) if found else -1, ["other_name"]
        if descriptor < 0:
            found = "a link to a missing file:" if os.path.islink(self.root / path) else "no file"
            raise BadSample("missing_image", f"{found} {path!r} in {self.root}")
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            os.close(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadSample("missing_image", f"{path!r} is not a plain file")
            raise BadSample("too_large", f"{path!r} has {status.st_size:,} bytes, more than {MAX_BYTES:,}")
        with open(descriptor, "rb") as file:
            return file.read(), notes

    def _open(self, path: str) -> int:
        """A descriptor, or -1 if there is no such file."""
        try:
            # Non-blocking: a pipe in the folder must not hang the conversion.
            return os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return -1
        except (OSError, ValueError) as error:
            raise BadSample("missing_image", f"{path!r} cannot be opened: {error}") from error

    def _archive(self, name: str) -> Archive:
        """An open archive. Raises `BadSample` if there is none."""
        if name not in self._archives:
            if not (self.root / name).is_file():
                raise BadSample("missing_image", f"no archive {name!r} in {self.root}")
            self._archives[name] = Archive(self.root / name)
        return self._archives[name]

    def size(self, path: str) -> int:
        """Bytes of the file or member; -1 if none has exactly that name."""
        name, member = split_member(path)
        try:
            if member:
                return self._archive(name).size(member)
            return os.stat(f"{self.root}/{path}").st_size
        except UserError:
            raise
        except (OSError, ValueError):
            return -1

    def _similar(self, path: str) -> str | None:
        """The name on disk that differs from `path` only in case or suffix."""
        pure = PurePosixPath(path)
        folder = str(pure.parent)
        if folder not in self._listings:
            try:
                self._listings[folder] = {name.lower(): name for name in sorted(os.listdir(self.root / folder))}
            except OSError:
                self._listings[folder] = {}
        found = similar(pure.name, self._listings[folder])
        return str(pure.parent / found) if found else None


def similar(name: str, listing: Mapping[str, str]) -> str | None:
    """The entry of `listing`, keyed by lower-case name, for `name` in any case or with another image suffix."""
    stem, dot, suffix = name.lower().rpartition(".")
    guesses = [name.lower(), *(stem + other for other in SUFFIXES if dot + suffix in SUFFIXES)]
    return next((listing[guess] for guess in guesses if guess in listing), None)


PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
}
"""Compression programs, by the first bytes of their output."""


class Archive:
    """Images in a tar or zip, read in place and never unpacked. One suspicious member makes it refuse the archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None

    @cached_property
    def members(self) -> dict[str, tuple[int, int]]:
        """`name → (offset, size)` in a tar, or `(0, size)` in a zip. Raises UserError."""
        if self._is_zip:
            return {name: (0, entry.file_size) for name, entry in self._entries.items()}
        damage: list[str] = []
        with open(self.path, "rb") as file:
            start = file.read(8)
            for magic, program in PACKED.items():
                if start.startswith(magic):
                    raise UserError(f"{self.path}: compressed with {program}; unpack it and pass the folder")
            if not start:
                raise UserError(f"{self.path}: an empty file")
            members = list(scan_members(file.fileno(), damage))
        if damage and not members:
            raise UserError(f"{self.path}: neither a tar nor a zip ({damage[0]})")
        if damage:
            raise UserError(
                f"{self.path}: {damage[0].removesuffix('; ignored')}; the archive is refused; unpack and inspect it yourself"
            )
        return {inside(name, f"{self.path} member"): (offset, size) for name, offset, size in members}

    @cached_property
    def _is_zip(self) -> bool:
        with self.path.open("rb") as file:
            # `zipfile` recognises a zip by its end, which a truncated file lacks.
            return file.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(self.path)

    @cached_property
    def _entries(self) -> dict[str, zipfile.ZipInfo]:
        """The files of a zip by normalised name: Windows writes backslashes, other programs a leading `./`."""
        try:
            self._handle = zipfile.ZipFile(self.path)
        except (*UNPACKING, ValueError) as error:
            raise UserError(f"{self.path}: an incomplete zip ({error}); fetch it again") from error
        return {self._checked(entry): entry for entry in self._handle.infolist() if not entry.is_dir()}

    def _checked(self, entry: zipfile.ZipInfo) -> str:
        mode = entry.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise UserError(f"{self.path}: {entry.filename!r} is not a regular file; the archive is refused")
        return inside(entry.filename, f"{self.path} member")

    def read(self, path: str) -> tuple[bytes, list[str]]:
        """The bytes of member `path`, and notes. Raises `BadSample`."""
        notes: list[str] = []
        if path not in self.members:
            found = similar(path, self._listing)
            if found is None:
                elsewhere = self._listing.get("/" + PurePosixPath(path).name.lower())
                hint = f"; there is {elsewhere!r}" if elsewhere else ""
                raise BadSample("missing_image", f"no member {path!r} in {self.path}{hint}")
            path, notes = found, ["other_name"]
        offset, size = self.members[path]
        if size > MAX_BYTES:
            raise BadSample("too_large", f"{path!r} has {size:,} bytes, more than {MAX_BYTES:,}")
        if not self._is_zip:
            # Not kept open: a handle for each of a thousand tars would be too many.
            with self.path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset), notes
        try:
            with self._handle.open(self._entries[path]) as file:
                # The size that the archive declares cannot be trusted.
                data = file.read(size + 1)
        except UNPACKING as error:
            raise BadSample("bad_image", f"{path!r} cannot be unpacked: {error}") from error
        if len(data) > size:
            raise BadSample("too_large", f"{path!r} unpacks to more than the {size} bytes it declares")
        return data, notes

    @cached_property
    def _listing(self) -> dict[str, str]:
        """The members by lower-case name, and by the file name alone with a leading slash."""
        files = {f"/{PurePosixPath(name).name.lower()}": name for name in self.members}
        return files | {name.lower(): name for name in self.members}

    def size(self, path: str) -> int:
        return self.members.get(path, (0, -1))[1]


@dataclass(frozen=True)
class ImageSource:
    """A folder or archive by path, and hosts for URLs. Cheap to send to worker processes, which open it themselves."""

    path: Path
    hosts: tuple[str, ...] = ()
    _opened: list[Folder | Archive] = field(default_factory=list, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageSource, (self.path, self.hosts)

    def place(self, path: str, where: str) -> str:
        """`path` normalised, without looking at any image.

        Raises UserError if it leaves the folder, is in a refused archive, or is a URL that may not be fetched.
        """
        if PLAIN.fullmatch(path):
            return path
        if is_url(path):
            return check_url(path, self.hosts, where)
        plain = inside(path, where, self.path)
        if split_member(plain)[1]:
            self.open().size(plain)
        return plain

    def placed(self, images: Mapping[str, str | bytes], where: str) -> dict[str, str | bytes]:
        """The images of a row, with the paths in plain form."""
        return {
            role: self.place(value, where) if value and isinstance(value, str) else value
            for role, value in images.items()
        }

    def read(self, path: str) -> tuple[bytes, list[str]]:
        """The bytes of the image, and notes. Raises `BadSample`, and UserError for a refused archive."""
        return (fetch(path, self.hosts), []) if is_url(path) else self.open().read(path)

    def open(self) -> Folder | Archive:
        """The folder or archive. Raises UserError if there is neither, or the archive is refused."""
        if not self._opened:
            if self.path.is_dir():
                self._opened.append(Folder(self.path))
            elif self.path.is_file():
                archive = Archive(self.path)
                self._opened.append(archive)
                assert archive.members is not None, "listed now, so that a suspicious archive is refused early"
            else:
                raise UserError(f"{self.path}: no such folder, tar or zip of images")
        return self._opened[0]

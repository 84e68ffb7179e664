"""Published data sets as files: where to get them, where they lie, and whether they are the published ones."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

_ALGORITHMS = {32: "md5", 64: "sha256"}  # by the length of the hexadecimal digest


@dataclass(frozen=True)
class Official:
    """What is known of a published data set.

    `files` maps file names to their md5 or sha256, or to None where none is published; where the name ends in .gz the
    unpacked file serves too. Of a set joined of others the names begin with the folders. `train` and `test` are numbers
    of rows, `shape` that of one of them; None: any.
    """

    name: str
    url: str
    files: dict[str, str | None]
    classes: int
    shape: tuple[int, ...] | None
    train: int | None
    test: int | None
    place: str | None = None  # its folder in the data root, where that is not `name`; "." of a joined set
    of_content: bool = False  # the checksums are of what the .gz files hold

    @property
    def places(self) -> str:
        """Its folders in the data root, in words."""
        place = Path(self.place or self.name)
        return " and ".join(sorted({f"{(place / name).parent}/" for name in self.files}))

    def folder(self, folder: str | os.PathLike | None = None, root: str | os.PathLike | None = None) -> Path:
        """`folder` itself, or else the set's own folder in `root`, or else in $FASTFLOW_DATA."""
        if folder is not None:
            return Path(folder)
        root = root or os.environ.get("FASTFLOW_DATA")
        if not root:
            raise FileNotFoundError(f"{self.name}: no folder given; set data.path to the folder of its files, "
                                    f"or FASTFLOW_DATA to a folder with {self.places} inside")
        return Path(root) / (self.place or self.name)

    def find(self, folder: Path, name: str) -> Path:
        """The path of one of the files. Raises FileNotFoundError saying where to get it and where to put it."""
        for path in (folder / name, folder / name.removesuffix(".gz")):
            if path.is_file():
                return path
        raise FileNotFoundError(f"{folder / name}: no such file; get it from {self.url} and put it there, "
                                "or set data.path, FASTFLOW_DATA or --data-root to where it is")

    def is_in(self, folder: Path) -> bool:
        """Whether all files are there, whatever they hold."""
        try:
            return all(self.find(folder, name) for name in self.files)
        except FileNotFoundError:
            return False

    def checksum(self, path: Path) -> str | None:
        """The published one of a file as it lies here: of an unpacked file there may be none."""
        digests = {Path(name).name: digest for name, digest in self.files.items()}
        if path.name in digests:
            return digests[path.name]
        return digests[f"{path.name}.gz"] if self.of_content else None

    def verify(self, path: Path) -> None:
        """Compares a file with its published checksum, if there is one. Raises ValueError."""
        digest = self.checksum(path)
        if digest is None:
            return
        algorithm = _ALGORITHMS[len(digest)]
        with gzip.open(path) if self.of_content and path.suffix == ".gz" else path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != digest:
            raise ValueError(f"{path}: its {algorithm} is {found}, expected {digest}: not the file that {self.name} "
                             f"was published as; get it from {self.url}")

    def require_rows(self, path: Path, found: int, part: str) -> None:
        """Raises ValueError unless a file holds as many rows as the `part`, "train" or "test", was published with."""
        expected = getattr(self, part)
        if expected is not None and found != expected:
            raise ValueError(f"{path}: {found} rows, expected the {expected} of {self.name}; get it from {self.url}")

    def require_shape(self, path: Path, found: tuple[int, ...]) -> None:
        """Raises ValueError unless the rows of a file have the published shape."""
        if self.shape is not None and found != self.shape:
            raise ValueError(f"{path}: rows of shape {found}, expected {self.shape} of {self.name}; "
                             f"get it from {self.url}")


def read_unpacked(path: str | os.PathLike, remedy: str) -> bytes:
    """What a file holds, gzipped if its name ends in .gz. Raises ValueError, ending in `remedy`, for a broken gzip."""
    content = Path(path).read_bytes()
    if not str(path).endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error}); {remedy}") from error

"""The facts about each row that a plan needs: its split, id and images. Tasks read the rest when they need it.

Tables that name their images by path are processed by column (about 2 µs per row), other rows one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.ids import first_id
from data_prep.image_source import PLAIN
from data_prep.readers import Row
from data_prep.readers.batches import RowBatch
from data_prep.readers.cells import NOTHING, kept, texts, word
from data_prep.splits import split_name
from data_prep.text_columns import are_plain_paths, first_bytes

if TYPE_CHECKING:
    import pyarrow as pa

Place = Callable[[str, str], str]
"""Takes the path of an image and the location of its row; returns the normalised path, or raises UserError."""
COLUMNS = ("split", "id", "has_id", "first", "second", "has_captions", "has_turns", "group")
"""`first` and `second` are keys of the images in the order of their roles: a path, or `FINGERPRINT` and hexadecimal digits
of the content; empty if the image is missing, null if the row has no such role. `id` is null if it is the result of
`path_ids` for the two. `group` is the value of the `--hold-out-by` column."""
FINGERPRINT = "\0"
LONGEST_NOTHING = max(map(len, NOTHING))
MAY_BE_LIST = np.zeros(256, dtype=bool)
"""First bytes of a cell that may hold a list or an object as text."""
MAY_BE_LIST[list(b"[{ \t\n\v\f\r")] = True


def row_facts(rows: Sequence[Row], group: str | None) -> pa.RecordBatch:
    """The facts of rows whose image paths are normalised."""
    import pyarrow as pa

    keys = [[image_key(row.images[role]) for role in sorted(row.images)] for row in rows]
    columns = [
        pa.array([clean(row.split or "train") for row in rows], pa.string()),
        pa.array([clean(row.id or first_id(row)) for row in rows], pa.string()),
        pa.array([bool(row.id) for row in rows], pa.bool_()),
        *(pa.array([images[n] if len(images) > n else None for images in keys], pa.string()) for n in (0, 1)),
        pa.array([bool(row.captions) for row in rows], pa.bool_()),
        pa.array([bool(row.conversations) for row in rows], pa.bool_()),
        pa.array([clean(str(row.meta.get(group, ""))) if group else "" for row in rows], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, list(COLUMNS))


def table_facts(batch: RowBatch, place: Place, group: str | None) -> pa.RecordBatch | None:
    """The facts of a table's rows, or None if their images are not named by path or they hold conversations.

    Raises UserError if a path leaves the image folder or a caption is an object.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    of, rows = batch.meaning.columns.of, len(batch)
    roles = sorted({"before", "after", "image"} & of.keys())
    if not roles or "conversations" in of:
        return None
    images, are_plain = [], True
    for role in roles:
        texts_of_role = batch.texts(of[role])
        if texts_of_role is None:
            return None
        are_plain &= not batch.meaning.beside and are_plain_paths(texts_of_role, LONGEST_NOTHING + 1)
        images.append(texts_of_role if are_plain else _placed(texts_of_role, batch, place))
    own = _words(batch, of["id"]) if "id" in of else pa.repeat("", rows)
    has_id = pc.not_equal(own, "")
    given = has_id.true_count
    if given == rows:
        ids = own
    elif not given and are_plain and roles == ["after", "before"]:
        ids = pa.nulls(rows, pa.string())
    else:
        made = path_ids(dict(zip(roles, images, strict=True)), f"{batch.meaning.table} row ", batch.table.first)
        ids = pc.if_else(has_id, own, made) if given else made
    columns = [
        _splits(batch, of.get("split")),
        ids,
        has_id,
        images[0],
        images[1] if len(images) > 1 else pa.nulls(rows, pa.string()),
        pa.array(_has_captions(batch), pa.bool_()),
        pa.repeat(False, rows),
        pa.array(_groups(batch, group), pa.string()) if group else pa.repeat("", rows),
    ]
    return pa.RecordBatch.from_arrays(columns, list(COLUMNS))


def image_key(image: str | bytes) -> str:
    """The key of an image in a plan."""
    return clean(image) if isinstance(image, str) else FINGERPRINT + fingerprint(image).hex() if image else ""


def key_fingerprint(key: str) -> bytes:
    """The fingerprint of the image that `key` stands for."""
    return bytes.fromhex(key[1:]) if key.startswith(FINGERPRINT) else fingerprint(key)


def fingerprint(value: str | bytes) -> bytes:
    """Sixteen bytes that identify `value`, from SHA-256, the hash that processors compute fastest."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).digest()[:16]
    return hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def clean(text: str) -> str:
    """`text` without characters that UTF-8 cannot encode."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _placed(paths: pa.Array, batch: RowBatch, place: Place) -> pa.Array:
    """Normalised paths, which most already are; empty if missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    usual = pc.match_substring_regex(paths, f"^(?:{PLAIN.pattern})$")
    usual = pc.and_(usual, pc.invert(pc.is_in(paths, pa.array(sorted(NOTHING))))).fill_null(False)
    if pc.all(usual).as_py() and not batch.meaning.beside:
        return paths
    found = paths.to_pylist()
    for at, is_usual in enumerate(usual.to_pylist()):
        if is_usual and not batch.meaning.beside:
            continue
        path = batch.meaning.image(word(found[at]))
        where = f"{batch.meaning.table} row {batch.table.first + at}"
        found[at] = clean(place(path, where)) if path and isinstance(path, str) else ""
    return pa.array(found, pa.string())


def _words(batch: RowBatch, name: str) -> pa.Array:
    """The cells of a column as text."""
    import pyarrow as pa

    if (found := batch.texts(name)) is not None:
        found = found.dictionary_encode()  # each distinct text is processed once
        words = [clean(word(value)) for value in found.dictionary.to_pylist()]
        return pa.array(words, pa.string()).take(found.indices).fill_null("")
    cells = batch.column(name)
    values = cells.to_pylist() if isinstance(cells, pa.Array) else cells
    return pa.array([clean(word(value)) for value in values], pa.string())


def _groups(batch: RowBatch, name: str) -> list[str]:
    """The values that `Row.meta` has under that name."""
    import pyarrow as pa

    of, used = batch.meaning.columns.of, batch.meaning.columns.used
    if name == "change_type" and name in of:
        found: list[str] = _words(batch, of[name]).to_pylist()
        return found
    if name in used:
        return [""] * len(batch)
    cells = batch.column(name)
    values = cells.to_pylist() if isinstance(cells, pa.Array) else cells
    return ["" if (found := kept(value)) is None else clean(str(found)) for value in values]


def _splits(batch: RowBatch, name: str | None) -> pa.Array:
    import pyarrow as pa

    default = split_name(batch.meaning.split) or "train"
    if name is None:
        return pa.repeat(default, len(batch))
    values = _words(batch, name).dictionary_encode()
    names = [split_name(value) or default for value in values.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(values.indices)


def _has_captions(batch: RowBatch) -> NDArray[np.bool_]:
    """Whether each row has a caption, even a blank one. Raises UserError if a caption is an object."""
    import pyarrow as pa

    found = np.zeros(len(batch), dtype=bool)
    for name in batch.meaning.columns.captions:
        cells, own, odd = batch.texts(name), np.zeros(len(batch), dtype=bool), list(range(len(batch)))
        if cells is not None:
            own = cells.is_valid().to_numpy(zero_copy_only=False).copy()
            # The text may be a serialised list or object.
            odd = np.flatnonzero(MAY_BE_LIST[first_bytes(cells.fill_null("") if cells.null_count else cells)]).tolist()
        else:
            cells = batch.column(name)
        for at in odd:
            cell = cells[at].as_py() if isinstance(cells, pa.Array) else cells[at]
            own[at] = bool(texts(cell, f"{batch.meaning.table} row {batch.table.first + at}"))
        found |= own
    return found


def path_ids(images: Mapping[str, pa.Array], where: str = "", first: int = 0) -> pa.Array:
    """The default id of each row, as made by `first_id`, from the paths by role.

    The id of a row without a path is its location: `where` and its number, counted from `first`.
    """
    import pyarrow as pa

    if images.keys() == {"before", "after"} and (ids := _pair_ids(images["before"], images["after"])) is not None:
        return ids
    roles = [role for role in ("before", "after", "image") if role in images]
    rows = zip(*(images[role].to_pylist() for role in roles), strict=True)
    found = [
        first_id(Row(f"{where}{number}", "", "", dict(zip(roles, paths, strict=True))))
        for number, paths in enumerate(rows, first)
    ]
    return pa.array(found, pa.string())


def _pair_ids(before: pa.Array, after: pa.Array) -> pa.Array | None:
    """`first_id` of pairs with plain paths in one folder; None if any pair differs."""
    import pyarrow.compute as pc

    parts = [_folder_and_stem(paths) for paths in (before, after)]
    if None in parts:
        return None
    (folder, first), (other, second) = filter(None, parts)
    is_usual = pc.and_(pc.not_equal(pc.utf8_trim(first, "."), ""), pc.not_equal(pc.utf8_trim(second, "."), ""))
    if folder is None or other is None:
        return pc.binary_join_element_wise(first, second, "-") if folder is other and pc.all(is_usual).as_py() else None
    is_usual = pc.and_(is_usual, pc.and_not(pc.equal(folder, other), pc.match_substring(folder, ":")))
    return pc.binary_join_element_wise(folder, first, second, "-") if pc.all(is_usual).as_py() else None


def _folder_and_stem(paths: pa.Array) -> tuple[pa.Array | None, pa.Array] | None:
    """Folders (None if no path has one) and names without suffix; None if only some paths have a folder."""
    import pyarrow.compute as pc

    # Index the flat list, since `list_element` costs ten times as much.
    firsts = np.arange(0, 2 * len(paths), 2, dtype=np.int32)
    names, folder = pc.split_pattern(paths, "/", max_splits=1, reverse=True).flatten(), None
    if len(names) == 2 * len(paths):
        folder, names = names.take(firsts), names.take(firsts + 1)
    elif len(names) > len(paths):
        return None
    named = pc.split_pattern(names, ".", max_splits=1, reverse=True).flatten()
    return (folder, named.take(firsts)) if len(named) == 2 * len(paths) else None

"""Opens the database: checks it first, brings it to this version, and tells a full disk apart.

SQLite notices a broken page, but has no checksum over what a row holds; so every row has one of its
own, and all are compared at each start, through a connection that cannot write. A database with
damage anywhere in what is read is refused, and its files stay as they are for whoever repairs them.

What SQLite has committed but not yet moved into the database lies in the file `-wal`. SQLite takes
that file up to the first frame whose checksum is wrong and drops the rest in silence, because that
is also what a power loss leaves of the last, never acknowledged commit. Where more than one commit
lies behind that point, acknowledged ones would be lost: such a file is refused. What is not
detected: damage in the last two commits of that file, which cannot be told from a power loss and
takes those commits with it, and damage done while a server runs, until the next start.
"""

from __future__ import annotations

import os
import re
import sqlite3
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trainwire_server.data.durable import full_message
from trainwire_server.errors import StorageFull

VERSION = 3
_OLDEST = 2
_ADVICE = (
    "nothing was changed; restore the data directory from a backup, or move it away to begin "
    "with an empty one (docs/operations.md, backup and restore)"
)
_LINES = 5
_FEW_BYTES = 2**20
"""Below this much room a disk counts as full."""
# What is wrong with the machine, not with the file.
_MACHINE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
# A disk without room shows in these too, where SQLite grows a file by other means than a write.
_MAYBE_FULL = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
_WAL_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_LAST_FRAME = slice(16, 20)
"""Where the file `-shm` says which frame of the log is the last valid one (SQLite's mxFrame)."""


def read_blocks(path: Path) -> dict[str, str]:
    """The named blocks of an SQL file."""
    blocks = re.split(r"^-- name: (\w+)\n", path.read_text(), flags=re.M)
    return dict(zip(blocks[1::2], blocks[2::2], strict=True))


_SQL = read_blocks(Path(__file__).with_suffix(".sql"))


def connect(path: Path) -> sqlite3.Connection:
    """The database, of this version; a missing or empty file becomes a new one.

    Raises:
        sqlite3.Error: it cannot be used, the message says why; a damaged one is left as it is.
    """
    check(path)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        _add_checksum(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = _version(connection)
    if version == VERSION:
        return
    script = f"BEGIN IMMEDIATE; {_blocks(version, VERSION)} PRAGMA user_version = {VERSION}; COMMIT"
    try:
        connection.executescript(script)
    except BaseException:
        _roll_back(connection)
        raise


def _blocks(after: int, until: int) -> str:
    """What turns a database of one version into a later one; 0 is a new database."""
    versions = range(max(after + 1, _OLDEST), until + 1)
    return "".join(_SQL[f"version_{version}"] for version in versions)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


# ------------------------------------------------------------------------ checksums


def _add_checksum(connection: sqlite3.Connection) -> None:
    connection.create_function("row_checksum", -1, _row_checksum, deterministic=True)


def _row_checksum(*values: str | bytes | int | None) -> int:
    """CRC-32 of a row: enough against decay, of which it lets one case in 2^32 pass, and none that
    lies within 32 bits. Who changes rows on purpose can change their checksums too."""
    checksum = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        # The length too: bytes must not move from one column to the next unseen.
        checksum = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), checksum))
    return checksum


# ------------------------------------------------------------------------ check


def check(path: Path) -> None:
    """Read all of a database without writing to it.

    Raises:
        sqlite3.DatabaseError: it is damaged or of another version; the message says what to do.
        sqlite3.Error: it cannot be read.
    """
    log = path.with_name(f"{path.name}-wal")
    log_bytes = log.stat().st_size if log.exists() else 0
    if not path.exists() or path.stat().st_size == 0:
        if log_bytes:
            raise _damaged([f"it is empty, but {log.name} is not"])
        return
    # A log is only read by a connection that may take it up. Without one, no file is made.
    mode = "mode=ro" if log_bytes else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as connection:
            found = _problems(connection) or (_log_problems(log) if log_bytes else [])
    except sqlite3.Error as error:
        if _primary_code(error) in _MACHINE or isinstance(error, _OtherVersion):
            raise
        raise _damaged([str(error)]) from error
    except UnicodeDecodeError as error:
        # SQLite quotes what it cannot read, and Python cannot read the quotation.
        raise _damaged([f"it holds {error.object!r}"]) from error
    if found:
        raise _damaged(found)


class _OtherVersion(sqlite3.DatabaseError):
    """The database is not damaged, but not for this server."""


def _problems(connection: sqlite3.Connection) -> list[str]:
    """What is wrong with pages, tables and rows; the first of it."""
    _add_checksum(connection)
    version = _version(connection)
    if version not in (0, *range(_OLDEST, VERSION + 1)):
        raise _OtherVersion(
            f"it was written by another version of trainwire (database version {version}, this "
            f"server knows {_OLDEST} to {VERSION}); nothing was changed"
        )
    texts = connection.execute(f"PRAGMA integrity_check({_LINES})").fetchall()
    if texts != [("ok",)]:
        lines = (line for (text,) in texts for line in text.splitlines())
        return [line for line in lines if not line.startswith("***")]
    if _schema(connection) != _expected_schema(version):
        return [f"its tables are not those of database version {version}"]
    return _row_problems(connection) if version >= VERSION else []


def _schema(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """The definition of each table and index, without comments and layout."""
    rows = connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_schema")
    return {(kind, name): _plain(sql) for kind, name, sql in rows}


def _plain(sql: str) -> str:
    return " ".join(re.sub(r"--[^\n]*", "", sql).split())


def _expected_schema(version: int) -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _add_checksum(connection)
        connection.executescript(_blocks(0, version))
        return _schema(connection)


def _row_problems(connection: sqlite3.Connection) -> list[str]:
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    return [problem for (table,) in tables for problem in _damaged_rows(connection, table)]


def _damaged_rows(connection: sqlite3.Connection, table: str) -> list[str]:
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    columns.remove("checksum")
    checksum = f"row_checksum({', '.join(columns)})"
    # The names are those of our own schema: it has been compared before.
    rows = connection.execute(
        f"SELECT {columns[0]} FROM {table} WHERE checksum <> {checksum} LIMIT {_LINES}"  # noqa: S608
    )
    return [f"a row of {table} ({columns[0]} {key}) is not what was written" for (key,) in rows]


def _damaged(found: list[str]) -> sqlite3.DatabaseError:
    return sqlite3.DatabaseError(f"it is damaged: {'; '.join(found[:_LINES])}; {_ADVICE}")


def _log_problems(log: Path) -> list[str]:
    """Commits that SQLite would leave out; to be called while it has the log open."""
    with log.open("rb") as file:
        header = file.read(_WAL_HEADER.size)
        if len(header) < _WAL_HEADER.size:
            return []
        if not _is_whole(header):
            return [f"the header of {log.name} is not what was written"]
        _, _, page_bytes, _, *salts, _, _ = _WAL_HEADER.unpack(header)
        frame_bytes = _FRAME_HEADER.size + page_bytes
        index = log.with_name(log.name.removesuffix("-wal") + "-shm").read_bytes()
        taken = int.from_bytes(index[_LAST_FRAME], sys.byteorder)
        file.seek(taken * frame_bytes, os.SEEK_CUR)
        lost = 0
        while len(frame := file.read(frame_bytes)) == frame_bytes:
            _, pages, *frame_salts, _, _ = _FRAME_HEADER.unpack_from(frame)
            # Pages are given with the last frame of a commit; other salts are of an older log.
            lost += pages > 0 and frame_salts == salts
    return [f"{log.name} holds {lost} commits behind a damaged frame"] if lost > 1 else []


def _is_whole(header: bytes) -> bool:
    """Whether the header of a log has the checksum it says (sqlite.org/fileformat2.html, 4.1)."""
    order = ">" if header[3] & 1 else "<"
    words = struct.unpack(f"{order}6I", header[:24])
    first = second = 0
    for low, high in zip(words[::2], words[1::2], strict=True):
        first = (first + low + second) & 0xFFFFFFFF
        second = (second + high + first) & 0xFFFFFFFF
    return struct.unpack(">2I", header[24:]) == (first, second)


# ------------------------------------------------------------------------ write


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written within it, or nothing.

    Raises:
        StorageFull: there is no room for it.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException as error:
        _roll_back(connection)
        if isinstance(error, sqlite3.Error) and is_full(_folder(connection), error):
            raise StorageFull(full_message("the change")) from error
        raise


def _roll_back(connection: sqlite3.Connection) -> None:
    # SQLite itself has ended the transaction after some errors, a full disk among them.
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _folder(connection: sqlite3.Connection) -> Path:
    return Path(connection.execute("PRAGMA database_list").fetchone()[2]).parent


def is_full(folder: Path, error: sqlite3.Error) -> bool:
    """Whether the error of a database in this folder is that there is no room for it."""
    code = _primary_code(error)
    if code not in _MAYBE_FULL:
        return code == sqlite3.SQLITE_FULL
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize < _FEW_BYTES


def _primary_code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF

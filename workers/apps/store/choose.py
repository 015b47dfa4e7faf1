"""Which database: the flags, else the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workers.apps.store.base import Store
from workers.apps.store.sqlite import SqliteStore
from workers.errors import ConfigError

if TYPE_CHECKING:
    from workers.settings import StoreSettings

__all__ = ["choose_store"]


def choose_store(settings: StoreSettings, *, sqlite: Path | None = None, postgres: str | None = None) -> Store:
    """The store that the flags name, else the settings; not yet open.

    Raises ``ConfigError`` where both flags are given, where the address is none or comes as a flag with a password in
    it (every process can see it there), or where psycopg is not installed.
    """
    if sqlite is not None and postgres is not None:
        raise ConfigError("--sqlite and --postgres are both given; frames are stored in one database")
    if sqlite is not None:
        return _sqlite(sqlite)
    if postgres is not None:
        return _postgres(postgres, from_flag=True)
    if settings.postgres is not None:
        return _postgres(settings.postgres.get_secret_value(), from_flag=False)
    return _sqlite(Path(settings.sqlite))


def _sqlite(path: Path) -> Store:
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"there is no directory {path.absolute().parent} for the SQLite file {path.name}")
    return SqliteStore(path)


def _postgres(dsn: str, *, from_flag: bool) -> Store:
    try:
        from workers.apps.store.postgres import PostgresStore
    except ImportError as error:
        raise ConfigError(
            f"storing in PostgreSQL needs psycopg 3 ({error}); install it with pip install 'tick-workers[postgres]'"
        ) from None
    store = PostgresStore(dsn)
    if from_flag and store.has_password:
        raise ConfigError(
            "--postgres holds a password, which every process on this host can see; put the address into "
            "WORKERS_STORE_DSN or a file named by WORKERS_STORE_DSN_FILE, or the password alone into PGPASSWORD or "
            "~/.pgpass"
        )
    return store

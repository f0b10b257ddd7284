"""Addresses of MLflow stores, checked without importing MLflow, which takes seconds."""

from __future__ import annotations

from importlib.metadata import entry_points
from urllib.parse import urlsplit

from onediff.config.section import nearest

SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql", "mssql")
"""Stores that MLflow's client writes to without a server."""
WORKSPACES = ("databricks", "databricks-uc", "uc")
"""Schemes that are whole addresses by themselves, too."""
SCHEMES = ("http", "https", "sqlite", *DATABASES, *WORKSPACES, "file")


def store_fault(uri: str) -> str:
    """Why MLflow could not open a store at `uri`, and what to write; empty if it could. Passwords are not repeated."""
    if uri in WORKSPACES:
        return ""
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower().partition("+")[0]
    if not colon or "/" in scheme:
        return f"not an address; write http://HOST, https://HOST or {SQLITE}FILE"
    if scheme not in SCHEMES:
        known = {*SCHEMES, *(point.name for point in entry_points(group="mlflow.tracking_store"))}
        if scheme not in known:
            usual = nearest(scheme, known) or f"; write http://HOST, https://HOST or {SQLITE}FILE"
            return f"no address of MLflow begins with {scheme!r}{usual}"
    if scheme == "sqlite" and uri.removeprefix(SQLITE) in ("", uri):
        return f"names no file; write {SQLITE}FILE, or {SQLITE}/FOLDER/FILE from the root"
    if scheme in DATABASES and not rest.startswith("//"):
        return f"not an address of a database; write {scheme}://USER@HOST/DATABASE"
    return server_fault(uri) if scheme in ("http", "https") else ""


def server_fault(uri: str) -> str:
    """The same for the address of a server."""
    try:
        parts = urlsplit(uri)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or an unclosed bracket
        usable = False
    return "" if usable else "names no host, or a wrong port; write http://HOST:PORT"

"""Build the documentation site into site/, strictly: `make docs`.

1. Stage the pages and the generated reference (`docs/generate_reference.py`).
2. Build with Zensical, which takes a link to a page or heading that does not exist for an error.
3. Tell browsers to ask no other host for anything, by a Content-Security-Policy in every page.
4. Look at what was built: every link and anchor inside the site leads somewhere, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urldefrag, urlsplit

from generate_reference import ROOT, stage

__all__ = ["POLICY", "broken_links", "build", "foreign_resources", "harden"]

SITE: Final = ROOT / "site"
STAGED: Final = ROOT / "build" / "docs"
LIMIT_S: Final = 120
POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'"
)
_META: Final = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
_LOADS: Final = {  # what a browser fetches without being asked
    ("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "src"), ("source", "srcset"), ("iframe", "src"),
    ("embed", "src"), ("object", "data"), ("audio", "src"), ("video", "src"), ("video", "poster"), ("track", "src"),
    ("input", "src"), ("use", "href"), ("image", "href"), ("form", "action"),
}  # fmt: skip
_NO_LOAD: Final = {"canonical", "next", "prev", "alternate", "license"}  # relations of <link> that are only told
_CSS_URL: Final = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])([^'\")]+)")


class _Page(HTMLParser):
    """What a page loads, what it links to, and what can be linked to in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self._in_style = tag == "style"
        self.anchors.update(found[name] for name in ("id", "name") if found.get(name))
        if "style" in found:
            self.loads += _CSS_URL.findall(found["style"])
        for name, value in found.items():
            if (tag, name) in _LOADS:
                self.loads += [part.split()[0] for part in value.split(",")] if name == "srcset" else [value]
        if tag == "link" and "href" in found and not _NO_LOAD & set(found.get("rel", "").split()):
            self.loads.append(found["href"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.loads += _CSS_URL.findall(data)
            self._in_style = False


def _foreign(address: str) -> bool:
    parts = urlsplit(address.strip())
    return bool(parts.netloc) or parts.scheme not in ("", "data", "blob")


def foreign_resources(site: Path) -> list[str]:
    """Everything that pages and style sheets would load from another host, as ``file: address``.

    Scripts can name hosts that they ask only for features this site does not use; the policy in each page keeps them
    from it, and so a page without that policy is found here too.
    """
    found = []
    for path in sorted(site.rglob("*.html")):
        html = path.read_text()
        found += [f"{path.relative_to(site)}: {address}" for address in _Page(html).loads if _foreign(address)]
        if _META not in html:
            found.append(f"{path.relative_to(site)}: no Content-Security-Policy")
    for path in sorted(site.rglob("*.css")):
        addresses = _CSS_URL.findall(path.read_text())
        found += [f"{path.relative_to(site)}: {address}" for address in addresses if _foreign(address)]
    return found


def _target(site: Path, page: Path, address: str) -> Path:
    where = unquote(urlsplit(address).path)
    path = (site / where.lstrip("/")) if where.startswith("/") else (page.parent / where if where else page)
    path = path.resolve()
    return path / "index.html" if path.is_dir() else path


def broken_links(site: Path) -> Iterator[str]:
    """Links inside the site, and resources of it, that lead nowhere, as ``page: address``."""
    site = site.resolve()
    pages = {path.resolve(): _Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # it is shown at any address, so its links are from the site's root
        for address in (*page.links, *page.loads):
            if _foreign(address):
                continue
            bare, anchor = urldefrag(address)
            target = _target(site, path, bare)
            if not target.exists():
                yield f"{path.relative_to(site)}: {address}"
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                yield f"{path.relative_to(site)}: {address} (no such heading)"


def harden(site: Path) -> None:
    """Write the policy into every page."""
    for path in site.rglob("*.html"):
        html = path.read_text()
        if _META not in html:
            path.write_text(html.replace("<head>", f"<head>{_META}", 1))


def build() -> list[str]:
    """Build the site, and return what is wrong with it. Raises ``CalledProcessError`` where the generator refuses."""
    stage(STAGED)
    zensical = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
    ]
    subprocess.run(zensical, cwd=ROOT, check=True, timeout=LIMIT_S)
    harden(SITE)
    return [*broken_links(SITE), *foreign_resources(SITE)]


if __name__ == "__main__":
    wrong = build()
    for line in wrong:
        sys.stderr.write(f"{line}\n")
    sys.exit(1 if wrong else 0)

"""The site builds strictly and asks no other host; what its pages say to type runs, and says what they say it says.

The conventions are in `tests.docs.pages`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.docs.pages import DOCS, PAGES, README, ROOT, Block, blocks, misses
from tests.docs.session import Session
from workers.apps.broker import Broker
from workers.apps.broker.jars import kafka_jars
from workers.apps.broker.jvm import find_java
from workers.errors import BrokerUnavailableError, ConfigError
from workers.kafka.clients import admin_client
from workers.kafka.topics import delete_topics, describe_topics
from workers.settings import load_settings
from workers.settings.reference import operator_reference, reference

ALL = {page: blocks(page) for page in PAGES}
SHELLS = ("console", "sh")
KNOWN = {"python", "console", "sh", "toml", "json", "yaml", "java", "csv", "text"}
TOLD_APART = {
    "file": KNOWN - {"text"},
    "background": set(SHELLS),
    "wait": set(SHELLS),
    "ends": set(SHELLS),
    "pasted": set(SHELLS),
    "needs": set(SHELLS),
    "instead": set(SHELLS),
    "output": {"text"},
    "not run": {*SHELLS, "python"},
}
READERS = 5
COMPILE = "; ".join(
    (
        "from workers.core.spec import LaneSpec",
        "from workers.native.choose import takes_batches",
        "takes_batches(LaneSpec())",
    )
)
COMPILE_LIMIT_S = 150
PAGES_LIMIT_S = 230  # all pages together take some seventy seconds
NO_FILE = {"WORKERS_CONFIG": os.devnull}  # the settings of this checkout are not the reader's
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


def _name(page: Path) -> str:
    return "README" if page == README else str(page.relative_to(DOCS)).removesuffix(".md").replace("/", "-")


def _in_session(page: Path) -> list[Block]:
    """The blocks that a page's reader goes through with a shell; none where there is nothing to type."""
    found = [block for block in ALL[page] if block.language in SHELLS or block.verb in ("file", "output")]
    return found if any(block.language in SHELLS for block in found) else []


def _alone(language: str) -> list[pytest.param]:  # type: ignore[valid-type]
    return [
        pytest.param(block, id=f"{_name(block.page)}-{block.line}")
        for page in PAGES
        for block in ALL[page]
        if block.language == language and block.verb == "run"
    ]


# -- the convention ---------------------------------------------------------------------------------------------------


def test_every_block_of_code_is_run_or_says_why_not() -> None:
    for block in (block for page in PAGES for block in ALL[page]):
        assert block.language in KNOWN, f"{block.where}: nothing is known of ```{block.language}"
        if block.verb == "run":
            assert block.language not in ("java", "csv"), f"{block.where}: give it a name (file ...), and use it"
        else:
            assert block.language in TOLD_APART[block.verb], f"{block.where}: {block.verb} of {block.language}"
    assert sum(block.language in SHELLS for page in PAGES for block in ALL[page]) > 50


def test_a_file_that_is_saved_is_used() -> None:
    for page in PAGES:
        for block in (block for block in ALL[page] if block.verb == "file"):
            later = [other for other in ALL[page] if other.line > block.line and other.language in SHELLS]
            stem = Path(block.what).stem
            assert any(stem in other.body for other in later), f"{block.where}: {block.what} is saved and never used"


def test_a_note_that_is_misspelt_or_misplaced_is_refused(tmp_path: Path) -> None:
    for text in (
        "<!-- test: nott run -->\n```console\nls\n```\n",
        "<!-- test: not run -->\n```console\nls\n```\n",  # no reason
        "<!-- test: output -->\n\n```text\nls\n```\n",
    ):
        (page := tmp_path / "page.md").write_text(text)
        with pytest.raises(ValueError, match=r"page\.md"):
            blocks(page)


def test_output_that_is_not_there_is_noticed() -> None:
    assert not list(misses("a ... d\nf", "x\na  b c d e\nf", in_order=True))
    assert list(misses("f\na", "a\nf", in_order=True)) == ["a"]
    assert not list(misses("f\na", "a\nf", in_order=False))
    assert list(misses("total 0", "total 10", in_order=True)) == ["total 0"]


# -- what the pages say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", _alone("python"))
def test_a_snippet_runs_and_prints_what_its_comments_say(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.body],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{block.where}: {done.stderr}"
    assert done.stdout.splitlines() == re.findall(r"^# (.+)$", block.body, re.MULTILINE), block.where


@pytest.mark.parametrize("block", _alone("toml"))
def test_a_configuration_is_possible(block: Block, tmp_path: Path) -> None:
    (tmp_path / "workers.toml").write_text(block.body)
    load_settings(tmp_path / "workers.toml", environ={})


@pytest.mark.parametrize("block", [*_alone("json"), *_alone("yaml")])
def test_data_can_be_read(block: Block) -> None:
    if block.language == "yaml":
        assert list(yaml.safe_load_all(block.body))
    else:
        assert all(json.loads(line) for line in block.body.splitlines())


@pytest.fixture(scope="module")
def java_environment() -> dict[str, str]:
    """Where Kafka's client is, and a Java that runs it; empty where it can't be had."""
    try:
        java, jars = Path(find_java()), kafka_jars()
    except BrokerUnavailableError:
        return {}
    return {"CLIENT_JARS": str(jars), "JAVA": str(java)}


Played = dict[Path, Future[str | None]]


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest,
    broker: Broker,
    tmp_path_factory: pytest.TempPathFactory,
    java_environment: dict[str, str],
) -> Iterator[Played]:
    """The pages that tests were chosen for, gone through side by side: readers mostly wait."""
    chosen = [item.callspec.params.get("page") for item in request.session.items if hasattr(item, "callspec")]
    # Those of the tutorial take longest, so they begin.
    pages = sorted((page for page in PAGES if page in chosen), key=lambda page: page.parent.name != "tutorial")
    folders = {page: tmp_path_factory.mktemp("reader") for page in pages}
    # Once, if the code has changed: readers side by side would each wait for it.
    subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, check=True, timeout=COMPILE_LIMIT_S)
    with ThreadPoolExecutor(READERS) as pool:
        yield {
            page: pool.submit(_play, page, broker.bootstrap_servers, folders[page], java_environment) for page in pages
        }
        pool.shutdown(cancel_futures=True)


def _play(page: Path, bootstrap_servers: str, folder: Path, extra: dict[str, str]) -> str | None:
    """Go through a page; returns what it needs and can't be had here, if anything."""
    left_out: str | None = None
    with Session(_name(page), bootstrap_servers, folder, extra) as session:
        try:
            for block in _in_session(page):
                if block.verb == "needs" and block.what not in session.environ:
                    left_out = block.what
                elif not (left_out and block.verb == "output"):
                    session.play(block)
        finally:
            asyncio.run(_delete_topics_of(session))
    return left_out


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(COMPILE_LIMIT_S + PAGES_LIMIT_S)
@pytest.mark.parametrize("page", [page for page in PAGES if _in_session(page)], ids=_name)
def test_a_reader_who_types_what_the_page_says_gets_what_it_says(page: Path, played: Played) -> None:
    if left_out := played[page].result(timeout=PAGES_LIMIT_S):
        pytest.skip(f"all but what needs {left_out} was run")


async def _delete_topics_of(session: Session) -> None:
    environ = {**NO_FILE, "KAFKA_BOOTSTRAP_SERVERS": session.environ["KAFKA_BOOTSTRAP_SERVERS"]}
    async with admin_client(load_settings(environ=environ)) as admin:
        names = [name for name in await describe_topics(admin) if session.suffix in name]
        if names:
            await delete_topics(admin, names)


# -- the reference ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts of docs/, as modules."""
    sys.path.insert(0, str(DOCS))
    try:
        names = ("generate_reference", "build_site", "make_timelines")
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(DOCS))


def test_every_generated_part_is_in_a_page_and_names_what_the_code_has(scripts: dict[str, ModuleType]) -> None:
    parts = scripts["generate_reference"].PARTS
    used = re.findall(r"^<!-- generated: (\S+) -->$", "\n".join(page.read_text() for page in PAGES), re.MULTILINE)
    assert sorted(used) == sorted(parts)
    settings, operators = parts["settings"](), parts["operators"]()
    assert all(f"`{row.key}`" in settings for row in reference())
    assert all(f"`{row.key.split('.', 2)[2]}`" in operators for row in operator_reference())


def test_every_variable_of_the_reference_sets_its_setting(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    (secret := tmp_path / "secret").write_text("a-secret\n")
    for row in reference():
        name = scripts["generate_reference"].environment_name(row.key)
        value = str(secret) if row.key.endswith(".file") else row.default
        if name and value:
            assert "is not a setting" not in _complaint({**NO_FILE, name: value}), row.key


def _complaint(environ: dict[str, str]) -> str:
    """What is said against a variable on its own; a password, for one, has no effect without a protocol."""
    try:
        load_settings(None, environ=environ)
    except ConfigError as error:
        return str(error)
    return ""


def test_the_timelines_are_what_the_engine_does(scripts: dict[str, ModuleType]) -> None:
    module = scripts["make_timelines"]
    for scenario in module.SCENARIOS:
        path = module.FOLDER / f"{scenario.name}.svg"
        assert path.read_text() == module.draw(scenario), f"run docs/make_timelines.py: {path.name} is another"


# -- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built as `make docs` builds it."""
    done = subprocess.run(
        [sys.executable, "docs/build_site.py"], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return ROOT / "site"


def test_the_site_builds_strictly_with_every_page_in_its_navigation(site: Path) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | {"changelog.md"}
    assert named == written
    for name in named - {"index.md"}:
        assert (site / name.removesuffix(".md") / "index.html").is_file()


def test_nothing_of_the_site_is_loaded_from_another_host(site: Path, scripts: dict[str, ModuleType]) -> None:
    assert not scripts["build_site"].foreign_resources(site)


def test_a_foreign_font_script_or_broken_link_would_be_found(tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    module = scripts["build_site"]
    foreign = (
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<script src="//cdn.example/x.js"></script>',
        '<img srcset="a.png 1x, https://cdn.example/b.png 2x">',
        "<style>@font-face { src: url(https://fonts.example/a.woff2) }</style>",
        '<p style="background: url(https://cdn.example/a.png)">',
    )
    for html in foreign:
        (tmp_path / "index.html").write_text(f"<html><head></head><body>{html}</body></html>")
        module.harden(tmp_path)
        assert any("example" in line for line in module.foreign_resources(tmp_path)), html
    (tmp_path / "index.html").write_text("<html><head></head></html>")
    assert module.foreign_resources(tmp_path) == ["index.html: no Content-Security-Policy"]
    (tmp_path / "index.html").write_text('<a href="https://elsewhere.example/">told, not loaded</a><a href="no/">x</a>')
    assert list(module.broken_links(tmp_path)) == ["index.html: no/"]
    (tmp_path / "index.html").write_text('<p id="here"><a href="#there">x</a><a href="#here">y</a>')
    assert list(module.broken_links(tmp_path)) == ["index.html: #there (no such heading)"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; apt-get install chromium brings one")
async def test_a_browser_shows_and_searches_the_site_without_asking_another_host(site: Path) -> None:
    playwright = pytest.importorskip("playwright.async_api", reason="playwright comes with the dev extra")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            del format, arguments

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wrong: list[str] = []
    try:
        async with playwright.async_playwright() as running:
            browser = await running.chromium.launch(
                executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
            )
            page = await browser.new_page()
            page.on("request", lambda sent: None if "//127.0.0.1:" in sent.url else wrong.append(sent.url))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            root = f"http://127.0.0.1:{server.server_port}"
            for address in ("/", "/reference/library/", "/explanation/watermarks/"):
                await page.goto(root + address)
            images = page.locator("article img")
            assert await images.count() == 4
            assert await images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
            await page.keyboard.press("Control+k")
            await page.keyboard.type("murmur2")
            await page.get_by_text("Why murmur2 and murmur3").last.wait_for(timeout=10_000)
            await browser.close()
    finally:
        server.shutdown()
        server.server_close()
    assert not wrong

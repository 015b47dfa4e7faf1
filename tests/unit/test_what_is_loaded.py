"""What a process loads before it does anything: these lists may get shorter, and longer only with a reason.

Each module costs some tenths of a millisecond, each package of others 5 to 60, of every start of every container.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import workers

OTHERS = {  # what a worker can't do without, and what that loads itself
    "aiokafka": {"aiokafka", "async_timeout", "packaging", "typing_extensions", "cramjam"},
    "msgspec": {"msgspec"},
    "orjson": {"orjson"},
    "prometheus_client": {"prometheus_client"},
    "pydantic": {"annotated_types", "pydantic", "pydantic_core", "typing_inspection"},
    "structlog": {"structlog", "greenlet"},
    "typer": {"annotated_doc", "click", "shellingham", "typer"},
}
RICH = {"rich", "pygments", "markdown_it", "mdurl", "typing_extensions", "attr"}  # attr where it is installed
UNUSED = (  # in a worker as it is by default
    "workers.apps",
    "workers.streams",
    "workers.testing",
    "workers.settings.reference",
    "exchange_calendars",
    "pandas",
    "numpy",
    "rich",
    "pygments",
    "attr",
)
OF_HELP = {"__init__", "__main__", "errors", "commands"}


def loaded_by(code: str, cwd: Path) -> set[str]:
    """The modules that a process has after ``code``, without those that it began with."""
    script = (
        f"import json, sys\nbefore = set(sys.modules)\n{code}\n"
        "sys.stderr.write(chr(10) + json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        check=True,
    )
    found: list[str] = json.loads(done.stderr.rsplit("\n", 1)[1])
    return set(found)


def packages(modules: set[str]) -> set[str]:
    """The packages of others that modules belong to."""
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"workers"}
    return {top for top in tops if not top.startswith(("_", "cython_runtime"))}


def of_package(modules: set[str]) -> set[str]:
    return {module for module in modules if module.partition(".")[0] == "workers"}


def test_importing_the_package_loads_nothing_of_it(tmp_path: Path) -> None:
    loaded = loaded_by("import workers", tmp_path)
    assert of_package(loaded) == {"workers"}
    assert not packages(loaded)
    assert "asyncio" not in loaded


def test_a_name_loads_what_it_needs(tmp_path: Path) -> None:
    loaded = loaded_by("from workers import Tick, PartitioningSpec\nimport workers\nworkers.WorkersError", tmp_path)
    assert {"workers.core.ticks", "workers.core.partitioning", "workers.errors"} <= loaded
    assert not {module for module in loaded if module.startswith(("workers.streams", "workers.kafka", "aiokafka"))}


def test_all_names_of_the_library_load_neither_client_nor_settings(tmp_path: Path) -> None:
    names = [name for name in workers.__all__ if name != "AdaptiveThrottle"]
    loaded = loaded_by(f"from workers import {', '.join(names)}", tmp_path)
    assert not packages(loaded) & {"aiokafka", "pydantic", "structlog", "rich", "numpy"}


def test_help_loads_the_commands_and_nothing_that_they_work_with(tmp_path: Path) -> None:
    loaded = loaded_by(
        "sys.argv = ['workers', '--help']\nfrom workers.commands.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code",
        tmp_path,
    )
    rooms = {module.split(".")[1] if "." in module else "__init__" for module in of_package(loaded)}
    assert rooms <= OF_HELP, rooms
    assert "asyncio" not in loaded
    assert packages(loaded) <= OTHERS["typer"] | RICH


def test_a_worker_loads_what_it_works_with(tmp_path: Path) -> None:
    loaded = loaded_by(
        "sys.argv = ['workers', 'run']\nfrom workers.commands import cli, run\n"
        "def stop(make, **_): raise SystemExit\nrun.run_async = stop\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code",
        tmp_path,
    )
    assert "workers.worker.worker" in loaded, "or this test looks at nothing"
    unused = {module for module in loaded if any(f"{module}.".startswith(f"{each}.") for each in UNUSED)}
    assert not unused
    assert packages(loaded) <= set().union(*OTHERS.values()) | {"uvloop", "mmh3"}


def test_no_garbage_is_looked_for_in_what_is_loaded(tmp_path: Path) -> None:
    loaded_by(
        "import gc\nsys.argv = ['workers', 'run']\nfrom workers.commands import cli, run\n"
        "looks = []\ngc.callbacks.append(lambda phase, info: looks.append(info['generation']))\n"
        "def stop(make, **_):\n"
        "    assert gc.isenabled() and gc.get_freeze_count() > 50_000 and 2 not in looks, looks\n"
        "    raise SystemExit\n"
        "run.run_async = stop\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code",
        tmp_path,
    )


def test_rich_can_be_loaded_after_a_command_left_it_out(tmp_path: Path) -> None:
    loaded = loaded_by(
        "from workers.commands.common import building\nwith building(): import structlog\nimport rich.console",
        tmp_path,
    )
    assert {"structlog", "rich.console"} <= loaded


def test_names_are_found_like_those_of_any_module() -> None:
    scope: dict[str, object] = {}
    exec("from workers import *", scope)
    assert set(workers.__all__) <= scope.keys()
    assert set(workers.__all__) <= set(dir(workers))
    assert not hasattr(workers, "no_such_name")

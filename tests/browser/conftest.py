"""JupyterLab and Chromium for the browser tests: one server and one page a session, one notebook after the other.

COURSE_REQUIRE_BROWSER=1 makes a missing browser a failure; else the tests are skipped with a line that says what is
missing. COURSE_SCREENSHOTS=FOLDER keeps pictures of what the tests saw, at two widths, in both themes.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from student import NOTEBOOKS, WIDTHS, Student

SECONDS_TO_START = 120
LONGEST = {"capstone", "week05", "week07"}  # come first, so that no process still works long after the others
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
SETTINGS = {
    # All cells are drawn at once: the tests look at every one.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "contentVisibility"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


def missing() -> str:
    """What stands in the way of the browser tests, in one line, or nothing."""
    if not any(map(shutil.which, CHROMIUMS)):
        return f"no Chromium on the PATH (looked for {', '.join(CHROMIUMS)})"
    if find_spec("jupyterlab") is None:
        return "JupyterLab is not installed"
    if find_spec("playwright") is None:
        return "playwright is not installed"
    return ""


@pytest.fixture(scope="session")
def needs_browser():
    """Skip, or fail where COURSE_REQUIRE_BROWSER asks for it, when the browser tests cannot run here."""
    if reason := missing():
        if os.environ.get("COURSE_REQUIRE_BROWSER", "0") not in ("", "0"):
            pytest.fail(f"COURSE_REQUIRE_BROWSER is set, and the browser tests cannot run: {reason}.", pytrace=False)
        pytest.skip(f"browser tests: {reason}")


@pytest.fixture(scope="session")
def server(needs_browser, tmp_path_factory):
    """The address of a JupyterLab of our own, in a folder of copies; it ends with all its kernels."""
    home = tmp_path_factory.mktemp("jupyter")
    work, settings = home / "work", home / "settings"
    work.mkdir()
    settings.mkdir()
    for notebook in NOTEBOOKS:
        shutil.copy(notebook, work)
    (settings / "overrides.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
    environment = {name: str(home / name.lower()) for name in folders}
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--notebook-dir={work}"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *("--IdentityProvider.token=", "--ServerApp.password=", "--ServerApp.terminals_enabled=False"),
        *(f"--LabApp.app_settings_dir={settings}", f"--LabApp.user_settings_dir={home / 'user'}"),
        *(f"--LabApp.workspaces_dir={home / 'workspaces'}", "--LabApp.expose_app_in_browser=True"),
        *("--LabApp.extension_manager=readonly", "--LabApp.news_url="),
        # Should nobody be left to end it, it ends itself.
        *("--MappingKernelManager.cull_idle_timeout=300", "--MappingKernelManager.cull_interval=60"),
        *("--MappingKernelManager.cull_connected=True", "--ServerApp.shutdown_no_activity_timeout=300"),
    ]
    log = (home / "server.log").open("w", encoding="utf-8")
    process = subprocess.Popen(
        command,
        env={"OMP_NUM_THREADS": "1", **os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process, Path(log.name))
        yield address
    finally:
        _end(process)
        log.close()


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("JupyterLab did not start:\n" + log.read_text(encoding="utf-8")[-3000:], pytrace=False)


def _end(process: subprocess.Popen) -> None:
    """End the server and the kernels: first by asking, then all that is left of its session."""
    kernels = _sessions_below(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in {process.pid, *kernels}:
            try:
                os.killpg(group, number)
            except (ProcessLookupError, PermissionError):
                continue
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue


def _sessions_below(leader: int) -> set[int]:
    """The process groups of the leader's descendants; a kernel has one of its own."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,pgid="], capture_output=True, text=True).stdout
    rows = [tuple(map(int, line.split())) for line in listing.splitlines()]
    family, found = {leader}, set()
    while new := [(pid, group) for pid, parent, group in rows if parent in family and pid not in family]:
        family.update(pid for pid, _ in new)
        found.update(group for _, group in new)
    return found - {os.getpgrp()}


@pytest.fixture(scope="session")
def page(server):
    """JupyterLab in Debian's Chromium, or another one on the PATH, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, CHROMIUMS)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        page = chromium.new_page(viewport={"width": WIDTHS[0], "height": 900})
        page.goto(f"{server}/lab")
        page.wait_for_function("() => window.jupyterapp?.restored", timeout=1000 * SECONDS_TO_START)
        page.evaluate("() => window.jupyterapp.restored.then(() => { window.jupyterapp.shell.collapseLeft(); })")
        yield page
        chromium.close()


@pytest.fixture(scope="session")
def screenshots():
    """The folder for pictures, or None."""
    folder = os.environ.get("COURSE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) if folder else None


def pytest_generate_tests(metafunc):
    """Each test for each week, week after week and in one process, so that each notebook is opened and run once."""
    if "student" in metafunc.fixturenames:
        weeks = {notebook.stem.split("_")[0]: notebook for notebook in NOTEBOOKS}
        order = sorted(weeks, key=lambda week: week not in LONGEST)
        metafunc.parametrize("student", [weeks[week] for week in order], ids=order, indirect=True, scope="module")


def pytest_xdist_make_scheduler(config, log):
    """A week's tests go to one process. `--dist loadgroup` would do, but does nothing under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class WeekByWeek(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.rpartition("[")[2]

    return WeekByWeek(config, log)


@pytest.fixture(scope="module")
def student(request, page, screenshots):
    """A student before a week's notebook, all of its cells run. The tests of a week share it, in their order."""
    student = Student(request.param, page, screenshots)
    try:
        student.open()
        student.run_all()
        yield student
    finally:
        student.close()

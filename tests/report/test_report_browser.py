"""The report in a real browser: it loads nothing, logs nothing, its script runs, in both schemes and on a phone."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlparse

import pytest
import report_ledgers

from edgesmith.host.records import ReportSection
from edgesmith.report import render_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    *("--enable-logging=stderr", "--virtual-time-budget=2000"),
)

BROWSERS_OWN_HOSTS = (".google.com", ".googleapis.com", ".gvt1.com")
"""Where Chromium itself calls home at start, whatever page it shows."""


def visit(page: Path, tmp_path: Path, *, scheme: int = 1, width: int = 1280) -> tuple[str, list[str], set[str]]:
    """Return the final document, the console lines, and the hosts that were asked for."""
    log = tmp_path / "net.json"
    command = [
        *(BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"),
        *(f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},2000"),
        *("--dump-dom", page.as_uri()),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in finished.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(log.read_text())["events"]
    hosts = {urlparse(event["params"]["url"]).hostname for event in events if "url" in event.get("params", {})}
    return finished.stdout, console, {host for host in hosts if host and not host.endswith(BROWSERS_OWN_HOSTS)}


def test_the_check_itself_sees_requests_and_console_errors(tmp_path: Path):
    page = tmp_path / "loud.html"
    page.write_text("<img src='http://evil.example/x.png'><script>console.error('loud'); missing()</script>")
    _, console, hosts = visit(page, tmp_path)
    assert hosts == {"evil.example"}
    assert any("loud" in line for line in console)


@pytest.mark.parametrize(("scheme", "offered"), [(1, "Dark"), (0, "Light")])
def test_report_runs_clean_in_both_schemes(tmp_path: Path, scheme: int, offered: str):
    directory = report_ledgers.write(tmp_path / "artifact", report_ledgers.full_ledger())
    document, console, hosts = visit(render_report(directory), tmp_path, scheme=scheme)
    assert hosts == set() and console == []
    (button,) = re.findall(r"<button[^>]*>([^<]*)</button>", document)
    assert button == offered


def test_hostile_report_runs_and_loads_nothing(tmp_path: Path):
    attack = "<img src=http://evil.example/a><script>document.title='owned'</script>"
    ledger = report_ledgers.full_ledger(source=attack, verdict=attack)
    section = ReportSection(attack, attack + "<style>@import 'http://evil.example/b.css'</style>")
    page = render_report(report_ledgers.write(tmp_path / "artifact", ledger), [section])
    document, _, hosts = visit(page, tmp_path)
    assert hosts == set()
    assert "<title>owned" not in document and "Edgesmith report</title>" in document


@pytest.mark.parametrize("make", [report_ledgers.full_ledger, report_ledgers.crowded_ledger])
def test_a_phone_needs_no_sideways_scrolling(tmp_path: Path, make):
    page = render_report(report_ledgers.write(tmp_path / "artifact", make()))
    # Headless windows have a minimum width, frames have none. The page tells the outer one how far it overflows.
    root = "document.documentElement"
    report = f"parent.postMessage({root}.scrollWidth - {root}.clientWidth, '*')"
    probe = tmp_path / "artifact" / "probe.html"
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    probe.write_text(text.replace("</body>", f"<script>{report}</script></body>"))
    outer = tmp_path / "outer.html"
    listen = "onmessage = (event) => { document.body.id = 'overflow' + event.data }"
    outer.write_text(f"<body><script>{listen}</script><iframe width=390 height=900 src='{probe.as_uri()}'></iframe>")
    document, _, _ = visit(outer, tmp_path)
    assert '<body id="overflow0">' in document

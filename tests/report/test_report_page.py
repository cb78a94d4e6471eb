"""The HTML report: what it says, what it survives, and that nothing in it can run or load anything."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import report_ledgers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.errors import MeasurementError
from edgesmith.host.records import ReportSection, Tier
from edgesmith.ledger import LayerError, Ledger, LedgerRow, Measurement, OutputError
from edgesmith.report import render_report

HOSTILE = (
    "</title></style></script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'`{{7*7}}&\0"
)
HOSTILE_STRUCTURE = {
    "structure": {
        "summary": HOSTILE,
        "streams": [{"width": HOSTILE, "blocks": [{"norm": HOSTILE, "residuals": [{"mlps": [{"width": HOSTILE}]}]}]}],
        "heads": [{"kind": HOSTILE, "classes": [1], "output": {"kind": HOSTILE}}, 7, None],
        "convolutions": {"not": "a list"},
    },
    "cost": {HOSTILE: 3, "macs": HOSTILE},
}
LIMIT_BYTES = 1_000_000


class Page(HTMLParser):
    """Collects elements, attributes and visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        self.open.pop()

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page(tmp_path: Path, ledger: Ledger, sections=(), *, bare: bool = False) -> Page:
    return Page(render_report(report_ledgers.write(tmp_path / "artifact", ledger, bare=bare), sections))


def assert_inert(found: Page) -> None:
    """Check that the page holds its own script only, and no address that a browser would fetch."""
    assert len(found.all("script")) == 1 and "src" not in found.all("script")[0]
    assert not found.all("img") and not found.all("object") and not found.all("embed")
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "action", "data"):
            address = attributes.get(name) or ""
            assert address.startswith(("#", "data:,")) or not address, (tag, attributes)
    assert "@import" not in found.source and "url(" not in found.source
    assert len(found.source.encode()) < LIMIT_BYTES


def test_full_report_says_everything(tmp_path: Path):
    found = page(tmp_path, report_ledgers.full_ledger())
    for words in (
        "2.58 times faster and 3.9 times smaller",
        "97.08 %",
        "within the noise; 95 % interval",
        "from 21.4 ms",
        "quartiles 8.06 to 8.61",
        "✗ missed , 3.20 MB too much",
        "Undone: static quantization is 1.3 times faster",
        "worst 24.4 dB at block 3 / mlp / output",
        "0 to 5 384 post 12 heads of 32 1536, gelu",
        "Softmax has no integer kernel on this target 6 nodes",
        "Ranges come from 128 samples",
        "edgesmith compile ./minilm-news",
        "ranges: percentile",
        "9f2c9f2c",
        "445 texts, sha256 9a02",
        "Made-up CPU 3000",
        "from the store",
    ):
        assert words in found.text, words
    assert_inert(found)


def test_plots_have_words_for_those_who_do_not_see_them(tmp_path: Path):
    found = page(tmp_path, report_ledgers.full_ledger())
    plots = [one for one in found.all("svg") if one.get("role") == "img"]
    assert len(plots) == 3
    assert any("Chosen, onnx-cpu: accuracy 97.08 % at 8.31 ms" in one["aria-label"] for one in plots)
    assert all(one.get("role") == "img" or one.get("aria-hidden") == "true" for one in found.all("svg"))
    assert all("scope" in one for one in found.all("th"))


def test_each_number_of_another_tier_is_badged(tmp_path: Path):
    ledger = report_ledgers.full_ledger()
    size = Measurement(value=1e6, unit="bytes", tier=Tier.SIMULATED)
    rows = (*ledger.rows[:-1], ledger.rows[-1].model_copy(update={"size_bytes": size}))
    found = page(tmp_path, ledger.model_copy(update={"rows": rows}))
    assert "1.00 MB simulated" in found.text
    assert "mixed" in found.text


def test_hostile_strings_stay_text_wherever_they_stand(tmp_path: Path):
    plain = report_ledgers.full_ledger()
    hostile = plain.rows[3].model_copy(
        update={
            **dict.fromkeys(("stage", "method", "distribution", "reason"), HOSTILE),
            "remarks": (HOSTILE,),
            "skipped": {HOSTILE: HOSTILE},
            "errors": (OutputError(against=HOSTILE, sqnr_db=1, cosine=1, max_abs=1),),
            "layers": tuple(LayerError(value=HOSTILE, layer=HOSTILE, sqnr_db=db) for db in (3.0, 2.0, 1.0)),
            "metric": Measurement(value=1, unit=HOSTILE, tier=Tier.REFERENCE, conditions={HOSTILE: HOSTILE}),
        }
    )
    ledger = plain.model_copy(
        update={
            **dict.fromkeys(("source", "target", "metric", "verdict"), HOSTILE),
            **{name: {HOSTILE: HOSTILE} for name in ("data", "versions", "machine")},
            "budget": {HOSTILE: 1.0},
            "plugins": (HOSTILE,),
            "rows": (hostile, *plain.rows[1:]),
        }
    )
    directory = report_ledgers.write(tmp_path / "artifact", ledger)
    (directory / "recipe.yaml").write_text(HOSTILE)
    (directory / "structure.json").write_text(json.dumps(HOSTILE_STRUCTURE))
    files = {HOSTILE: {"sha256": HOSTILE, "size_bytes": 1}}
    (directory / "manifest.json").write_text(
        json.dumps({"command": HOSTILE, "files": files, "versions": {HOSTILE: HOSTILE}})
    )
    found = Page(render_report(directory, [ReportSection(HOSTILE, HOSTILE)]))
    assert_inert(found)
    assert "<script>alert(1)</script>" in found.text
    assert "49" not in found.text.replace("{{7*7}}", "")[:200]
    assert "\0" not in found.source


def test_plugin_sections_are_framed_without_rights(tmp_path: Path):
    sections = [ReportSection("Engine", "<h3>Layers</h3><script>parent.document.body.remove()</script>")]
    (frame,) = page(tmp_path, report_ledgers.full_ledger(), sections).all("iframe")
    assert frame["sandbox"] == "" and frame["title"] == "Engine"
    assert "<h3>Layers</h3>" in frame["srcdoc"]


def test_only_the_pages_own_script_may_run(tmp_path: Path):
    found = page(tmp_path, report_ledgers.full_ledger())
    (policy,) = [one["content"] for one in found.all("meta") if one.get("http-equiv")]
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_a_ledger_with_nothing_measured(tmp_path: Path):
    found = page(tmp_path, report_ledgers.minimal_ledger(), bare=True)
    assert "Nothing was measured in this compile." in found.text
    assert "No verdict was recorded." in found.text
    assert not [one for one in found.all("svg") if one.get("role") == "img"]
    assert_inert(found)


def test_sixty_rows_with_long_names(tmp_path: Path):
    found = page(tmp_path, report_ledgers.crowded_ledger())
    assert len([one for one in found.all("tr") if "note" not in (one.get("class") or "").split()]) > 60
    assert "No stage met the budget." in found.text
    assert_inert(found)


MEASURED = ("metric", "metric_change", "latency_ms", "speedup", "size_bytes", "peak_memory_bytes")


@settings(max_examples=40, deadline=None)
@given(
    left_out=st.sets(st.sampled_from((*MEASURED, "errors", "layers"))),
    rows=st.integers(1, 5),
    value=st.sampled_from((0.0, -3.0, 1e-9, 1e12, math.inf)),
    spoiled=st.sampled_from((*MEASURED, "")),
    higher=st.booleans(),
)
def test_any_part_may_be_missing_or_extreme(tmp_path_factory, left_out, rows, value, spoiled, higher):
    defaults = {name: LedgerRow.model_fields[name].default for name in left_out}
    ledger = report_ledgers.full_ledger()
    kept = [row.model_copy(update=defaults) for row in ledger.rows[:rows]]
    if spoiled and getattr(kept[-1], spoiled):
        strange = getattr(kept[-1], spoiled).model_copy(update={"value": value, "low": None, "high": None})
        kept[-1] = kept[-1].model_copy(update={spoiled: strange})
    changed = report_ledgers.full_ledger(rows=tuple(kept), chosen=rows - 1, metric_higher_is_better=higher)
    found = page(tmp_path_factory.mktemp("report"), changed, bare=True)
    assert_inert(found)
    assert "nan" not in found.source.lower()


def test_metrics_where_less_is_better(tmp_path: Path):
    ledger = report_ledgers.full_ledger(metric="perplexity", metric_higher_is_better=False)
    rows = [
        row.model_copy(update={"metric": Measurement(value=value, unit="", tier=Tier.REFERENCE), "metric_change": None})
        for row, value in zip(ledger.rows, (20.0, 20.0, 21.0, 22.0, 22.0), strict=True)
    ]
    found = page(tmp_path, ledger.model_copy(update={"rows": tuple(rows)}))
    assert "▼ +2.000" in found.text
    assert "Down and left is better" in found.text
    assert "✗ missed , 1.500 too much" in found.text


def test_equal_outputs_are_called_equal(tmp_path: Path):
    ledger = report_ledgers.full_ledger()
    equal = OutputError(against="source", sqnr_db=math.inf, cosine=1, max_abs=0)
    row = ledger.rows[1].model_copy(update={"errors": (equal,)})
    assert "equal" in page(tmp_path, ledger.model_copy(update={"rows": (ledger.rows[0], row), "chosen": 1})).text


@pytest.mark.parametrize("name", ["structure.json", "manifest.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "\udcff", "[" * 100_000])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str):
    directory = report_ledgers.write(tmp_path / "artifact", report_ledgers.full_ledger())
    (directory / name).write_text(content, errors="surrogateescape")
    with pytest.raises(MeasurementError, match=name):
        render_report(directory)
    assert not (directory / "report.html").exists()


def test_rendering_twice_gives_the_same_page(tmp_path: Path):
    directory = report_ledgers.write(tmp_path / "artifact", report_ledgers.full_ledger())
    assert render_report(directory).read_bytes() == render_report(directory).read_bytes()


def test_structure_of_a_real_graph_is_shown(tmp_path: Path):
    from edgesmith.graph.structure import find_structure

    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 3, 8, 8]))
    kernel = ir.Value(name="kernel", const_value=ir.tensor(np.ones((4, 3, 3, 3), dtype=np.float32), name="kernel"))
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2]}
    node = ir.node("Conv", [x, kernel], attributes=attributes, name="node_Conv_0")
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[kernel], opset_imports={"": 20})
    data = {"structure": find_structure(ir.Model(graph, ir_version=10)).to_json(), "cost": {"parameters": 108}}
    directory = report_ledgers.write(tmp_path / "artifact", report_ledgers.full_ledger(), bare=True)
    (directory / "structure.json").write_text(json.dumps(data))
    text = Page(render_report(directory)).text
    assert "Convolutions 1" in text and "3×3 3 to 4" in text and "2×2" in text
    assert "1 convolution" in text
    # Names are copied into the option `skip`, so they stand as they are.
    assert "node_Conv_0" in text


def test_the_layer_panel_of_the_step_with_the_largest_error_is_open(tmp_path: Path):
    def layers(*decibels: float) -> dict:
        return {"layers": tuple(LayerError(value=f"v{db}", layer=f"l{db}", sqnr_db=db) for db in decibels)}

    stages = {1: layers(40, 60), 2: layers(20, 30), 3: layers(math.inf, math.inf), 4: layers(5, 9) | {"method": ""}}
    full = report_ledgers.full_ledger()
    rows = tuple(row.model_copy(update=stages.get(row.index, {})) for row in full.rows)
    page = Page(render_report(report_ledgers.write(tmp_path / "artifact", report_ledgers.full_ledger(rows=rows))))
    panels = page.source.split('id="layers"')[1].split("</section>")[0].split("<details")[1:]
    assert [panel.startswith(" open") for panel in panels] == [True, False, False, False]
    assert [next(stage for stage in rows if stage.stage in panel).index for panel in panels] == [2, 1, 3, 4]


def test_a_layer_panel_without_any_error_stays_closed(tmp_path: Path):
    equal = (LayerError(value="v", layer="l", sqnr_db=math.inf), LayerError(value="w", layer="m", sqnr_db=math.inf))
    rows = tuple(
        row.model_copy(update={"layers": equal if row.layers else ()}) for row in report_ledgers.full_ledger().rows
    )
    page = Page(render_report(report_ledgers.write(tmp_path / "artifact", report_ledgers.full_ledger(rows=rows))))
    panel = page.source.split('id="layers"')[1].split("<details")[1]
    assert not panel.startswith(" open")

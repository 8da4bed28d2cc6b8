"""report.html in a real browser; skipped where there is none."""

import io
import shutil

import chromium
import pytest
from eval_standin import prepare
from rich.console import Console

from asd_policy.eval.options import EvalOptions
from asd_policy.eval.show import page as module
from asd_policy.eval.studies.evaluate import evaluate

PROGRAM = chromium.find()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"needs a Chromium, one of: {', '.join(chromium.NAMES)}"
)

# Elements that stick out of the window and are not inside something that scrolls.
OVERFLOWING = """
[...document.querySelectorAll("body *")].filter(e =>
    e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
    && !e.closest(".box, pre, svg")).map(e => e.tagName + " " + e.className)
"""
# Text that is too small to be read, in CSS pixels (an em, as drawn: figures are scaled).
SMALL = """
(() => { const found = [];
for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || e.tagName == "style"
        || ![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
        continue;
    const svg = e.closest("svg");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(getComputedStyle(e).fontSize) * scale;
    if (size < 9) found.push([e.textContent, size]);
} return found; })()
"""
# Text against the background behind it: the contrast ratio of WCAG 2.
FAINT = """
(() => { const found = [];
const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || e.tagName == "style"
        || ![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
    const style = getComputedStyle(e);
    const ink = light(parse(e.closest("svg") ? style.fill : style.color));
    let p = e;
    while (p && parse(getComputedStyle(p).backgroundColor)[3] === 0) p = p.parentElement;
    const back = light(parse(getComputedStyle(p || document.body).backgroundColor));
    const ratio = (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
    if (ratio < 4.5) found.push([e.tagName, e.textContent.slice(0, 40), ratio]);
} return found; })()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with as many samplers as there are, long names, and films."""
    out = tmp_path_factory.mktemp("page") / "run"
    names = ("asd", "asd-slope", "asd-memory", "ddpm", "ddim", "paradigms")
    options = EvalOptions(samplers=names, episodes=3, horizon=9, video=1, out=out)
    evaluate(options, prepare=prepare, console=Console(file=io.StringIO(), width=100))
    return out


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium.page(PROGRAM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable(tab, folder, width, scheme):
    tab.open(folder / "report.html", width, scheme)
    assert tab.run("document.querySelectorAll('figure > svg').length") == 6
    assert tab.run("innerWidth") == width
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(OVERFLOWING) == []
    assert tab.run(SMALL) == []
    assert tab.run(FAINT) == []
    assert tab.complaints() == []


# Of every table: whether its hint is seen, and whether it is wider than what it scrolls in.
HINTS = """
[...document.querySelectorAll(".box")].map(box => [
    box.querySelector(".scrolls").getBoundingClientRect().height > 9,
    box.scrollWidth > box.clientWidth])
"""
# Parts of hints that are outside of what is seen of their table, however far it is scrolled.
HIDDEN_HINTS = """
[...document.querySelectorAll(".box")].filter(box => {
    box.scrollLeft = 1e6;
    const hint = box.querySelector(".scrolls").getBoundingClientRect();
    const seen = box.getBoundingClientRect();
    return hint.left < seen.left || hint.right > seen.right + 1;
}).length
"""


@pytest.mark.parametrize("width", [320, 400, 700, 1400])
def test_tables_say_that_they_scroll_where_they_do(tab, folder, width):
    tab.open(folder / "report.html", width)
    hints = tab.run(HINTS)
    assert len(hints) == 8
    assert all(seen == scrolls for seen, scrolls in hints), hints
    assert tab.run(HIDDEN_HINTS) == 0
    wide = [scrolls for _, scrolls in hints]
    assert any(wide) == (width < 1400)
    assert not all(wide) or width < 700


@pytest.mark.parametrize("embedded", [True, False])
def test_no_request_leaves(tab, folder, tmp_path, monkeypatch, embedded):
    copied = shutil.copytree(folder, tmp_path / "copy")
    if not embedded:
        monkeypatch.setattr(module, "EMBEDDED_BYTES", 0)
        module.write_page(copied)
    tab.open(copied / "report.html", 1400)
    requests = tab.requests()
    own = (copied / "report.html").as_uri(), "data:", (copied / "videos").as_uri()
    assert requests[0] == own[0]
    assert all(request.startswith(own) for request in requests)
    assert tab.complaints() == []


def test_what_would_be_wrong_is_found(tab, folder, tmp_path):
    """A page with each fault: the checks above can fail."""
    text = (folder / "report.html").read_text()
    text = text.replace("default-src 'none';", "default-src *; script-src 'unsafe-inline';")
    fault = (
        '<img src="http://127.0.0.1:9/x.png" alt=""><div style="width: 3000px">wide</div>'
        '<p style="color: #eee; background: #fff; font-size: 5px">faint</p>'
        "<script>console.error('said')</script>"
    )
    path = tmp_path / "wrong.html"
    path.write_text(text.replace("<main>", "<main>" + fault).replace("img-src data:;", ""))
    tab.open(path, 400)
    assert any("127.0.0.1" in request for request in tab.requests())
    assert tab.run("document.documentElement.scrollWidth") > 400
    assert tab.run(OVERFLOWING)
    assert tab.run(SMALL)
    assert tab.run(FAINT)
    assert tab.complaints()
    tab.events.clear()

"""The page in a real browser: what is seen at desktop and phone width, light and dark, and on paper."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report import known_sweep as known

from scl_ray.report import build

pytestmark = pytest.mark.browser

# Says what the browser made of the page, then chooses in the gallery as a reader does.
PROBE = """<script>addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)];
  const visible = element => element.checkVisibility() && element.getBoundingClientRect().width > 0;
  const maps = () => all(".gallery")[0].querySelectorAll(".panel").values().toArray()
    .filter(visible).map(panel => [panel.getAttribute("aria-label"),
      [...panel.querySelectorAll(".case")].filter(visible).length]);
  const images = [...document.images], drawings = all("figure svg");
  const said = {images: images.length,
    broken: images.filter(image => !image.naturalWidth).length,
    drawings: drawings.length, flat: drawings.filter(s => visible(s) && s.getBoundingClientRect().height < 50).length,
    width: innerWidth, wide: document.documentElement.scrollWidth - innerWidth,
    background: getComputedStyle(document.body).backgroundColor,
    small: all("p, td, th, li, figcaption, summary, label, dd").filter(visible)
      .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12.5).length,
    first: maps(), choices: []};
  for (const choice of all(".gallery")[0].querySelectorAll("input")) {
    choice.focus(); const reached = document.activeElement === choice;
    choice.click(); said.choices.push([choice.closest("label").textContent.trim(), reached, maps()]);
  }
  parent.postMessage(JSON.stringify(said), '*');
});</script></body>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine")
    return found


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("browser")
    known.write(out)
    build(str(out), "demo")
    return (out / "demo/report/index.html").read_text()


def opened(chromium: str, folder: Path, page: str, *flags: str, name: str = "page") -> str:
    """The elements of what is *name*d after the page was loaded without an error."""
    (folder / "page.html").write_text(page)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-sync", "--disable-background-networking", "--disable-component-update",
               "--enable-logging=stderr", "--window-size=1280,900", f"--user-data-dir={folder / 'profile'}",
               "--virtual-time-budget=5000", *flags, f"file://{folder}/{name}.html"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ":CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def probed(chromium: str, folder: Path, page: str, *flags: str, width: int = 1280) -> dict:
    """What the probe tells of a copy of the page that allows it, in a frame, which can be as narrow as a phone."""
    told = "<script>addEventListener('message', event => { document.title = event.data; })</script>"
    frame = f'<iframe src="page.html" width="{width}" height="900" style="border:0"></iframe>'
    (folder / "frame.html").write_text(f'<!DOCTYPE html><link rel="icon" href="data:,"><title></title>{told}{frame}')
    allowed = page.replace("style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'")
    text = opened(chromium, folder, allowed.replace("</body>", PROBE), "--dump-dom", *flags, name="frame")
    return json.loads(re.search(r"<title>(.*?)</title>", text)[1])


def test_the_page_itself_runs_no_script_and_has_no_error(chromium, page, tmp_path):
    assert "<script" not in page
    opened(chromium, tmp_path, page, "--dump-dom")


def test_everything_is_shown_and_the_gallery_can_be_chosen_from(chromium, page, tmp_path):
    said = probed(chromium, tmp_path, page)
    assert said["images"] == len(known.METHODS) * known.SAMPLE * (1 + len(known.OBJECTIVES))
    assert (said["broken"], said["flat"], said["small"]) == (0, 0, 0)
    assert said["drawings"] == page.count("<figure>") > 12
    assert said["wide"] <= 0
    assert said["first"] == [["Maps of grad_cam", 8]]  # three best, two median, three worst
    assert all(reached for _, reached, _ in said["choices"])
    chosen = {label: shown for label, _, shown in said["choices"]}
    assert chosen["eigen_cam"] == [["Maps of eigen_cam", 8]]
    assert chosen["integrated_gradients"] == [["Maps of integrated_gradients", 8]]
    assert chosen["by sparseness"] == [["Maps of integrated_gradients", 8]]
    assert chosen["all, as sampled"] == [["Maps of integrated_gradients", known.SAMPLE]]


def test_a_phone_scrolls_down_and_not_aside(chromium, page, tmp_path):
    said = probed(chromium, tmp_path, page, width=390)
    assert said["width"] == 390
    assert said["wide"] <= 0
    assert (said["broken"], said["flat"], said["small"]) == (0, 0, 0)
    assert said["first"] == [["Maps of grad_cam", 8]]


def test_it_follows_the_readers_theme(chromium, page, tmp_path):
    assert (
        probed(chromium, tmp_path, page, "--blink-settings=preferredColorScheme=0")["background"] == "rgb(20, 23, 26)"
    )


def test_it_prints(chromium, page, tmp_path):
    opened(chromium, tmp_path, page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert 5 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 60

"""The web page, in Chromium on a live server."""

import asyncio
import hashlib
import threading
from dataclasses import dataclass

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.chromium import open_chromium, requested_urls, show
from tests.support.video_files import ffmpeg
from tests.support.video_service import LiveServer, OneByOne
from videoar.serving.limits import Limits
from videoar.serving.server import ServerSettings
from videoar.serving.video_job import JobEvent, VideoRequest
from videoar.storage.store import open_store

NO_LIMITS = Limits(requests_per_s=1e5, burst=10_000)
HOSTILE = "<img src=x onerror=\"document.title = 'run'\">"


class WithPreviews(OneByOne):
    """Two frames at three scales before anything else happens."""

    def __init__(self, store, loaded, gate):
        super().__init__(store, loaded, gate)
        self.previews = [_jpeg(2 << scale) for scale in range(3)]

    async def lineage(self, job_id):
        graph = await super().lineage(job_id)
        source = {"id": "source:0", "kind": "source", "licence": "CC0-1.0"}
        return graph | {"nodes": [*graph["nodes"], source, source]}

    async def events(self, job_id):
        for wave in range(6):
            frame, scale = divmod(wave, 3)
            yield JobEvent(
                job_id=job_id, kind="progress", wave=wave + 1, waves=10, frame=frame, scale=scale,
                images=(self.previews[scale],),
            )  # fmt: skip
            await asyncio.sleep(0.02)
        async for event in super().events(job_id):
            if event.kind != "progress":
                yield event


def _jpeg(size_px):
    return ffmpeg(
        "-f", "lavfi", "-i", f"testsrc=size={size_px}x{size_px}", "-frames:v", 1,
        "-f", "image2pipe", "-c:v", "mjpeg", "-",
    )  # fmt: skip


@dataclass
class Page:
    """The page in a browser."""

    browser: object
    service: OneByOne

    def find(self, css):
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def js(self, code):
        return self.browser.execute_script(f"return {code}")

    def until(self, code):
        return WebDriverWait(self.browser, 30, 0.05).until(lambda _: self.js(code), code)

    def generate(self, prompt, **settings):
        for name, value in {"prompt": prompt, **settings}.items():
            field = self.find(f"[name={name}]")
            if name != "input_reference":
                field.clear()
            field.send_keys(str(value))
        self.until("!document.getElementById('generate').disabled")
        self.find("#generate").click()


@pytest.fixture(scope="module")
def browser():
    driver = open_chromium()
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path, loaded):
    gate = threading.Event()
    gate.set()
    service = WithPreviews(open_store(tmp_path.as_uri()), loaded, gate)
    with LiveServer(service, ServerSettings(limits=NO_LIMITS)) as server:
        requested_urls(browser)
        show(browser, "light", 1280)
        browser.get(server.url)
        opened = Page(browser, service)
        opened.until("document.querySelectorAll('#model option').length == 1")
        yield opened
        assert all(
            url.startswith((server.url, "data:", "blob:")) for url in requested_urls(browser)
        )
        browser.get("about:blank")


def test_page_policy_allows_its_own_script_and_style_only(http):
    reply = http.get("/")
    policy = dict(
        part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert all(policy[kind].startswith("'sha256-") for kind in ("script-src", "style-src"))
    assert "://" not in reply.text


@pytest.mark.browser
def test_page_becomes_sharper_by_scales_and_then_plays_the_video(page):
    page.service.gate.clear()
    page.generate("a red circle", seconds=1, seed=3)
    page.until(
        "document.getElementById('step').textContent.startsWith('pass 6 of 10: frame 2, scale 3')"
    )
    widths = "[...document.querySelectorAll('#strip img')].map(i => i.naturalWidth)"
    page.until(f"{widths}.every(width => width == 8)")
    assert page.js(widths) == [8, 8]
    assert page.js("document.getElementById('progress').value") == 60
    page.service.gate.set()
    page.until("document.getElementById('player').currentTime > 0")
    assert page.js("document.getElementById('player').videoWidth") == 32
    assert page.find("#history .facts").text == "champion, 1 s, 32x32, seed 3"
    page.js("document.querySelector('#history video').parentElement.scrollIntoView()")
    page.until("document.querySelector('#history video').readyState >= 2")
    assert page.browser.get_log("browser") == []


@pytest.mark.browser
def test_page_text_from_outside_is_shown_and_does_nothing(page):
    request = VideoRequest(
        model="champion", prompt="a\x1b[2J\u202egnp.exe", seconds=1, size="32x32"
    )
    page.service.jobs.create(request, "model:0", None)
    page.browser.refresh()
    page.until("document.querySelector('#history .text')")
    assert page.find("#history .text").text == "a\\u001b[2J\\u202egnp.exe"
    page.generate(HOSTILE)
    page.until("document.getElementById('player').currentTime > 0")
    shown = [page.find("#shown").text, page.find("#history .text").text]
    assert shown == [HOSTILE, HOSTILE]
    assert page.js("document.title") == "VideoAR"
    assert page.js("document.querySelectorAll('img[onerror]').length") == 0


@pytest.mark.browser
def test_page_history_uses_again_shows_lineage_downloads_and_deletes(page, tmp_path):
    page.browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.generate("a red circle", seconds=1, seed=2**60 + 1, guidance=2)
    page.until("document.getElementById('player').currentTime > 0")
    page.generate("a blue square", seed="", guidance="")
    page.until("document.querySelectorAll('#history .download:not([hidden])').length == 2")
    page.browser.refresh()
    page.until("document.querySelectorAll('#history video[src]').length == 2")
    oldest = page.browser.find_elements(By.CSS_SELECTOR, "#history > li")[1]
    oldest.find_element(By.CLASS_NAME, "reuse").click()
    values = {
        name: page.find(f"[name={name}]").get_property("value")
        for name in ("prompt", "seconds", "seed", "guidance")
    }
    assert values == {
        "prompt": "a red circle",
        "seconds": "1",
        "seed": str(2**60 + 1),
        "guidance": "2",
    }
    oldest.find_element(By.CLASS_NAME, "lineage").click()
    page.until("document.getElementById('lineage').open")
    lines = [page.service.model.snapshot, "source videos: 2, CC0-1.0"]
    assert page.find("#nodes").text.splitlines() == lines
    page.find("#lineage button").click()
    oldest.find_element(By.CLASS_NAME, "download").click()
    WebDriverWait(page.browser, 30).until(lambda _: list(tmp_path.glob("video_*.mp4")))
    (file,) = tmp_path.glob("video_*.mp4")
    (job,) = [job for job in page.service.jobs.page(None, 9, "asc", {}.get) if job.id == file.stem]
    expected = page.service.jobs.content(job.id)
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(expected).digest()
    oldest.find_element(By.CLASS_NAME, "remove").click()
    page.browser.switch_to.alert.accept()
    page.until("document.querySelectorAll('#history > li').length == 1")
    assert page.service.jobs.get(job.id) is None


@pytest.mark.browser
def test_page_error_of_the_server_is_shown_and_the_form_stays(page):
    page.generate("a red circle", seconds=601)
    page.until("!document.getElementById('error').hidden")
    assert "seconds" in page.find("#error").text
    assert page.find("#prompt").get_property("value") == "a red circle"
    assert page.js("document.querySelectorAll('#history > li').length") == 0


@pytest.mark.browser
def test_page_video_is_cancelled_while_it_waits(page):
    page.service.gate.clear()
    page.generate("a red circle")
    page.until("document.querySelectorAll('#strip img').length == 2")
    page.find("#cancel").click()
    page.browser.switch_to.alert.accept()
    page.until("document.querySelectorAll('#history > li').length == 0")
    page.service.gate.set()
    assert page.service.jobs.page(None, 9, "asc", {}.get) == []


@pytest.mark.browser
def test_page_begins_with_an_image(page, png, tmp_path):
    (tmp_path / "first.png").write_bytes(png)
    page.generate("a red circle", input_reference=tmp_path / "first.png")
    page.until("document.getElementById('player').currentTime > 0")
    (job,) = page.service.jobs.page(None, 9, "asc", {}.get)
    assert job.request.init_sha256 == hashlib.sha256(png).hexdigest()


@pytest.mark.browser
def test_page_asks_for_a_key_where_the_server_has_keys(browser, served_store, loaded):
    keys = {hashlib.sha256(b"secret").hexdigest(): "name"}
    with LiveServer(
        OneByOne(served_store, loaded), ServerSettings(limits=NO_LIMITS, keys=keys)
    ) as server:
        browser.get(server.url)
        page = Page(browser, None)
        page.until("!document.getElementById('key-field').hidden")
        page.find("#key").send_keys("secret")
        page.generate("a red circle")
        page.until("document.getElementById('player').currentTime > 0")
        browser.get("about:blank")


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width_px"), [("light", 390), ("dark", 1280)])
def test_page_fits_the_width_and_works_by_keyboard(page, scheme, width_px):
    show(page.browser, scheme, width_px)
    page.find("#prompt").send_keys("a_red_circle" * 30, Keys.CONTROL, Keys.ENTER)
    page.until("document.getElementById('player').currentTime > 0")
    assert page.js("document.documentElement.scrollWidth") <= width_px
    background = page.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 380) == (scheme == "light")
    assert page.js(
        "[...document.querySelectorAll('input, select, textarea')].every(e => e.labels.length)"
    )
    order = []
    page.js("document.getElementById('prompt').focus()")
    for _ in range(8):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        order.append(page.js("document.activeElement.name || document.activeElement.id"))
    assert order[:6] == ["model", "seconds", "seed", "guidance", "temperature", "input_reference"]
    assert order[6] == "generate"

"""The report page in a browser: opens from disk, plays every video, sends no request."""

import subprocess

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.chromium import open_chromium, requested_urls, show
from tests.support.report_example import example, index_example, moving_square
from videoar.media.decode import decode_clip, thumbnail_jpeg
from videoar.report.page import render, render_index

pytestmark = pytest.mark.browser


def _mp4(frames_THWC, path) -> bytes:
    height, width = frames_THWC.shape[1:3]
    subprocess.run(
        f"ffmpeg -v error -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r 8 -i - "
        f"-c:v libx264 -pix_fmt yuv420p -y {path}".split(),
        input=frames_THWC.tobytes(),
        check=True,
        timeout=60,
    )
    return path.read_bytes()


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    real = _mp4(moving_square("red"), folder / "real.mp4")
    generated = _mp4(moving_square("red", noise=14.0), folder / "generated.mp4")
    page = folder / "report.html"
    page.write_text(render(example(real, generated, thumbnail_jpeg(decode_clip(real)))))
    return page


@pytest.fixture(scope="module")
def browser():
    driver = open_chromium()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, page_path):
    browser.get(page_path.as_uri())
    WebDriverWait(browser, 30).until(lambda b: all(v["readyState"] >= 2 for v in _videos(b)))
    return browser


def _videos(browser) -> list[dict]:
    return browser.execute_script(
        "return [...document.querySelectorAll('video')].map(v => ({readyState: v.readyState,"
        " width: v.videoWidth, time: v.currentTime, paused: v.paused}))"
    )


def test_invariant_9_page_in_browser_plays_every_video(opened):
    videos = _videos(opened)
    assert len(videos) == 22 + 7 + 5  # the strip after each scale, and the worst samples
    assert all(video["width"] == 64 and video["readyState"] >= 2 for video in videos)
    # Chromium starts a video only once it is on the screen.
    opened.execute_script("document.querySelector('video').scrollIntoView()")
    WebDriverWait(opened, 10).until(lambda b: _videos(b)[0]["time"] > 0)
    assert not _videos(opened)[0]["paused"]


def test_page_in_browser_draws_every_image(opened):
    widths = opened.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert widths == [64] * 11
    (missing,) = opened.find_elements("css selector", ".sheet .missing")
    assert missing.text == "IO_PERMANENT: <No> such file"


def test_page_in_browser_has_no_error_and_no_request(opened):
    assert opened.get_log("browser") == []
    requests = requested_urls(opened)
    assert requests, "the log must at least hold the page itself"
    assert all(url.startswith(("file:", "data:")) for url in requests)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [390, 1280])
def test_page_in_browser_fits_the_width_in_both_colour_schemes(opened, tmp_path, scheme, width_px):
    show(opened, scheme, width_px)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width_px
    background = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 380) == (scheme == "light")
    shot = tmp_path / "page.png"
    assert opened.save_screenshot(str(shot))
    assert shot.stat().st_size > 10_000


@pytest.mark.parametrize("width_px", [390, 1280])
def test_page_of_the_store_in_browser_fits_the_width_and_sends_no_request(
    browser, tmp_path, width_px
):
    page = tmp_path / "index.html"
    page.write_text(render_index(index_example()))
    browser.get_log("browser")
    requested_urls(browser)
    show(browser, "light", width_px)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width_px
    assert browser.get_log("browser") == []
    assert {url.partition(":")[0] for url in requested_urls(browser)} <= {"file", "data"}

"""The report page: every section is rendered, text from outside is escaped."""

import pytest

from tests.support.html_page import HtmlPage
from tests.support.report_example import HOSTILE, example
from videoar.report.data import Gate, GateRule, ReportData, Score, StageReport
from videoar.report.page import frozen_clip_warning, render

SECTIONS = (
    "pipeline", "filtering", "curation", "checks", "videos", "reconstructions", "scores",
    "worst", "distance", "vbench", "confusion", "training", "lineage", "config", "lock",
)  # fmt: skip


@pytest.fixture(scope="module")
def html() -> str:
    return render(example(real=b"real-bytes", generated=b"generated-bytes"))


@pytest.fixture(scope="module")
def page(html) -> HtmlPage:
    return HtmlPage(html)


def test_render_markup_is_balanced_with_every_section(page):
    assert page.open_tags == []
    assert [a["id"] for tag, a in page.tags if tag == "section"] == list(SECTIONS)


def test_render_held_out_blocks_show_nats_and_accuracy(page):
    assert "model: held-out blocks, clean history" in page.text
    assert "0.520" in page.text
    assert "74 %" in page.text


def test_render_hostile_caption_is_text(page):
    assert HOSTILE in page.text
    assert not {"script", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_render_hostile_names_are_text_everywhere():
    data = example(b"a", b"b")
    swapped = ReportData.model_validate_json(
        data
        .model_copy(update={"generated": (), "reconstructions": (), "curves": data.curves[:2]})
        .model_dump_json()
        .replace("rendered/colour_acc", '\\"><script>x</script>')
        .replace("CC-BY-4.0", "</table><script>x</script>")
        .replace("quickstart", "</title></pre><script>x</script>")
        .replace('"train"', '"</svg><script>x</script>"')
        .replace('"model: loss"', '"\\" onload=\\"x"')
    )
    page = HtmlPage(render(swapped))
    assert page.open_tags == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_invariant_9_render_page_has_no_external_urls(html, page):
    links = [str(a["href"]) for tag, a in page.tags if tag == "a"]
    loaded = set(page.urls()) - set(links)
    assert all(url.startswith("data:") for url in loaded)
    assert all(url.startswith("#") for url in links)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_render_pair_has_both_videos_prompt_and_seed(page):
    videos = [a["src"] for tag, a in page.tags if tag == "video"]
    assert videos.count("data:video/mp4;base64,Z2VuZXJhdGVkLWJ5dGVz") == 9 + 3 + 6 + 4 + 1
    assert videos.count("data:video/mp4;base64,cmVhbC1ieXRlcw==") == 7 + 3 + 1
    assert "a red square moves right" in page.text
    assert "seed 2" in page.text
    assert page.text.count("no real clip with this prompt") == 2


def test_render_curation_has_bounds_and_thumbnails(page):
    pictures = [a["src"] for tag, a in page.tags if tag == "img"]
    assert pictures == ["data:image/jpeg;base64,anBlZy1ieXRlcw=="] * (8 + 1 + 2)
    assert [tag for tag, a in page.tags if a.get("class") == "bound"] == ["path"] * 3


@pytest.mark.parametrize(
    "text",
    [
        "min 0.31",
        "21 LOW MOTION IO_PERMANENT: <No> such file",
        "4 BLACK no frame available",
        f"{'d' * 32} duplicates {'e' * 32}",
        "failed. 1 of 2 expectations are not met, so the output was not published",
        "column values to be unique",
        "gate blocked",
        "6 executed, 1 cached, 1 unfinished",
        "rejected: 21 static, 9 duplicate, 4 black",
        "not evaluated: no I3D weights: set VIDEOAR_I3D_WEIGHTS",
        "missing: fvd was not evaluated",
        "1 of 2 rules failed",
        "Compared with model:0a, entry 3 of champion. Candidate: model:1b",
        "frechet_random_i3d common_metrics, N = 64",
        "+13.4 (+1.5 to +25.3)",
        "not comparable: the protocols differ in <script>",
        "2 of 16 dimensions evaluated",
        "Wan2.1-14B86.2286.6784.44",
        "protocols differ, and raters of one model differ by a point or more",
        "0.93 <script>",
        "96",
        "model:1b 1 row, listed above",
        "No finite value recorded.",
        "up to 8 x 8",
        "rendered://shapes?num_videos=120&seed=0",
        '"reference": "good:0123456789abcdef"',
        "accelerator busy percent93.25",
    ],
)
def test_render_page_contains_text(page, text):
    assert text in " ".join(page.text.split())


EMPTY = ReportData(
    name="r",
    pipeline="p",
    status="FAILED",
    started_at="-",
    seconds=0.0,
    hardware="-",
    code_version="-",
)


def test_render_leaves_out_empty_sections_and_names_what_is_damaged():
    page = HtmlPage(render(EMPTY))
    assert page.open_tags == []
    assert not {"section", "video", "table", "svg", "img", "a"} & {tag for tag, _ in page.tags}
    damage = {name: (f"objects/{name}: damaged",) for name in (*SECTIONS, "verdict")}
    page = HtmlPage(render(EMPTY.model_copy(update={"damage": damage})))
    assert page.open_tags == []
    assert [a["id"] for tag, a in page.tags if tag == "section"] == list(SECTIONS)
    assert all(f"Not shown: objects/{name}: damaged" in page.text for name in damage)


LOST = GateRule(rule="a >= 1", value=0.5, bound=1.0, passed=False, reason="value is 0.5")
WON = LOST.model_copy(update={"passed": True, "reason": ""})
LATE = StageReport(name="late", kind="promote", status="SKIPPED", reason="no new clips")


@pytest.mark.parametrize(
    ("update", "verdict"),
    [
        ({"error": "disk full"}, "The run has no promotion gate. Error: disk full"),
        ({"status": "RUNNING"}, "The run goes on"),
        ({"stages": (LATE,)}, "Not promoted: stage late was skipped: no new clips."),
        ({"gates": (Gate(stage="g", ref="best", entry=3, candidate="m:1", rules=(WON,)),)},
         "Promoted: m:1 is entry 3 of best; 1 rule passed."),
        ({"gates": (Gate(stage="g", ref="best", rules=(WON,)),), "error": "best: has moved"},
         "Not promoted, although 1 rule passed. Error: best: has moved"),
        ({"gates": (Gate(stage="g", rules=(LOST, WON)),), "error": "gate g: a >= 1: value is 0.5"},
         "Not promoted: 1 of 2 rules failed. a >= 1: value is 0.5 All rules"),
    ],
)  # fmt: skip
def test_render_verdict_is_one_block_before_all_else(update, verdict):
    text = " ".join(HtmlPage(render(EMPTY.model_copy(update=update))).text.split())
    assert verdict in text
    assert text.index(verdict) < text.index("Started")


def test_frozen_clip_warning_lists_motion_beside_flickering():
    flicker = Score(metric="vbench/temporal_flickering", status="ok", value=0.99)
    motion = Score(metric="rendered/motion_acc", status="ok", value=0.125)
    unknown = Score(metric="proxy/frame_diff_top5", status="not_evaluated", reason="-")
    other = Score(metric="rendered_recon/motion_acc", status="ok", value=1.0)
    assert frozen_clip_warning([motion]) == ""
    assert "No motion was measured" in frozen_clip_warning([flicker, unknown, other])
    assert "rendered/motion_acc (0.125)" in frozen_clip_warning([flicker, motion])


def test_render_control_characters_are_visible_escapes():
    hostile = "caf\udce9\x1b[31m\u202egnp.mp4\nerror: forged\x00"
    data = example(b"a", b"b")
    sheet = data.contact_sheets[1].model_copy(
        update={"title": hostile, "thumbnails": (data.contact_sheets[1].thumbnails[1],)}
    )
    changed = data.model_copy(
        update={
            "pipeline": hostile,
            "error": hostile,
            "config": f"pipeline: {hostile}\nstages: {{}}\n",
            "contact_sheets": (sheet,),
            "generated": (data.generated[0].model_copy(update={"text": hostile}),),
            "licences": (data.licences[0].model_copy(update={"name": hostile}),),
        }
    )
    html = render(changed)
    assert html.encode()
    assert not set(html) & set("\x1b\x00\u202e\udce9")
    page = HtmlPage(html)
    shown = r"caf\udce9\x1b[31m\u202egnp.mp4\nerror: forged\x00"
    assert page.text.count(shown) == 6  # title, heading, error, sheet, prompt, licence
    assert r"pipeline: caf\udce9\x1b[31m\u202egnp.mp4" + "\n" in page.text  # lines are kept


def test_render_skipped_stage_is_neutral_and_counted():
    late = StageReport(name="late", kind="score", status="SKIPPED", parents=("good",))
    data = example(b"a", b"b")
    html = render(data.model_copy(update={"stages": (*data.stages, late)}))
    assert "6 executed, 1 cached, 1 skipped, 1 unfinished" in HtmlPage(html).text
    assert '<g class="stage soft"' in html


def test_render_scores_at_chance_are_named_and_the_status_is_not_green():
    good = Score(metric="rendered/shape_acc", status="ok", value=0.6, ci_low=0.5, chance=1 / 3)
    guessed = good.model_copy(update={"ci_low": 0.3, "is_chance": True})
    data = example(b"a", b"b").model_copy(update={"status": "SUCCEEDED", "error": ""})
    tones = []
    for score in (good, guessed):
        page = HtmlPage(render(data.model_copy(update={"scores": (score,)})))
        pills = [str(a["class"]) for _, a in page.tags if "pill" in str(a.get("class"))]
        tones.append(pills)
        assert ("not above chance" in page.text) == (score is guessed)
    assert tones == [["pill good"], ["pill warn"]]


def test_render_radar_is_hollow_where_a_dimension_was_not_evaluated(page):
    points = [
        a["class"] for tag, a in page.tags if tag == "circle" and "point" in str(a.get("class"))
    ]
    assert points == ["point"] * 2 + ["point hollow"] * 14


def test_render_distances_are_one_group_with_their_floors():
    names = ("fvd", "rendered/shape_acc", "fvd/floor", "frechet_domain/floor@abc")
    scores = tuple(Score(metric=name, status="ok", value=1.0) for name in names)
    page = HtmlPage(render(example(b"a", b"b").model_copy(update={"scores": scores})))
    at = [page.text.index(f"{name} ") for name in (names[0], names[2], names[3], names[1])]
    assert at == sorted(at)

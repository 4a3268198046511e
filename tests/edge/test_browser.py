"""The page in a real browser: the slices are drawn, everything works by keyboard, and nothing comes from elsewhere."""

from __future__ import annotations

import gzip
import io
import re
import shutil
from contextlib import contextmanager

import nibabel
import numpy as np
import pytest
from orthokernels.edge.corrections import Corrections
from PIL import Image

from tests.edge.kit import ask, store, wait_for, write_study

playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives a browser, is not installed")

DESK, TABLET = {"width": 1280, "height": 800}, {"width": 768, "height": 1024}
# SwiftShader computes WebGL where there is no graphics card. Inside a container the sandbox has no right to be made.
FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed (Debian's chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def watched(chromium, service):
    """What opens pages of an appliance. In the end, nothing may have been asked of another host, blocked, or failed."""
    here = f"http://127.0.0.1:{service.config.page.port}"
    contexts, asked, complaints = [], [], []

    def begin(path: str, **settings):
        context = chromium.new_context(viewport=DESK, base_url=here, **settings)
        context.set_default_timeout(60_000)  # software rendering, on a machine that does other things too
        context.on("request", lambda request: asked.append(request.url))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path)
        return page

    yield begin
    for context in contexts:
        context.close()
    assert asked
    assert [url for url in asked if not url.startswith((f"{here}/", "data:"))] == []
    assert [told for told in complaints if "GPU stall due to ReadPixels" not in told] == []  # a screenshot's


@pytest.fixture
def open_page(chromium, shown):
    with watched(chromium, shown) as begin:
        yield begin


@pytest.fixture(scope="module")
def viewer(chromium, shown):
    """Study 1, with its slices drawn; tests share it, since the first drawing takes seconds without a graphics card."""
    with watched(chromium, shown) as begin:
        page = begin("/study/1")
        drawn(page)
        yield page


@pytest.fixture
def page(viewer):
    """The same as it looked at first."""
    for box in viewer.locator("input.structure").all():
        box.check()
    viewer.get_by_role("radio", name="slices").check()
    if not viewer.get_by_role("radio", name="sagittal").is_checked():
        viewer.get_by_role("radio", name="sagittal").check()
    drawn(viewer)
    set_range(viewer, "#opacity", 100)
    return viewer


def drawn(page, plane: str = "sagittal"):
    page.wait_for_selector(f"canvas[data-drawn={plane}]")
    return page.locator("canvas")


def pixels(canvas) -> np.ndarray:
    """What is on the screen, (row, column, RGB)."""
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


def coloured(picture: np.ndarray) -> float:
    """The share of pixels that are no grey. The background is bluish, by less than this."""
    return float((np.ptp(picture, axis=2) > 40).mean())


def set_range(page, name: str, value: int) -> None:
    page.locator(name).evaluate("(box, value) => { box.value = value; box.dispatchEvent(new Event('input')); }", value)


def test_structures_are_drawn_over_the_slice_as_the_opacity_says(page):
    canvas = drawn(page)
    shares = []
    for opacity in (0, 50, 100):
        set_range(page, "#opacity", opacity)
        shares.append(coloured(pixels(canvas)))
    assert shares[0] < 0.001
    assert 0.1 < shares[1] <= shares[2]
    assert np.ptp(pixels(canvas)) > 100  # and there is an image


def test_structure_that_is_unticked_is_not_drawn(page):
    canvas = drawn(page)
    before = coloured(pixels(canvas))
    for box in page.locator("input.structure").all()[:6]:
        box.uncheck()
    half = coloured(pixels(canvas))
    for box in page.locator("input.structure").all()[6:]:
        box.uncheck()
    assert before > half > coloured(pixels(canvas))
    assert coloured(pixels(canvas)) < 0.001


def test_every_series_is_shown_in_its_own_plane_and_in_all_three(page):
    pictures = {}
    for plane in ("sagittal", "coronal", "axial"):
        page.get_by_role("radio", name=plane).check()
        canvas = drawn(page, plane)
        pictures[plane] = pixels(canvas)
    page.get_by_role("radio", name="all planes").check()
    pictures["all"] = pixels(canvas)
    page.get_by_role("radio", name="slices").check()
    assert np.array_equal(pixels(canvas), pictures["axial"])
    names = list(pictures)
    for n, one in enumerate(names):
        for other in names[n + 1 :]:
            assert not np.array_equal(pictures[one], pictures[other])


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_slices_are_counted_as_in_the_file(page, shown, plane):
    packed = ask(shown, "GET", f"/study/1/volume/{plane}.nii.gz").body
    volume = np.asanyarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(packed)).dataobj)
    page.get_by_role("radio", name=plane).check()
    drawn(page, plane)
    for number in range(1, volume.shape[2] + 1):
        set_range(page, "#slice", number)
        assert page.locator("#where").inner_text().startswith(f"Slice {number} of {volume.shape[2]}")
        # Pixels are noise: one slice in nine holds any value by chance, all sixteen in a wrong order do not.
        value = page.evaluate("drawing.volumes[0].getValue(...drawing.frac2vox(drawing.scene.crosshairPos))")
        assert value in volume[..., number - 1]


def test_slices_are_gone_through_by_keyboard_and_tab_leads_on(page):
    canvas = drawn(page)
    canvas.focus()
    where = page.locator("#where")
    for key, told in (
        ("Home", "Slice 1 of 16"), ("ArrowRight", "Slice 2 of 16"), ("PageUp", "Slice 7 of 16"),
        ("ArrowDown", "Slice 6 of 16"), ("End", "Slice 16 of 16"), ("ArrowUp", "Slice 16 of 16"),
        ("v", "Slice 16 of 16"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert where.inner_text().startswith(told)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "slice"
    page.keyboard.press("ArrowLeft")
    assert where.inner_text().startswith("Slice 15 of 16")


def test_every_control_is_reached_by_tab_with_a_visible_focus_and_a_name(page):
    page.locator(".skip").focus()
    reached = ["skip"]
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        name, outline = page.evaluate(
            "() => { const one = document.activeElement, style = getComputedStyle(one);"
            " return [one.id || one.name || one.className || one.innerText, style.outlineStyle + style.outlineWidth] }"
        )
        assert outline == "solid3px", name
        reached.append(name)
    else:
        pytest.fail(f"no way out: {reached[-3:]}")
    assert reached[1] == "brand"
    assert {"plane", "view", "canvas", "slice", "opacity", "structure", "button"} <= set(reached)
    nameless = page.evaluate(
        "[...document.querySelectorAll('a, button, input:not([type=hidden]), select, textarea, canvas, [tabindex]')]"
        ".filter(one => !['textContent', 'ariaLabel'].some(name => one[name]?.trim()) && !one.labels?.length"
        " && !one.hasAttribute('aria-labelledby') && !one.querySelector('img[alt]')).map(one => one.outerHTML)"
    )
    assert nameless == []


def test_correction_is_written_by_keyboard_and_listed(open_page, shown):
    page = open_page("/study/1")
    page.get_by_text("This is wrong").focus()
    page.keyboard.press("Enter")
    page.get_by_label("What is wrong").select_option("finding:ACL")
    page.get_by_label("Where").select_option("axial")
    page.get_by_label("How it should be").fill("<b>Torn</b>, not absent.")
    page.get_by_label("Your name").fill("A. Reader")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/study/1#corrections")
    assert "<b>Torn</b>, not absent." in page.locator(".corrections").inner_text()
    *_, kept = Corrections(shown.store, "knee").export()
    assert (kept["kind"], kept["label"], kept["plane"]) == ("finding", "ACL", "axial")


def test_queue_shows_a_new_study_by_itself_and_a_rejected_one_is_retried_by_one_button(open_page, shown, tmp_path):
    page = open_page("/")
    page.evaluate("globalThis.same = true")
    assert store(shown.config, write_study(tmp_path / "part", study="1.2.5")[:3]).returncode == 0
    number = next(job.id for job in shown.store.jobs() if job.study_uid == "1.2.5")
    page.get_by_role("button", name=f"Retry study {number}").focus()
    page.wait_for_timeout(3000)  # the part is replaced meanwhile, and the focus stays
    assert page.evaluate("same")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/study/\d+$"))
    again = int(page.url.rpartition("/")[2])
    assert (shown.store.job(again).study_uid, shown.store.job(again).version) == ("1.2.5", 2)
    wait_for(lambda: shown.store.job(again).state == "rejected")
    page.locator("#study[data-state=rejected]").wait_for()  # it follows the study's state by itself
    assert "at least 16 are needed" in page.get_by_role("alert").inner_text()


def test_giving_up_on_a_study_asks_first_and_is_done_by_keyboard(open_page, shown, tmp_path):
    before = max(job.id for job in shown.store.jobs())
    assert store(shown.config, write_study(tmp_path / "in", study="1.2.7", SeriesDescription="crash")).returncode == 0
    job = wait_for(lambda: next((one for one in shown.store.jobs(("dead",)) if one.id > before), None), 60)
    page = open_page(f"/study/{job.id}")
    page.get_by_text("Give up on it").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name=f"Yes, give up on study {job.id}").wait_for()
    assert shown.store.job(job.id).state == "dead"
    for size in (DESK, TABLET):
        page.set_viewport_size(size)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/study/{job.id}")
    wait_for(lambda: shown.store.job(job.id).state == "discarded")


def test_pages_fit_their_width_in_light_and_dark(open_page):
    grounds = set()
    for path in ("/", "/model", "/study/1"):
        page = open_page(path)
        for size in (DESK, TABLET):
            page.set_viewport_size(size)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
                grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= TABLET["width"]
    assert len(grounds) == 2


def test_page_without_script_shows_the_result_and_takes_corrections(open_page, shown):
    page = open_page("/", java_script_enabled=False)
    assert 'http-equiv="refresh"' in page.content()
    page.goto("/study/1")
    assert page.locator(".pictures img").count() == 3
    assert "need JavaScript" in page.locator("#viewer-says").inner_text()
    before = len(Corrections(shown.store, "knee").export())
    page.get_by_text("This is wrong").click()
    page.get_by_label("What is wrong").select_option("other")
    page.get_by_label("How it should be").fill("It is the other knee.")
    page.get_by_label("Your name").fill("B. Reader")
    page.get_by_role("button", name="Store the correction").click()
    assert "It is the other knee." in page.locator(".corrections").inner_text()
    assert len(Corrections(shown.store, "knee").export()) == before + 1


def test_browser_without_webgl_is_told_so_and_sees_the_pictures(open_page, chromium):
    page = open_page("/")
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto("/study/1")
    page.get_by_text("has no WebGL 2").wait_for()
    assert page.locator("canvas").is_hidden()
    assert (
        page.locator(".pictures img").first.evaluate("async (img) => { await img.decode(); return img.naturalWidth }")
        > 0
    )

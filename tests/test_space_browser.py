"""The Space as people meet it: every tab, in a browser, offline."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import browser
import numpy as np
import PIL.Image
import pytest
from browser import same
from small_models import tiny_generator

from stylenat_hub.latents.levels import styles_at
from stylenat_hub.latents.styles import load_styles
from stylenat_hub.pipeline import GANPipeline

if browser.why_not():
    pytest.skip(browser.why_not(), allow_module_level=True)

SPACES = Path(__file__).resolve().parent.parent / "spaces"
sys.path.insert(0, str(SPACES))  # as when app.py is run

from studio import page as studio_page  # noqa: E402

TABS = [tab.NAME for tab in studio_page.TABS]


@pytest.fixture(scope="module")
def hit(tmp_path_factory):
    """A model without levels: its style is its latent."""
    folder = tmp_path_factory.mktemp("models") / "tiny-hit"
    GANPipeline(tiny_generator("hit")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address():
    with browser.space("--device", "cpu", "--allow-any-model") as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Where screenshots go: SPACE_SCREENSHOTS, or a temporary folder."""
    folder = Path(os.environ.get("SPACE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(address, chromium):
    """The page, its first picture there. At the end nothing may have gone wrong or asked elsewhere."""
    with browser.visit(address, browser=chromium) as opened:
        drawn(opened, "Seed 0 ")
        yield opened
        assert opened.errors == [] and opened.outside == []


@pytest.fixture(scope="module")
def church():
    pipeline = GANPipeline.from_pretrained("toy-church")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(visit, words):
    """Wait until Generate says that it has drawn this."""
    visit.until(lambda: visit.page.inner_text("#note").startswith(words), f"the note says {words!r}")


# -- Generate


def test_the_first_picture_is_there_without_being_asked_for(visit, church, shots):
    visit.expect("#picture", church([0], truncation_psi=visit.value("#truncation")).images[0])
    box = visit.page.locator("#picture img").bounding_box()
    assert box["width"] > 300 and abs(box["width"] - box["height"]) < 2
    visit.page.screenshot(path=shots / "generate.png")


def test_generate_draws_downloads_and_gives_its_code(visit, church, tmp_path):
    psi = visit.value("#truncation")
    visit.enter("#seed", 41)
    drawn(visit, "Seed 41 ")
    visit.expect("#picture", church([41], truncation_psi=psi).images[0])
    path = visit.download("#download", tmp_path)
    with PIL.Image.open(path) as image:
        path.unlink()
        assert path.name == "seed0000000041.png" and same(image, visit.file("#picture"))
        assert (image.text["model"], image.text["seed"]) == ("toy-church", "41")
        assert float(image.text["truncation_psi"]) == psi
    assert same(visit.repeated("#code", tmp_path), visit.file("#picture"))


def test_the_truncation_slider_is_followed_while_it_moves(visit, church, tmp_path):
    before = visit.file("#picture")
    release = visit.drag("#truncation", 0.2)
    visit.until(lambda: not same(visit.file("#picture"), before), "a preview before the slider is let go")
    release()
    psi = visit.value("#truncation")
    assert 0.2 < psi < 0.4
    visit.expect("#picture", church([0], truncation_psi=psi).images[0])

    def saved():
        with PIL.Image.open(visit.download("#download", tmp_path)) as image:
            return float(image.text["truncation_psi"])

    visit.until(lambda: saved() == psi, "the file to download is the new picture's")


def test_random_and_several_pictures(visit, church, tmp_path):
    visit.page.click("#dice")
    visit.until(lambda: not visit.page.inner_text("#note").startswith("Seed 0 "), "another seed")
    seed = int(visit.page.input_value("#seed input"))
    drawn(visit, f"Seed {seed} ")
    psi = visit.value("#truncation")
    visit.expect("#picture", church([seed], truncation_psi=psi).images[0])
    visit.enter("#seed", 3)
    drawn(visit, "Seed 3 ")
    visit.page.fill("#count input[type=number]", "4")
    visit.page.click("#generate")
    drawn(visit, "Seeds 3 to 6 ")
    visit.until(lambda: visit.page.locator("#gallery .thumbnail-item img").count() == 4, "four pictures")
    captions = visit.page.locator("#gallery .caption-label").all_inner_texts()
    assert captions == [f"seed {seed}" for seed in range(3, 7)] and not visit.page.is_visible("#picture")
    visit.expect("#gallery .gallery-item:nth-child(4)", church([6], truncation_psi=psi).images[0])
    with zipfile.ZipFile(visit.download("#download", tmp_path)) as archive:
        assert archive.namelist() == [f"seed{seed:010d}.png" for seed in range(3, 7)]


def test_a_wrong_seed_is_explained_and_the_page_lives_on(visit):
    visit.enter("#seed", -5)
    message = visit.page.wait_for_selector(".toast-body")
    assert "the seed is -5" in message.inner_text()
    visit.enter("#seed", 5)
    drawn(visit, "Seed 5 ")


# -- the page


def test_another_model_draws_and_one_without_weights_is_explained(visit, tiny, shots):
    visit.choose_model(tiny)
    drawn(visit, f"Seed 0 · {tiny} ")
    psi = visit.value("#truncation")
    visit.expect("#picture", GANPipeline.from_pretrained(tiny)([0], truncation_psi=psi).images[0])
    visit.page.click("#model input")
    visit.page.fill("#model input", "stylenat-ffhq-256")
    visit.page.get_by_role("option").filter(has_text="stylenat-ffhq-256 ").click()
    visit.until(lambda: visit.page.is_visible("#notice"), "a notice")
    assert "conversion.convert" in visit.page.inner_text("#notice")
    visit.page.screenshot(path=shots / "no-weights.png")
    visit.enter("#seed", 2)
    drawn(visit, f"Seed 2 · {tiny} ")
    visit.choose_model("toy-church")
    drawn(visit, "Seed 2 · toy-church ")


def test_a_model_without_levels_is_welcome_in_every_tab(visit, hit):
    """Each tab is opened with it, or meets it while open."""
    for number, tab in enumerate(TABS):
        visit.open(tab)
        visit.page.wait_for_timeout(200)
        visit.choose_model("toy-church" if number % 2 else hit)
        visit.says("#facts", "ready" if number % 2 else "named by you")
        visit.page.wait_for_timeout(400)
        assert visit.page.locator(".toast-body").all_inner_texts() == [], tab


def test_back_at_a_model_its_pictures_are_there(visit, tiny):
    for model in (None, tiny, "toy-church"):
        if model:
            visit.open("Generate")
            visit.choose_model(model)
            visit.until(lambda model=model: f" {model} " in visit.page.inner_text("#note"), "a picture of it")
        if model != tiny:
            for tab, picture in (
                ("Mix", "#mix-picture"),
                ("Edit", "#edit-after"),
                ("Travel", "#travel-keys"),
            ):
                visit.open(tab)
                visit.until(lambda at=picture: visit.page.locator(f"{at} img").count(), f"pictures in {tab}")


def test_two_visitors_do_not_meet(visit, address, chromium):
    with browser.visit(address, browser=chromium) as other:
        drawn(other, "Seed 0 ")
        visit.enter("#seed", 8)
        drawn(visit, "Seed 8 ")
        assert other.page.inner_text("#note").startswith("Seed 0 ")


def test_reload_begins_anew(visit, church):
    visit.enter("#seed", 12)
    drawn(visit, "Seed 12 ")
    visit.page.reload()
    drawn(visit, "Seed 0 ")
    visit.expect("#picture", church([0], truncation_psi=visit.value("#truncation")).images[0])


def test_the_keyboard_alone_is_enough(visit, church):
    page = visit.page
    visit.tab_to("Seed")
    there = page.locator("#seed").screenshot(animations="disabled")  # without its caret
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(300)
    assert page.locator("#seed").screenshot(animations="disabled") != there  # where the focus is can be seen
    page.focus("#seed input")
    page.keyboard.press("Control+A")
    page.keyboard.type("19")
    page.keyboard.press("Enter")
    drawn(visit, "Seed 19 ")
    slider = page.locator("#truncation input[type=range]")
    for _ in range(5):
        if not slider.evaluate("(e) => e === document.activeElement"):
            page.keyboard.press("Tab")
    before = visit.value("#truncation")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert visit.value("#truncation") == pytest.approx(before - 0.1)
    visit.expect("#picture", church([19], truncation_psi=visit.value("#truncation")).images[0])
    visit.tab_to("Generate")
    page.keyboard.press("Enter")
    drawn(visit, "Seed 19 ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(address, chromium, shots, scheme):
    """Text can be read: a contrast of at least 4.5, as WCAG asks for."""
    with browser.visit(address, browser=chromium, scheme=scheme) as opened:
        drawn(opened, "Seed 0 ")
        opened.page.screenshot(path=shots / f"{scheme}.png")
        back = lightness(opened, "body", "backgroundColor")
        assert (back < 0.05) == (scheme == "dark") and (back > 0.8) == (scheme == "light")
        for text in ("#title h1", "#title p", "#note p", "#foot p", "#facts p"):
            front = lightness(opened, text, "color")
            assert (max(front, back) + 0.05) / (min(front, back) + 0.05) >= 4.5, text
        assert opened.errors == [] and opened.outside == []


def lightness(visit, selector, property):
    """Relative luminance from 0 to 1, as WCAG defines it."""
    script = f"(e) => getComputedStyle(e).{property}.match(/[\\d.]+/g).slice(0, 3).map(Number)"
    values = np.array(visit.page.locator(selector).first.evaluate(script)) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_every_tab_fits_and_has_names(address, chromium, shots, width, height):
    with browser.visit(address, width, height, browser=chromium) as opened:
        drawn(opened, "Seed 0 ")
        for tab in TABS:
            opened.open(tab)
            opened.page.wait_for_timeout(700)
            opened.page.screenshot(path=shots / f"{tab.lower()}-{width}.png", full_page=True)
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, tab
            assert opened.page.evaluate(browser.CUT_OFF) == [], tab
            assert opened.page.evaluate(browser.UNNAMED) == [], tab
        assert opened.errors == [] and opened.outside == []


# -- each tab


def mixed(pipeline, seeds, level, psi):
    ws = pipeline.styles(seeds, truncation_psi=psi)
    chosen = styles_at(pipeline.generator, level)
    ws[0, chosen] = ws[1, chosen]
    return pipeline.draw(ws[:1])[0]


def text_of(path):
    with PIL.Image.open(path) as image:
        return dict(image.text)


def test_mix(visit, church, tmp_path):
    visit.open("Mix")
    psi = visit.value("#mix-truncation")
    visit.expect("#mix-picture", mixed(church, [0, 1], "coarse", psi))
    for selector, seed in (("#mix-picture-a", 0), ("#mix-picture-b", 1)):
        visit.expect(selector, church([seed], truncation_psi=psi).images[0])
    visit.enter("#mix-seed-b", 6)
    visit.expect("#mix-picture", mixed(church, [0, 6], "coarse", psi))
    visit.page.click("#mix-fine")
    visit.expect("#mix-picture", mixed(church, [0, 6], "fine", psi))
    before = visit.file("#mix-picture")
    release = visit.drag("#mix-level-0", 0.6)
    visit.until(lambda: not same(visit.file("#mix-picture"), before), "a preview before it is let go")
    release()
    visit.until(
        lambda: same(visit.file("#mix-picture"), visit.repeated("#mix-code", tmp_path)), "the code's picture"
    )
    about = text_of(visit.download("#mix-download", tmp_path))
    assert (about["row"], about["col"]) == ("0", "6") and str(visit.value("#mix-level-0")) in about["levels"]


def test_edit(visit, church, tmp_path):
    visit.open("Edit")
    plain = church([0], truncation_psi=visit.value("#edit-truncation")).images[0]
    visit.expect("#edit-before", plain)
    visit.expect("#edit-after", plain)
    release = visit.drag("#edit-direction-1", 0.9)
    visit.until(lambda: not same(visit.file("#edit-after"), plain), "a preview before it is let go")
    release()
    visit.until(
        lambda: same(visit.file("#edit-after"), visit.repeated("#edit-code", tmp_path)), "the code's picture"
    )
    assert not same(visit.file("#edit-after"), plain) and same(visit.file("#edit-before"), plain)
    about = text_of(visit.download("#edit-download", tmp_path))
    assert about["seed"] == "0" and f"{visit.value('#edit-direction-1'):g}" in about["edit"]
    visit.page.click("#edit-reset")
    visit.expect("#edit-after", plain)


def test_travel(visit, church, tmp_path, shots):
    visit.open("Travel")
    visit.page.fill("#travel-seeds input, #travel-seeds textarea", "3, 7")
    visit.enter("#travel-frames", 24)
    visit.page.click("#travel-start")
    visit.says("#travel-note", "24 frames")
    psi = visit.value("#travel-truncation")
    for number, seed in enumerate((3, 7), start=1):
        place = f"#travel-keys .gallery-item:nth-child({number})"
        assert same(visit.file(place), church([seed], truncation_psi=psi).images[0])
    video = visit.page.locator("#travel-video video")
    visit.until(lambda: video.evaluate("(e) => e.readyState >= 2 && e.videoWidth > 0"), "the video plays")
    assert video.evaluate("(e) => e.loop && Math.abs(e.duration - 1) < 0.2")
    painted = PIL.Image.open(io.BytesIO(video.screenshot())).convert("L")
    assert np.asarray(painted).std() > 8
    visit.page.screenshot(path=shots / "travelled.png")
    path = visit.download("#travel-download", tmp_path)
    assert path.suffix == ".mp4" and path.read_bytes()[4:8] == b"ftyp"
    visit.page.fill("#travel-seeds input, #travel-seeds textarea", "3, x")
    visit.page.click("#travel-start")
    assert "x" in visit.page.wait_for_selector(".toast-body").inner_text() and video.is_visible()


def test_project(visit, church, tmp_path, shots):
    church([5], truncation_psi=0.7).images[0].resize((90, 90)).save(tmp_path / "photo.jpg")
    visit.open("Project")
    visit.page.set_input_files("#photo input[type=file]", tmp_path / "photo.jpg")
    visit.says("#project-note", "photo")
    visit.enter("#project-steps", 50)
    visit.page.click("#project-start")
    visit.says("#project-note", "PSNR")
    visit.page.screenshot(path=shots / "projected.png")
    assert visit.page.locator("#both img").count() == 2
    picture = visit.download("#project-png", tmp_path)
    ws, _ = load_styles(visit.download("#project-styles", tmp_path), church.generator)
    with PIL.Image.open(picture) as image:
        assert same(image, church.draw(ws)[0])
    visit.enter("#project-steps", 500)
    visit.page.click("#project-start")
    visit.says("#project-note", "of 500")
    visit.page.click("#project-cancel")
    visit.until(lambda: visit.page.locator("#project-start").is_enabled(), "it ends")
    assert "PSNR" in visit.page.inner_text("#project-note") or "top" in visit.page.inner_text("#project-note")


def test_inside(visit):
    visit.open("Inside")
    panels = visit.page.locator("#inside-panels img")
    visit.until(lambda: panels.count(), "the panels")
    before = panels.first.get_attribute("src")
    picture = visit.page.locator("#inside-picture img")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.75})
    visit.until(lambda: abs(visit.value("#inside-x") - 0.25) < 0.03, "x follows the click")
    assert abs(visit.value("#inside-y") - 0.75) < 0.03
    after = panels.first.get_attribute("src")
    assert after != before
    visit.page.focus("#inside-x input[type=range]")
    for _ in range(20):
        visit.page.keyboard.press("ArrowRight")
    visit.until(lambda: panels.first.get_attribute("src") != after, "the keys move the place, too")


def test_about_shows_the_models_card(visit, tiny):
    visit.open("About")
    visit.until(lambda: "toy-church" in visit.page.inner_text("#card"), "the card")
    words = visit.page.inner_text("#card")
    assert "Licence" in words and "Citation" in words and "library_name" not in words
    visit.choose_model(tiny)
    visit.until(lambda: "has no card" in visit.page.inner_text("#card"), "what is said of the new model")

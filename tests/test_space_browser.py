"""The Space as people meet it: every tab, in a browser, offline."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import browser
import numpy as np
import PIL.Image
import pytest
from browser import resembles, same
from small_models import tiny_generator

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


def expect(visit, selector, image):
    """The picture is there, with the right pixels, and it is what one sees."""
    visit.until(lambda: same(visit.file(selector), image), f"{selector} shows the pipeline's picture")
    assert resembles(visit.seen(selector), image)


def type_seed(visit, seed, selector="#seed"):
    visit.page.fill(f"{selector} input", str(seed))
    visit.page.press(f"{selector} input", "Enter")


def choose_model(visit, words):
    """By typing into the list, which takes a moment to follow."""
    visit.page.click("#model input")
    visit.page.fill("#model input", str(words))
    visit.page.wait_for_timeout(400)
    visit.page.keyboard.press("Enter")


# -- Generate


def test_the_first_picture_is_there_without_being_asked_for(visit, church, shots):
    expect(visit, "#picture", church([0], truncation_psi=visit.value("#truncation")).images[0])
    box = visit.page.locator("#picture img").bounding_box()
    assert box["width"] > 300 and abs(box["width"] - box["height"]) < 2
    visit.page.screenshot(path=shots / "generate.png")


def test_generate_draws_downloads_and_gives_its_code(visit, church, tmp_path):
    psi = visit.value("#truncation")
    type_seed(visit, 41)
    drawn(visit, "Seed 41 ")
    expect(visit, "#picture", church([41], truncation_psi=psi).images[0])
    path = visit.download("#download", tmp_path)
    with PIL.Image.open(path) as image:
        assert path.name == "seed0000000041.png" and same(image, visit.file("#picture"))
        assert (image.text["model"], image.text["seed"]) == ("toy-church", "41")
        assert float(image.text["truncation_psi"]) == psi
    visit.page.get_by_text("Python that repeats this").first.click()
    visit.until(lambda: "seeds=[41]" in visit.page.inner_text("#code"), "the code names the seed")


def test_the_truncation_slider_is_followed_while_it_moves(visit, church, tmp_path):
    before = visit.file("#picture")
    release = visit.drag("#truncation", 0.2)
    visit.until(lambda: not same(visit.file("#picture"), before), "a preview before the slider is let go")
    release()
    psi = visit.value("#truncation")
    assert 0.2 < psi < 0.4
    expect(visit, "#picture", church([0], truncation_psi=psi).images[0])

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
    expect(visit, "#picture", church([seed], truncation_psi=psi).images[0])
    type_seed(visit, 3)
    drawn(visit, "Seed 3 ")
    visit.page.fill("#count input[type=number]", "4")
    visit.page.click("#generate")
    drawn(visit, "Seeds 3 to 6 ")
    visit.until(lambda: visit.page.locator("#gallery .thumbnail-item img").count() == 4, "four pictures")
    captions = visit.page.locator("#gallery .caption-label").all_inner_texts()
    assert captions == [f"seed {seed}" for seed in range(3, 7)] and not visit.page.is_visible("#picture")
    expect(visit, "#gallery .gallery-item:nth-child(4)", church([6], truncation_psi=psi).images[0])
    with zipfile.ZipFile(visit.download("#download", tmp_path)) as archive:
        assert archive.namelist() == [f"seed{seed:010d}.png" for seed in range(3, 7)]


def test_a_wrong_seed_is_explained_and_the_page_lives_on(visit):
    type_seed(visit, -5)
    message = visit.page.wait_for_selector(".toast-body")
    assert "the seed is -5" in message.inner_text()
    type_seed(visit, 5)
    drawn(visit, "Seed 5 ")


# -- the page


def test_another_model_draws_and_one_without_weights_is_explained(visit, tiny, shots):
    choose_model(visit, tiny)
    drawn(visit, f"Seed 0 · {tiny} ")
    psi = visit.value("#truncation")
    expect(visit, "#picture", GANPipeline.from_pretrained(tiny)([0], truncation_psi=psi).images[0])
    visit.page.click("#model input")
    visit.page.fill("#model input", "stylenat-ffhq-256")
    visit.page.get_by_role("option").filter(has_text="stylenat-ffhq-256 ").click()
    visit.until(lambda: visit.page.is_visible("#notice"), "a notice")
    assert "conversion.convert" in visit.page.inner_text("#notice")
    visit.page.screenshot(path=shots / "no-weights.png")
    type_seed(visit, 2)
    drawn(visit, f"Seed 2 · {tiny} ")
    choose_model(visit, "toy-church")
    drawn(visit, "Seed 2 · toy-church ")


@pytest.mark.parametrize("tab", TABS)
def test_a_model_without_levels_is_welcome_in_every_tab(address, chromium, hit, tab):
    with browser.visit(address, browser=chromium) as opened:
        drawn(opened, "Seed 0 ")
        choose_model(opened, hit)
        drawn(opened, f"Seed 0 · {hit} ")
        opened.open(tab)
        opened.page.wait_for_timeout(500)
        assert opened.page.locator(".toast-body.error").count() == 0
        assert opened.errors == []


def test_two_visitors_do_not_meet(visit, address, chromium):
    with browser.visit(address, browser=chromium) as other:
        drawn(other, "Seed 0 ")
        type_seed(visit, 8)
        drawn(visit, "Seed 8 ")
        assert other.page.inner_text("#note").startswith("Seed 0 ")


def test_reload_begins_anew(visit, church):
    type_seed(visit, 12)
    drawn(visit, "Seed 12 ")
    visit.page.reload()
    drawn(visit, "Seed 0 ")
    expect(visit, "#picture", church([0], truncation_psi=visit.value("#truncation")).images[0])


def focused(visit):
    """The name of what has the focus, as a screen reader would say it."""
    return visit.page.evaluate(
        """() => { const e = document.activeElement, label = e.labels?.[0];
        return (e.getAttribute('aria-label') || label?.innerText || e.innerText || e.tagName).trim(); }"""
    )


def tab_to(visit, name, most=40):
    for _ in range(most):
        visit.page.keyboard.press("Tab")
        if focused(visit).lower().startswith(name.lower()):
            return
    raise AssertionError(f"the Tab key does not lead to {name}")


def test_the_keyboard_alone_is_enough(visit, church):
    page = visit.page
    tab_to(visit, "Seed")
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
    expect(visit, "#picture", church([19], truncation_psi=visit.value("#truncation")).images[0])
    tab_to(visit, "Generate")
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


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_every_tab_fits_and_has_names(address, chromium, shots, tab, width):
    height = 900 if width > 500 else 844
    with browser.visit(address, width, height, browser=chromium) as opened:
        drawn(opened, "Seed 0 ")
        opened.open(tab)
        opened.page.wait_for_timeout(700)
        opened.page.screenshot(path=shots / f"{tab.lower()}-{width}.png", full_page=True)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.page.evaluate(browser.CUT_OFF) == []
        assert opened.page.evaluate(browser.UNNAMED) == []
        assert opened.errors == [] and opened.outside == []


# -- the other tabs


def test_about_shows_the_models_card(visit, tiny):
    visit.open("About")
    visit.until(lambda: "toy-church" in visit.page.inner_text("#card"), "the card")
    words = visit.page.inner_text("#card")
    assert "Licence" in words and "Citation" in words and "library_name" not in words
    choose_model(visit, tiny)
    visit.until(lambda: "has no card" in visit.page.inner_text("#card"), "what is said of the new model")

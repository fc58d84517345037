"""The server's pages in a real browser: Chromium, driven by playwright."""

import os
import shutil

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from nanonet.runtime.predictor import Predictor
from nanonet.runtime.requests import Limits
from nanonet.runtime.service import ServerSettings
from servers import running

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
TOKEN = "sésame-42"


@pytest.fixture(scope="module")
def predictor(bundle):
    return Predictor.load(bundle, threads=1)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (or name it in the variable CHROMIUM)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that fails the test on any script error or request to another host."""
    page = browser.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.extend([request.url] * (not local(request.url))))
    yield page
    page.close()
    assert wrong == []


def local(url):
    return url.startswith(("http://127.0.0.1:", "data:"))


@pytest.fixture(scope="module")
def url(predictor):
    with running(predictor, ServerSettings(60.0, Limits(texts=4))) as (client, _):
        yield f"http://127.0.0.1:{client.port}"


def test_texts_are_classified(page, url, predictor):
    page.goto(url)
    page.get_by_text("into 3 classes: fruit, metal, water").wait_for()
    texts = ["the apple", "old <b>iron</b>"]
    page.get_by_role("textbox", name="Texts").fill("\n".join([texts[0], "  ", texts[1]]))
    page.get_by_label("Classes shown").fill("2")
    page.get_by_role("button", name="Classify").click()
    page.get_by_role("heading", name="2 texts in").wait_for()
    items = page.locator("#answers > li")
    assert items.count() == 2
    for i, row in enumerate(predictor.predict_proba(texts)):
        said, answer = items.nth(i).locator(".said"), items.nth(i).locator("dl")
        assert said.text_content() == texts[i]  # as text, not as HTML
        assert answer.locator("dt").count() == 2
        assert answer.locator("dt.best").text_content() == predictor.labels.names[row.argmax()]
        assert answer.locator("dd:not(.bar)").first.text_content() == f"{100 * row.max():.1f}%"
    assert page.get_by_role("alert").count() == 0


def test_abstaining_and_the_keyboard(page, url):
    page.goto(url)
    page.get_by_label("Abstain below").fill("1")
    page.get_by_role("textbox", name="Texts").fill("the apple")
    page.get_by_role("textbox", name="Texts").press("Control+Enter")
    page.get_by_text("Abstained: not sure enough.").wait_for()
    assert page.get_by_role("heading", name="1 text in").is_visible()
    assert page.locator("dt.best").count() == 0


def test_errors_are_shown_and_go_away(page, url):
    page.goto(url)
    page.get_by_role("textbox", name="Texts").fill("a\nb\nc\nd\ne")
    page.get_by_role("button").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.text_content() == "5 texts in one request; at most 4 are allowed"
    page.get_by_role("textbox", name="Texts").fill("a")
    page.get_by_role("button").click()
    page.get_by_role("heading", name="1 text in").wait_for()
    assert not alert.is_visible()


def test_a_server_that_is_gone(page, predictor):
    with running(predictor, ServerSettings(60.0)) as (client, _):
        page.goto(f"http://127.0.0.1:{client.port}")
        page.get_by_text("into 3 classes").wait_for()
    page.get_by_role("textbox", name="Texts").fill("a")
    page.get_by_role("button").click()
    page.get_by_text("The server cannot be reached.").wait_for()
    assert page.get_by_role("button").is_enabled()


def test_the_token_is_asked_for(page, predictor):
    with running(predictor, ServerSettings(60.0, token=TOKEN)) as (client, _):
        page.goto(f"http://127.0.0.1:{client.port}")
        page.get_by_role("textbox", name="Texts").fill("a")
        token = page.get_by_label("Token")
        token.wait_for()
        token.fill("wrong")
        page.get_by_role("button").click()
        page.get_by_text("send the header 'Authorization: Bearer TOKEN'").wait_for()
        token.fill(TOKEN)
        page.get_by_role("button").click()
        page.get_by_role("heading", name="1 text in").wait_for()
        page.get_by_text("into 3 classes").wait_for()

        page.get_by_role("link").click()
        page.get_by_label("This server asks for its token:").fill(TOKEN)
        page.get_by_role("button").click()
        page.get_by_text("POST /predict").wait_for()


def test_the_reference_lists_the_routes(page, url):
    page.goto(f"{url}/docs")
    page.get_by_role("heading", name="POST /predict").wait_for()
    assert page.get_by_role("heading", level=2).count() == 5
    body = page.locator("pre").first
    assert not body.is_visible()
    page.get_by_text("Request body").click()
    assert "min_probability" in str(body.text_content())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser, url, scheme):
    """WCAG's contrast of normal text, 4.5, in both colour schemes."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(url)
    contrast = """() => {
        const style = getComputedStyle(document.documentElement);
        const level = (name) => {
            const probe = document.createElement("i");
            probe.style.color = style.getPropertyValue(name);
            document.body.append(probe);
            const parts = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(Number);
            const linear = parts.map((p) => p / 255).map(
                (p) => p <= 0.03928 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4);
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        };
        const pairs = [["--text", "--card"], ["--text", "--back"], ["--soft", "--card"],
            ["--soft", "--back"], ["--on-accent", "--accent"], ["--bad", "--bad-back"],
            ["--accent", "--back"]];
        return pairs.map(([a, b]) => {
            const [low, high] = [level(a), level(b)].sort((x, y) => x - y);
            return (high + 0.05) / (low + 0.05);
        });
    }"""
    assert min(page.evaluate(contrast)) >= 4.5
    page.close()

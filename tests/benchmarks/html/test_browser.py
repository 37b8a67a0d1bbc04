"""The report in a browser: checked by axe, quiet, on a desk and a phone, light and dark, by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def opened(browser: Any, path: Path, **how: Any) -> Iterator[Any]:
    """A page that has to be quiet: nothing on the console, nothing but itself loaded."""
    noise: list[str] = []
    context = browser.new_context(**how)
    page = context.new_page()
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: noise.append(request.url[:200]))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert noise == [path.as_uri()]


def overflow(page: Any) -> int:
    found: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return found


def open_all(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")


def ground(page: Any) -> str:
    found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return found


def soon(page: Any, what: str) -> bool:
    """Whether an expression is true within three seconds; the page's policy forbids what playwright would poll with."""
    for _ in range(60):
        if page.evaluate(what):
            return True
        page.wait_for_timeout(50)
    return False


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(browser: Any, report: Path, size: dict[str, int], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with opened(browser, report, viewport=size, color_scheme=scheme, reduced_motion="reduce") as page:
        open_all(page)
        # Drawings are the same on a phone; looking into each of their elements takes most of the time.
        context = None if size is DESK else {"exclude": ["svg"]}
        options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
        found = axe.run(page, context=context, options=options).response
        wrong = [(each["id"], each["help"], each["nodes"][0]["html"][:200]) for each in found["violations"]]
        assert wrong == []
        assert len(found["passes"]) > 25, "rules that looked at something"


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
@pytest.mark.parametrize("which", ["report", "attacked"])
def test_the_page_fits(browser: Any, which: str, width: int, request: pytest.FixtureRequest) -> None:
    with opened(browser, request.getfixturevalue(which), viewport={"width": width, "height": 800}) as page:
        assert overflow(page) <= 0
        open_all(page)
        assert overflow(page) <= 0


def test_scheme_follows_the_system_and_the_button(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=DESK, color_scheme="dark") as page:
        dark, button = ground(page), page.get_by_role("button", name="Dark colours")
        assert button.get_attribute("aria-pressed") == "true"
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "false" and ground(page) != dark
        page.keyboard.press("Space")
        assert button.get_attribute("aria-pressed") == "true" and ground(page) == dark


def test_by_keyboard(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=PHONE) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0, "seen when it has the focus"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "scheme"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#main"
        page.keyboard.press("Tab")
        region = page.evaluate("[document.activeElement.className, document.activeElement.getAttribute('role')]")
        assert region == ["scroll", "region"]
        page.keyboard.press("ArrowRight")
        assert soon(page, "document.activeElement.scrollLeft > 0")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.parentElement.open") is True


def test_without_script(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=PHONE, java_script_enabled=False) as page:
        assert page.locator("section[id^=kernels] h2").is_visible() and not page.locator("#scheme").is_visible()


def test_drawings_are_as_large_as_they_need(browser: Any, report: Path) -> None:
    """Texts of a drawing, which scale with it, are legible on a phone."""
    with opened(browser, report, viewport=PHONE) as page:
        sizes = page.evaluate(
            "[...document.querySelectorAll('.panel svg')]"
            ".map((svg) => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)"
        )
        assert len(sizes) > 12 and min(sizes) >= 1

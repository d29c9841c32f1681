"""The tab of models in a real browser: nano, and tiny checkpoints in folders."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, Tab, started, ui

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

pytestmark = pytest.mark.browser

CLOSED = "http://127.0.0.1:9"
"""Where nobody listens, in the hub's place."""

SLOW = """
import sys, time
from pathlib import Path
import dg_mlx
from dg_mlx.app import server
from dg_mlx.app.desk import Desk
from dg_mlx.serve.models import Models

def load(name):
    while name != "nano" and not Path(name, "go").exists():
        time.sleep(0.05)
    return dg_mlx.load(name)

if __name__ == "__main__":
    with server.temporary_files():
        desk = Desk(Models(load, "nano"), None)
        address = server.Address(port=0)
        try:
            with server.listening(address) as listener:
                app = server.build(desk, address)
                print(f"at {server.url(listener)} ", flush=True)
                server.serve(app, listener)
        finally:
            desk.close()
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine with nothing in its cache, and without a hub."""
    pytest.importorskip("gradio")
    home = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home / "hub"))
        patch.delenv("HF_HUB_CACHE", raising=False)
        patch.setenv("HF_ENDPOINT", CLOSED)
        yield home


@pytest.fixture(scope="module")
def server(alone: Path) -> Iterator[Server]:
    with started(alone / "ui", *ui()) as found:
        yield found


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a tiny checkpoint in a folder of this name."""
    return lambda name: tiny.write_tokenizer(tiny.write(tmp_path / name))


class Shelf:
    """The tab, and what a user does there."""

    def __init__(self, tab: Tab) -> None:
        self.tab, self.page = tab, tab.page
        named = self.page.locator(
            "button:visible:not([tabindex='-1'])", has_text=re.compile("^Models$")
        )
        if not named.count():  # a narrow page has it in a menu
            self.page.click(".overflow-menu > button")
        named.click()
        self.page.wait_for_selector("[data-model=nano]")

    def model(self, name: str) -> Any:
        return self.page.locator(f"[data-model={name!r}]".replace("'", '"'))

    def press(self, name: str, action: str) -> None:
        self.model(name).locator(f"[data-testid={action}]").click()

    def says(self, name: str, now: str) -> None:
        """Wait until a model's row says what it does."""
        self.model(name).locator("[data-testid=now]", has_text=re.compile(now)).wait_for()

    def use(self, name: str) -> None:
        use = self.model(name).locator("[data-testid=use]")
        if use.is_enabled():
            use.click()
        self.says(name, "loaded · the one that answers")

    def open(self, path: Any) -> None:
        self.page.fill("[data-testid=open-folder-field]", str(path))
        self.page.press("[data-testid=open-folder-field]", "Enter")

    def fill(self, source: str, form: str, target: Any = "", *, compare: bool = False) -> None:
        """Ask for a conversion."""
        self.page.fill("[data-testid=source]", source)
        self.page.select_option("[data-testid=quant]", form)
        self.page.fill("[data-testid=target]", str(target))
        self.page.set_checked("[data-testid=compare]", compare)
        self.page.click("[data-testid=convert]")

    def convert(self, *given: Any, **options: Any) -> Any:
        """Start a conversion; its row."""
        return self.job(lambda: self.fill(*given, **options))

    def job(self, begin: Callable[[], None]) -> Any:
        """The row of the job that this begins, which is the first one."""
        ids = "[...document.querySelectorAll('[data-job]')].map((e) => e.dataset.job)"
        before = self.page.evaluate(ids)
        begin()
        self.page.wait_for_function(
            f"(before) => {ids}.some((id) => !before.includes(id))", arg=before
        )
        return self.page.locator(f"[data-job='{self.page.evaluate(ids)[0]}']")

    def told(self, text: str) -> None:
        """Wait for what a screen reader hears."""
        said = self.page.locator("[data-testid=models-said]", has_text=text)
        said.wait_for(state="attached")

    def setting(self, name: str) -> str:
        """A number of the settings, which are folded."""
        if not self.page.locator(f"#dg-{name}").count():
            self.page.evaluate(
                "[...document.querySelectorAll('#dg-settings button')]"
                ".find((b) => b.innerText.includes('Sampling')).click()"
            )
        return str(self.page.locator(f"#dg-{name} input").input_value())


@pytest.fixture
def shelf(tabs: Callable[..., Tab], server: Server) -> Iterator[Shelf]:
    found = Shelf(tabs(server.url))
    yield found
    found.use("nano")


def over(job: Any, state: str) -> str:
    """Wait for a job's end; its line."""
    id = job.get_attribute("data-job")
    job.page.locator(f"[data-job='{id}'][data-state={state}]").wait_for(timeout=120_000)
    return str(job.locator("[data-testid=job-text]").inner_text())


def test_what_is_here_and_what_could_be(shelf: Shelf) -> None:
    row = shelf.model("nano").inner_text()
    assert "bundled" in row
    assert "3.4 MB" in row
    assert "fits, up to" in row
    offers = shelf.page.locator("[data-offer]")
    assert [offer.get_attribute("data-offer").split("/")[0] for offer in offers.all()] == [
        "google", "mlx-community", "mlx-community",
    ]  # fmt: skip
    for offer in offers.all():
        room = offer.locator("td").nth(3).inner_text()
        assert room in ("has room", "has no room")
        assert offer.locator("button").is_enabled() == (room == "has room")
        assert "fit" in offer.inner_text()
    memory = shelf.page.inner_text("[data-testid=memory]")
    assert re.search(r"B in use · .*B kept .* in all", memory)
    assert "free on the disk" in shelf.page.inner_text("[data-testid=disk]")


def test_unload_and_use_from_the_keyboard(shelf: Shelf) -> None:
    shelf.use("nano")
    shelf.press("nano", "unload")
    shelf.says("nano", "the one that answers; loads when asked")
    shelf.told("nano is unloaded.")
    shelf.model("nano").locator("[data-testid=use]").focus()
    shelf.page.keyboard.press("Enter")
    shelf.says("nano", "loaded · the one that answers")
    shelf.told("nano is loaded.")
    assert shelf.page.evaluate("document.activeElement.closest('[data-model]').dataset.model") == (
        "nano"
    )
    assert shelf.model("nano").locator("[data-testid=use]").is_disabled()


def test_a_model_that_answers_stays(shelf: Shelf) -> None:
    page = shelf.page
    shelf.use("nano")
    page.evaluate("document.querySelector('#dg-stepwise input').click()")
    page.click("button[role=tab]:has-text('Chat')")
    shelf.tab.send("A 1.3.\nB .41.\nC ....\nD ..21")  # it is held before its first step
    page.click("button[role=tab]:has-text('Models')")
    shelf.says("nano", "answering")
    shelf.press("nano", "unload")
    shelf.tab.alert(r"an answer runs on nano; stop it or wait for it, then unload\.")
    page.click("button[role=tab]:has-text('Chat')")
    page.click("#dg-box .stop-button")
    page.wait_for_selector("#dg-box .submit-button")
    page.click("button[role=tab]:has-text('Models')")
    shelf.says("nano", "^loaded")
    shelf.press("nano", "unload")
    shelf.says("nano", "loads when asked")


def test_folders(shelf: Shelf, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    page, good, broken = shelf.page, checkpoint("good"), checkpoint("broken")
    (broken / "model.safetensors").unlink()
    shelf.open(broken)
    shelf.tab.alert(r"has no \*\.safetensors")
    assert page.input_value("[data-testid=open-folder-field]") == str(broken), "to be corrected"
    assert shelf.model(str(broken)).count() == 0
    shelf.open(tmp_path / "none")
    shelf.tab.alert(r"there is no folder .*none; give the folder that holds config\.json\.")
    shelf.open("")
    shelf.tab.alert("there is no path; give the folder")
    shelf.open(good)
    shelf.model(str(good)).wait_for()
    assert "fits, up to" in shelf.model(str(good)).inner_text()
    assert page.input_value("[data-testid=open-folder-field]") == ""
    shelf.use(str(good))
    page.wait_for_function("document.querySelector('#dg-model input').value.endsWith('good')")
    assert shelf.setting("max_denoising_steps") == str(tiny.SETTINGS["max_denoising_steps"])
    page.reload()
    shelf.tab.ready()
    page.wait_for_function("document.querySelector('#dg-model input').value.endsWith('good')")
    again = Shelf(shelf.tab)
    again.use("nano")
    assert again.setting("max_denoising_steps") == "48"
    again.says(str(good), "^loaded$")
    again.press(str(good), "unload")
    again.says(str(good), "^not loaded$")
    (good / "tokenizer.json").unlink()
    row = again.model(str(good))
    row.locator("[data-testid=fits]", has_text="has no tokenizer.json").wait_for()
    assert row.locator("[data-testid=use]").is_disabled()
    assert row.locator("[data-testid=again]").is_hidden(), "it is not of the hub"


def test_a_conversion_and_its_use(shelf: Shelf, server: Server) -> None:
    page, target = shelf.page, server.home.resolve() / "models" / "nano-8bit"
    shutil.rmtree(target, ignore_errors=True)
    page.fill("[data-testid=source]", "nano")
    page.select_option("[data-testid=quant]", "8bit")
    page.locator(f"[data-testid=target][placeholder='{target}']").wait_for()
    job = shelf.convert("nano", "8bit")
    job.locator("progress").wait_for()
    assert f"convert nano to {target}" in job.inner_text()
    assert over(job, "done").startswith(f"{target}: 1.8 MB from 3.4 MB")
    assert job.locator("progress").is_hidden()
    assert job.locator("[data-testid=halt]").is_hidden()
    shelf.told("1.8 MB from 3.4 MB")
    job.locator("[data-testid=use-made]").click()
    shelf.says(str(target), "loaded · the one that answers")
    page.wait_for_function("document.querySelector('#dg-model input').value.endsWith('nano-8bit')")
    shelf.fill("nano", "8bit")
    shelf.tab.alert(r"nano-8bit exists; name another folder as the target\.")
    shelf.fill("", "8bit")
    shelf.tab.alert("there is no source")


def test_a_conversion_elsewhere_is_listed(shelf: Shelf, tmp_path: Path) -> None:
    job = shelf.convert("nano", "none", tmp_path / "plain")
    over(job, "done")
    shelf.model(str(tmp_path / "plain")).wait_for()
    assert shelf.page.input_value("[data-testid=target]") == ""


def test_a_conversion_is_stopped(shelf: Shelf, tmp_path: Path) -> None:
    job = shelf.convert("nano", "4bit", tmp_path / "out", compare=True)
    job.locator("[data-testid=job-text]", has_text="starting").wait_for()
    job.locator("[data-testid=halt]").click()
    assert over(job, "stopped").startswith("stopped; convert it again with the same options")
    assert job.locator("[data-testid=use-made]").is_hidden()
    assert not (tmp_path / "out").exists()
    again = shelf.convert("nano", "4bit", tmp_path / "out")
    over(again, "done")


def test_a_source_that_is_not_one(shelf: Shelf, tmp_path: Path) -> None:
    job = shelf.convert("~nobody/it", "4bit", tmp_path / "out")
    assert "there is no folder '~nobody/it'" in over(job, "failed")


@pytest.mark.parametrize("written", ["someone/none", "https://huggingface.co/someone/none/"])
def test_a_hub_that_cannot_be_reached(shelf: Shelf, written: str) -> None:
    shelf.page.fill("[data-testid=fetch-any-field]", written)
    job = shelf.job(lambda: shelf.page.click("[data-testid=fetch-any]"))
    line = over(job, "failed")
    assert line == (
        "someone/none is no folder, and not (completely) in the cache while the hub cannot be "
        "reached; go online to fetch what is missing."
    )
    assert job.inner_text().startswith("download someone/none")


def test_it_asks_only_while_it_is_seen(shelf: Shelf) -> None:
    page, asked = shelf.page, []
    page.on("request", lambda request: asked.append(request.url))

    def count(seconds: float) -> int:
        page.wait_for_timeout(500)  # what is on its way
        asked.clear()
        page.wait_for_timeout(1000 * seconds)
        return sum("/dg/models" in url for url in asked)

    assert 1 <= count(2) <= 3
    page.click("button[role=tab]:has-text('Chat')")
    assert count(2) == 0
    page.click("button[role=tab]:has-text('Models')")
    assert 1 <= count(2) <= 3


def test_a_server_that_is_gone(shelf: Shelf) -> None:
    shelf.tab.allowed.append("Failed to load resource")
    shelf.page.route("**/dg/models*", lambda route: route.abort())
    shelf.page.locator("[data-testid=lost]").wait_for()
    shelf.page.unroute("**/dg/models*")
    shelf.page.locator("[data-testid=lost]").wait_for(state="hidden")


def test_no_other_site_sees_it(shelf: Shelf) -> None:
    path = f"{shelf.tab.origin}/dg/models"
    assert shelf.page.request.get(path).ok
    answer = shelf.page.request.get(path, headers={"Origin": "http://elsewhere.example"})
    assert answer.status == 403


def test_a_narrow_page(tabs: Callable[..., Tab], server: Server) -> None:
    shelf = Shelf(tabs(server.url, viewport={"width": 430, "height": 900}))
    shelf.page.locator(".dg-narrow").wait_for()
    assert shelf.page.evaluate("document.documentElement.scrollWidth") <= 430
    beyond = """[...document.querySelectorAll('.dg-models :not(thead, thead *)')]
        .filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML)"""
    assert shelf.page.evaluate(beyond) == []
    assert shelf.page.locator("[role=table]").count() == 2
    assert shelf.page.get_by_role("button", name="Unload: nano", exact=True).count() == 1


def test_the_page_works_while_a_model_loads(
    alone: Path, tabs: Callable[..., Tab], checkpoint: Callable[[str], Path]
) -> None:
    slow, other = checkpoint("slow"), checkpoint("other")
    script = alone / "slow.py"
    script.write_text(SLOW)
    with started(alone / "slow", str(script)) as server:
        shelf = Shelf(tabs(server.url))
        shelf.open(slow)
        shelf.press(str(slow), "use")
        shelf.says(str(slow), r"loading… [12] s")
        shelf.says("nano", "the one that answers; loads when asked")
        shelf.open(other)
        shelf.model(str(other)).wait_for()
        shelf.press(str(other), "use")  # it waits for its turn
        (slow / "go").touch()
        (other / "go").touch()
        shelf.says(str(slow), "loaded")
        shelf.says(str(other), "loaded · the one that answers")
        shelf.page.goto("about:blank")

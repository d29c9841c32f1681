"""The canvas widget in a browser: what it draws of recordings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from recorded import LONG, Tape, recorded, sudoku, thinking

from dg_mlx.events import Prefilled

pytestmark = pytest.mark.browser
chromium = pytest.importorskip("chromium")

Frame = dict[str, Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with chromium.opened(browser) as page:
        page.set_content(chromium.html())
        page.evaluate("window.a = DGCanvas.mount(document.getElementById('a'), {label: 'Chat'})")
        yield page


def get(page: Any, name: str, root: str = "#a") -> Any:
    return page.locator(f"{root} [data-testid={name}]")


def drawn(page: Any) -> None:
    """Wait until all that was asked for is on the screen."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def load(page: Any, tape: Tape, name: str = "a", **options: Any) -> None:
    page.evaluate(
        f"([frames, options]) => {name}.load({{frames}}, options)", [tape.frames, options]
    )
    drawn(page)


def show(page: Any, index: int) -> None:
    get(page, "scrub").fill(str(index))
    drawn(page)


def shown(page: Any) -> str:
    return str(page.locator("#a .dg-canvas > .dg-tokens").text_content())


def cells(page: Any) -> list[str]:
    return list(page.locator("#a .dg-canvas > .dg-tokens > span[data-i]").all_text_contents())


def drafts(tape: Tape) -> list[Frame]:
    """Every draft in full: `c`, `g` and `v` of all positions."""
    whole: list[Frame] = []
    for frame in tape.frames:
        if frame["kind"] == "draft":
            if frame["key"]:
                full = {name: [*frame[name]] for name in "cgv"}
            else:
                full = {name: [*whole[-1][name]] for name in "cgv"}
                for name in "cgv":
                    for at, value in zip(frame["i"], frame[name], strict=True):
                        full[name][at] = value
            whole.append({**frame, **full})
    return whole


def text(tape: Tape, draft: Frame) -> str:
    """What the best guess reads, after docs/recordings.md."""
    hidden = {at for start, stop, _ in draft["parts"] for at in range(start, stop)}
    ids = [token for at, token in enumerate(draft["g"][: draft["count"]]) if at not in hidden]
    return "".join(tape.words.piece(token) for token in ids)


def test_every_step_shows_the_text_that_was_recorded(page: Any) -> None:
    tape = recorded(LONG, "\nAnd the second block ends here.", length=128)
    load(page, tape)
    steps = drafts(tape)
    assert sum(step["key"] for step in steps) >= 2 and not all(step["key"] for step in steps)
    for index, step in [*enumerate(steps)][::3]:
        show(page, index)
        assert shown(page) == text(tape, step)
        assert get(page, "canvas").get_attribute("data-n") == str(step["n"])
    assert get(page, "canvas").get_attribute("data-frames") == str(len(tape.frames))


def test_line_says_the_numbers_of_the_step_that_is_shown(page: Any) -> None:
    tape = recorded(LONG, "A second block.", length=128)
    load(page, tape)
    read = next(frame["at"] for frame in tape.frames if frame["kind"] == "read")
    for index in (0, 7, 25):
        step, seconds = drafts(tape)[index], drafts(tape)[index]["at"] - read
        show(page, index)
        parts = str(get(page, "stats").text_content()).split(" · ")
        rate = step["tokens"] / seconds
        assert parts == [
            f"block {step['block'] + 1}",
            f"step {step['step']}/≤{step['max']}",
            f"settled {step['settled']}/{step['count']}",
            f"entropy {step['entropy']:.2f}",
            f"{rate:.1f} tok/s" if rate < 10 else f"{rate:.0f} tok/s",
            f"{step['steps'] / seconds:.1f} steps/s",
            f"{step['tokens'] / step['steps']:.1f} tok/step",
        ]


def test_time_in_which_the_run_was_held_is_no_part_of_its_rates(page: Any) -> None:
    tape = Tape(length=32)
    tape.begin()
    steps = iter(tape.drafts(tape.words.ids("one two three")))
    for _ in range(4):
        tape.take(next(steps))
    tape.tell("pause")
    tape.now += 1000
    tape.tell("resume")
    tape.take(next(steps))
    load(page, tape)
    assert "3.3 steps/s" in get(page, "stats").text_content()  # 5 steps in 1.5 s


def test_settled_tokens_do_not_move_in_the_cells_view(page: Any) -> None:
    tape = recorded(LONG, length=128)
    load(page, tape)
    get(page, "view-cells").click()
    places = []
    for index in range(0, 20, 4):
        show(page, index)
        places.append(
            page.evaluate(
                "[...document.querySelectorAll('#a .cells > [data-i]')]"
                ".map(e => [e.offsetLeft, e.offsetTop])"
            )
        )
    assert all(before == after for before, after in pairwise(places))
    assert len({top for _, top in places[0]}) == 128 / 16


def test_cells_after_the_end_are_dots_and_breaks_are_signs(page: Any) -> None:
    tape = recorded("one\ntwo", length=32)
    load(page, tape)
    get(page, "view-cells").click()
    drawn(page)
    assert cells(page) == ["one", "↵", "two", "<end>", *["·"] * 28]
    assert "badge" in str(page.locator("#a [data-i='3']").get_attribute("class"))
    assert get(page, "view-cells").text_content() == "16×2"  # noqa: RUF001


def test_raw_canvas_has_noise_whose_breaks_are_signs(page: Any) -> None:
    tape = recorded(LONG, length=128)
    load(page, tape)
    get(page, "view-raw").click()
    show(page, 1)
    step = drafts(tape)[1]
    texts = [tape.words.piece(token) for token in step["c"]]
    accepted = [value & 8 for value in step["v"]]
    signs = [t.replace("\n", "↵").replace("\t", "⇥") for t in texts]
    for at, got in enumerate(cells(page)[: step["count"]]):
        assert got.strip(" ") == (texts[at] if accepted[at] else signs[at]).strip(" ")
    assert any("↵" in sign for sign in signs)


def test_bytes_side_by_side_are_characters(page: Any) -> None:
    load(page, thinking())
    assert shown(page).endswith("A fox: 🦊é is here.")


def test_thought_is_a_remark_that_opens(page: Any) -> None:
    load(page, thinking())
    assert shown(page).startswith("(thought: 5 tokens)\nA fox")
    page.locator("#a .dg-remark").click()
    drawn(page)
    assert shown(page).startswith("(thought: 5 tokens)\n Let me think of it\nA fox")
    get(page, "canvas").press("t")
    drawn(page)
    assert "think" not in shown(page)[10:]


def test_control_and_bidi_characters_are_signs(page: Any) -> None:
    tape = recorded("red", length=16)
    for frame in tape.frames:
        for token in frame.get("new", {}):
            frame["new"][token] = "\x1b[31m\u202e<img src=x onerror=alert(1)>\x07"
    load(page, tape)
    assert shown(page) == "␛[31m<U+202E><img src=x onerror=alert(1)>␇"
    assert page.locator("#a img").count() == 0


def test_views_are_toggles(page: Any) -> None:
    load(page, recorded("words of an answer", length=16))
    assert get(page, "view-guess").get_attribute("aria-pressed") == "true"
    assert not get(page, "view-board").is_visible()
    for name in ("raw", "cells", "guess"):
        get(page, f"view-{name}").click()
        drawn(page)
        pressed = page.locator("#a [data-view][aria-pressed=true]")
        assert pressed.get_attribute("data-view") == name
        assert "words" in shown(page)


def test_keys_move_the_scrubber(page: Any) -> None:
    load(page, recorded("words of an answer", length=16))
    scrub, canvas = get(page, "scrub"), get(page, "canvas")
    for key, index in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("End", 19)):
        scrub.press(key)
        drawn(page)
        assert canvas.get_attribute("data-k") == str(index)
    assert "step 20" in str(scrub.get_attribute("aria-valuetext"))


def test_map_is_the_timeline(page: Any) -> None:
    load(page, recorded(LONG, length=128))
    box = get(page, "map").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.26, box["y"] + 10)
    page.mouse.down()
    drawn(page)
    assert get(page, "canvas").get_attribute("data-k") == "5"
    page.mouse.move(box["x"] + box["width"] * 0.76, box["y"] + 10)
    page.mouse.up()
    drawn(page)
    assert get(page, "canvas").get_attribute("data-k") == "15"


def test_map_has_a_pixel_for_the_state_of_a_position_in_a_step(page: Any) -> None:
    tape = recorded(LONG, length=128)
    load(page, tape)
    pixels = page.evaluate(
        """() => { const {map} = a.painter.timeline, {canvas} = map.context;
          const {data} = map.context.getImageData(0, 0, map.count, canvas.height);
          const colours = [...document.querySelectorAll('#a .dg-key i')]
            .map(e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).join());
          const at = i => [...data.slice(4 * i, 4 * i + 3)].join();
          return Array.from({length: map.count}, (_, x) => Array.from({length: canvas.height},
            (_, y) => data[4 * (y * map.count + x) + 3] ? colours.indexOf(at(y * map.count + x))
              : null)); }"""
    )
    for column, step in zip(pixels, drafts(tape), strict=True):
        counted = [value & 7 for value in step["v"][: step["count"]]]
        assert column == [*counted, *[None] * (128 - len(counted))]


def test_replay_ends_at_the_last_step_and_can_be_held(page: Any) -> None:
    load(page, recorded("words of an answer", length=16))
    get(page, "speed").select_option("even")
    get(page, "play").click()
    page.wait_for_function("document.querySelector('#a [data-k]').dataset.k === '19'")
    assert get(page, "play").get_attribute("aria-label") == "Replay"
    page.evaluate("a.show(2), a.play(0.25)")
    drawn(page)
    get(page, "play").click()
    drawn(page)
    assert int(get(page, "canvas").get_attribute("data-k")) < 19
    assert get(page, "play").get_attribute("aria-label") == "Replay"


def test_inspector_tells_of_a_token(page: Any) -> None:
    tape = recorded(LONG, length=128)
    load(page, tape)
    show(page, 19)
    steps = drafts(tape)
    page.locator("#a .dg-canvas [data-i='12']").hover()
    guesses = [step["g"][12] for step in steps]
    changes = sum(a != b for a, b in pairwise(guesses))
    settled = next(step["step"] for step in steps if step["v"][12] & 7 == 2)
    word = tape.words.piece(guesses[-1])
    assert str(get(page, "inspector").text_content()).split(" · ") == [
        f"#12 canvas “{word}”",
        f"guess “{word}”",
        "confidence 80–100 %",  # noqa: RUF001
        f"changed {changes}×",  # noqa: RUF001
        f"first settled at step {settled}",
        "settled",
    ]


def test_arrow_keys_read_tokens(page: Any) -> None:
    load(page, recorded("one two three\nfour five six", length=16))
    canvas, inspector = get(page, "canvas"), get(page, "inspector")
    for key, word in (
        ("Home", "one"),
        ("ArrowRight", " two"),
        ("ArrowDown", " five"),
        ("ArrowLeft", "four"),
        ("ArrowUp", "one"),
        ("End", " six"),
    ):
        canvas.press(key)
        assert f"guess “{word}”" in inspector.text_content()


def test_confidence_can_be_shaded(page: Any) -> None:
    tape = recorded(LONG, length=128)
    load(page, tape)
    show(page, 3)
    get(page, "heat").click()
    drawn(page)
    step = drafts(tape)[3]
    names = page.locator("#a .dg-canvas > .dg-tokens > span[data-i]").evaluate_all(
        "all => all.map(e => e.className)"
    )
    for at in range(step["count"]):
        if "off" not in names[at].split():
            assert f"h{step['v'][at] >> 4}" in names[at].split()


@pytest.mark.parametrize("size", [4, 6, 9])
def test_sudoku_is_a_board(page: Any, size: int) -> None:
    tape = sudoku(size)
    load(page, tape)
    get(page, "view-board").click()
    drawn(page)
    boxes = page.locator("#a .dg-box")
    answer = next(frame["text"] for frame in tape.frames if frame["kind"] == "commit")
    digits = [char for line in answer.split("\n") for char in line[2:]]
    assert boxes.all_text_contents() == digits
    puzzle = [c for line in tape.frames[0]["prompt"].split("\n")[1:] for c in line[2:]]
    given = boxes.evaluate_all("all => all.map(e => e.classList.contains('given'))")
    assert given == [cell != "." for cell in puzzle]
    assert page.locator("#a .dg-box.bad").count() == 0
    assert "Solved" in page.locator("#a .dg-board-note").text_content()


def test_arrow_keys_read_a_board(page: Any) -> None:
    load(page, sudoku(4))
    get(page, "view-board").click()
    drawn(page)
    seen = []
    for key in ("Home", "ArrowRight", "ArrowDown", "End", "ArrowUp"):
        get(page, "canvas").press(key)
        seen.append(page.locator("#a .dg-box[data-cursor]").text_content())
    assert seen == ["1", "2", "4", "1", "3"]


def test_board_marks_conflicts_and_changed_givens(page: Any) -> None:
    tape = Tape(length=32)
    tape.begin("Solve:\nA 1.3.\nB ..12\nC 2..3\nD .3.1")
    answer = "A 1134\nB 3412\nC 2143\nD 4321"
    tape.block([tape.words.id(char) for char in answer], answer)
    tape.end()
    load(page, tape)
    get(page, "view-board").click()
    drawn(page)
    bad = page.locator("#a .dg-box").evaluate_all(
        "all => all.flatMap((e, i) => e.classList.contains('bad') ? [i] : [])"
    )
    # The second 1 is in the row and box of the first, in a column with another.
    assert bad == [0, 1, 9]
    assert page.locator("#a .dg-board-note").text_content() == "3 cells in conflict"


def test_other_answers_have_no_board(page: Any) -> None:
    load(page, recorded("A 1342 is no board", length=16, prompt="A 12\nB 21"))
    assert not get(page, "view-board").is_visible()


def test_elements_do_not_grow_with_frames(page: Any) -> None:
    tape = Tape(length=64)
    tape.begin()
    count = "document.querySelectorAll('#a *').length"
    words, counts = tape.words.ids(LONG)[:64], []
    for block in range(20):
        tape.block(words, LONG, block, steps=48)
        if block in (1, 19):
            load(page, tape)
            counts.append(page.evaluate(count))
    assert len(drafts(tape)) == 20 * 48
    assert counts[0] == counts[1]
    assert get(page, "canvas").get_attribute("data-k") == "959"


def test_canvases_in_step_show_the_same_step_of_the_same_block(page: Any) -> None:
    load(page, recorded(LONG, "More.", length=128))
    page.evaluate(
        "window.b = DGCanvas.mount(document.getElementById('b'), {label: 'B'});"
        "DGCanvas.sync([a, b])"
    )
    load(page, recorded(LONG, "More.", length=128, steps=12), "b")
    for index, wanted in ((3, 3), (15, 11), (22, 14)):
        show(page, index)
        assert get(page, "canvas", "#b").get_attribute("data-k") == str(wanted)


def test_order_of_an_autoregressive_model_is_an_illustration(page: Any) -> None:
    tape = recorded("one two three four", "five six", length=16)
    load(page, tape, order="autoregressive")
    assert page.locator("#a .dg-order").is_visible()
    assert "Not a measurement" in page.locator("#a .dg-order").text_content()
    seen = []
    for index in range(8):
        show(page, index)
        seen.append(shown(page))
        assert "tok/s" not in get(page, "stats").text_content()
    first = ["one", "one two", "one two three", "one two three four"]
    assert seen == [*first, first[-1], "five", "five six", "five six"]  # the end token is a step
    load(page, tape)
    assert not page.locator("#a .dg-order").is_visible()


def test_answers_of_an_edit_follow_one_another(page: Any) -> None:
    tape = Tape(length=16)
    tape.begin()
    tape.block([*tape.words.ids("first answer"), 1], "first answer")
    tape.take(Prefilled(tokens=9, cached=7, seconds=0.1))
    tape.block([*tape.words.ids("second one"), 1], "second one")
    tape.tell("edited", text="second one", spans=[[0, 6]], fills=["second"])
    tape.tell("end", conversation=None, message=None)
    load(page, tape)
    assert shown(page) == "second one"
    show(page, 19)
    assert shown(page) == "first answer"
    assert page.evaluate("a.painter.timeline.blocks") == [0, 20]


def test_mounting_twice_gives_the_same_widget(page: Any) -> None:
    assert page.evaluate("DGCanvas.mount(document.getElementById('a')) === a")
    page.evaluate("a.destroy()")
    assert page.locator("#a *").count() == 0
    assert page.evaluate("DGCanvas.mount(document.getElementById('a')) !== a")


def test_empty_canvas_has_a_sentence(page: Any) -> None:
    load(page, recorded("words", length=16))
    page.evaluate("a.clear('Choose a message.')")
    drawn(page)
    assert page.locator("#a .dg-empty").text_content() == "Choose a message."
    assert get(page, "canvas").get_attribute("data-state") == "idle"
    assert shown(page) == "" or not page.locator("#a .dg-canvas > .dg-tokens").is_visible()


def test_damaged_step_is_said_and_the_rest_is_shown(browser: Any) -> None:
    tape = recorded("words of an answer", length=16)
    broken = next(f for f in tape.frames if f["kind"] == "draft" and not f["key"])
    broken["i"] = [99, *broken["i"][1:]]
    with chromium.opened(browser) as page:
        page.set_content(chromium.html())
        page.evaluate("console.error = () => {}")
        page.evaluate("window.a = DGCanvas.mount(document.getElementById('a'))")
        page.evaluate("frames => frames.forEach(frame => a.push(frame))", tape.frames)
        drawn(page)
        assert "The answer goes on." in get(page, "said").text_content()
        assert page.evaluate("a.frames.length") == len(tape.frames)
        assert get(page, "canvas").get_attribute("data-done") == "1"


def test_dark_page_has_other_colours(page: Any) -> None:
    load(page, recorded(LONG, length=128))
    colour = "getComputedStyle(document.querySelector('#a .dg')).backgroundColor"
    light = page.evaluate(f"[{colour}, a.painter.timeline.palette[2]]")
    page.evaluate("document.body.classList.add('dark')")
    drawn(page)
    dark = page.evaluate(f"[{colour}, a.painter.timeline.palette[2]]")
    assert light[0] != dark[0] and light[1] != dark[1]


def test_tokens_are_hidden_from_screen_readers_and_one_status_speaks(page: Any) -> None:
    load(page, recorded("words", length=16))
    assert page.locator("#a [role=status]").count() == 1
    assert page.locator("#a .dg-canvas > .dg-tokens").get_attribute("aria-hidden") == "true"

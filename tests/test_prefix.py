"""A conversation's prompts, read where they differ only: the same numbers as read whole."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import dg_mlx
from dg_mlx import Done, Prefilled
from dg_mlx.model import ImagePatches, Media
from dg_mlx.prefix import MARKS, PrefixCache
from dg_mlx.prefix_store import PrefixStore
from dg_mlx.processor import Prompt

IMAGE = tiny.VOCAB - 4
CANVAS = list(range(2, 2 + tiny.CANVAS))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny.write_tokenizer(tiny.write(tmp_path_factory.mktemp("tiny")))
    return dg_mlx.load(str(folder), backend="cpu")


def picture(number: int, start: int) -> ImagePatches:
    pixels = np.random.default_rng(number).random((9, 48)).astype(np.float32)
    return ImagePatches(pixels_PC=pixels, grid=(3, 3), start=start, tokens=1, key=str(number))


def prompt(parts: list[int]) -> Prompt:
    """Tokens; a negative number is a picture."""
    ids = [part if part >= 0 else IMAGE for part in parts]
    images = [picture(-part, at) for at, part in enumerate(parts) if part < 0]
    return Prompt(ids=ids, media=Media(images=tuple(images)) if images else None)


def logits(model, cache) -> np.ndarray:
    return np.array(model.denoise(mx.array([CANVAS]), cache))


def read(model, cache, ids, media) -> None:
    if ids:
        model.prefill(mx.array([ids]), cache, media=media, chunk=24)


token = st.integers(2, 40) | st.integers(-3, -1)
tokens = st.lists(token, min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), tokens, st.booleans()), min_size=1, max_size=8))
def test_prompts_that_change_anywhere_give_the_numbers_of_prompts_read_whole(engine, turns) -> None:
    model, prefix, parts = engine.model, PrefixCache(), []
    for share, new, answered in turns:
        parts = parts[: round(share * len(parts))] + new
        asked = prompt(parts)
        cache, rest = prefix.open(model, asked, len(parts))
        read(model, cache, rest.ids, rest.media)
        prefix.mark()
        whole = model.new_cache()
        read(model, whole, asked.ids, asked.media)
        assert cache.tokens == whole.tokens == len(parts)
        np.testing.assert_allclose(logits(model, cache), logits(model, whole), atol=2e-4)
        if answered:  # a block that the next prompt may or may not repeat
            block = list(CANVAS)
            prefix.extend(block)
            read(model, cache, block, None)
            parts = parts + block


def cached(engine, prefix, ids, **options) -> int:
    return next(
        e.cached for e in engine.stream(ids, prefix=prefix, **options) if isinstance(e, Prefilled)
    )


def test_a_turn_reads_what_is_new(engine) -> None:
    prefix, first = PrefixCache(), [*range(2, 60)]
    assert cached(engine, prefix, first) == 0
    assert cached(engine, prefix, [*first, 7, 8, 9]) >= len(first)
    assert cached(engine, prefix, [*first, 7, 8, 9]) == len(first) + 3  # asked again
    assert cached(engine, prefix, [*first, 7, 5]) == len(first)  # a turn that was edited
    assert cached(engine, prefix, [3, *first]) == 0


def test_places_are_few_and_the_first_one_stays(engine) -> None:
    prefix, ids = PrefixCache(), [*range(2, 42)]
    for _ in range(2 * MARKS):
        ids = [*ids, 50, 51]
        cached(engine, prefix, ids)
    assert cached(engine, prefix, [*ids[:-3], 60]) == len(ids) - 4
    assert cached(engine, prefix, [*ids[:43], 60]) == 42


def test_memory_does_not_grow_with_turns(engine) -> None:
    prefix, sizes = PrefixCache(), []
    for _ in range(3 * MARKS):
        cached(engine, prefix, [*range(2, 60)], seed=1)
        sizes.append(prefix.nbytes)
    assert max(sizes) == sizes[0]


def test_another_picture_in_the_same_place_is_read(engine) -> None:
    prefix, parts = PrefixCache(), [5, 6, -1, 7, 8]
    assert cached(engine, prefix, prompt(parts)) == 0
    assert cached(engine, prefix, prompt([*parts, 9])) >= len(parts)
    assert cached(engine, prefix, prompt([5, 6, -2, 7, 8])) == 0


def test_pictures_are_looked_at_once(engine, monkeypatch) -> None:
    model, seen = engine.model, []
    look = type(model).image_features
    monkeypatch.setattr(
        type(model),
        "image_features",
        lambda self, images: seen.extend(i.key for i in images) or look(self, images),
    )
    model.features = type(model.features)()
    for parts in ([-1, 5, -1, 6], [4, -1, -2], [-2, -1]):
        engine.generate(prompt(parts))
    assert seen == ["1", "2"]


def test_what_is_kept_of_pictures_has_a_limit(engine) -> None:
    features = type(engine.model.features)(limit=3000)
    for number in range(100):
        features.put(str(number), mx.zeros((10, 16)))
    assert features.nbytes <= 3000
    assert features.get("99") is not None and features.get("0") is None


def test_a_prompt_that_was_cut_short_goes_on_where_it_stopped(engine, monkeypatch) -> None:
    prefix, ids = PrefixCache(), [i % 90 + 2 for i in range(300)]
    chunks = engine.model.prefill_chunks
    monkeypatch.setattr(
        type(engine.model),
        "prefill_chunks",
        lambda self, *args, **options: chunks(*args, **{**options, "chunk": 100}),
    )
    stream = engine.stream(ids, prefix=prefix, cancel=_cancelled_after(1))
    assert [type(e) for e in stream] == [Done]
    assert cached(engine, prefix, ids) == 200


def _cancelled_after(looks: int):
    class Cancel:
        left = looks

        def is_set(self) -> bool:
            self.left -= 1
            return self.left < 0

    return Cancel()


def test_an_error_forgets(engine, monkeypatch) -> None:
    prefix, ids = PrefixCache(), [*range(2, 60)]
    cached(engine, prefix, ids)

    def fail(*_args, **_options):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(engine.model), "denoise", fail)
        with pytest.raises(RuntimeError):
            list(engine.stream([*ids, 5], prefix=prefix))
    assert cached(engine, prefix, [*ids, 5]) == 0


def test_another_model_shares_nothing(engine, tmp_path) -> None:
    other = dg_mlx.load(str(tiny.write_tokenizer(tiny.write(tmp_path))), backend="cpu")
    prefix, ids = PrefixCache(), [*range(2, 60)]
    cached(engine, prefix, ids)
    assert cached(other, prefix, ids) == 0


def test_thoughts_that_the_template_drops(engine) -> None:
    """An answer that the next prompt does not repeat is not part of what is known."""
    prefix = PrefixCache()
    settings = replace(engine.settings, max_new_tokens=3 * tiny.CANVAS, eos_token_id=())
    first = [*range(2, 60)]
    thought = list(engine.stream(first, prefix=prefix, settings=settings))[-1]
    assert thought.stats.tokens == 3 * tiny.CANVAS
    assert cached(engine, prefix, [*first, 99, 98, 97]) == len(first)


def test_figures_say_what_was_known(engine) -> None:
    prefix, ids = PrefixCache(), [*range(2, 60)]
    engine.generate(ids, prefix=prefix)
    stats = engine.generate(ids, prefix=prefix).stats
    assert (stats.prompt_tokens, stats.cached_tokens) == (len(ids), len(ids))


# On disk.

LONG = [i % 90 + 2 for i in range(700)]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    data = tiny.config(max_position_embeddings=4096)
    folder = tiny.write_tokenizer(tiny.write(tmp_path_factory.mktemp("roomy"), data))
    return dg_mlx.load(str(folder), backend="cpu")


def test_a_long_prompt_is_known_the_next_day(roomy, tmp_path) -> None:
    store = PrefixStore(tmp_path / "prompts")
    assert cached(roomy, PrefixCache(store=store), [*range(2, 60)]) == 0
    assert not store.folder.exists()  # short ones are read faster than they are found
    first = roomy.generate(LONG, prefix=PrefixCache(store=store))
    again = roomy.generate(LONG, prefix=PrefixCache(store=store))
    assert again.stats.cached_tokens == len(LONG)
    assert again.ids == first.ids
    longer = [*LONG, *range(2, 40)]
    known = roomy.generate(longer, prefix=PrefixCache(store=store))
    assert known.stats.cached_tokens == len(LONG)
    assert known.ids == roomy.generate(longer).ids
    assert {path.stat().st_mode & 0o77 for path in [store.folder]} == {0}


def test_another_question_on_the_same_document(roomy, tmp_path, monkeypatch) -> None:
    chunks = roomy.model.prefill_chunks
    monkeypatch.setattr(
        type(roomy.model),
        "prefill_chunks",
        lambda self, *args, **options: chunks(*args, **{**options, "chunk": 300}),
    )
    store = PrefixStore(tmp_path)
    roomy.generate([*LONG, 5, 6, 7], prefix=PrefixCache(store=store))
    other = [*LONG, 8, 9]
    known = roomy.generate(other, prefix=PrefixCache(store=store))
    assert known.stats.cached_tokens == 600
    assert known.ids == roomy.generate(other).ids


@pytest.mark.parametrize("harm", ["cut", "flipped", "no arrays", "no json", "other version"])
def test_damaged_files_are_read_anew(roomy, tmp_path, harm) -> None:
    store = PrefixStore(tmp_path)
    whole = roomy.generate(LONG, prefix=PrefixCache(store=store))
    (about,), (arrays,) = tmp_path.glob("*.json"), tmp_path.glob("*.safetensors")
    data = arrays.read_bytes()
    match harm:
        case "cut":
            arrays.write_bytes(data[:-10])
        case "flipped":
            arrays.write_bytes(data[:-10] + bytes([data[-10] ^ 1]) + data[-9:])
        case "no arrays":
            arrays.unlink()
        case "no json":
            about.write_text("{")
        case "other version":
            about.write_text(about.read_text().replace('"version": 1', '"version": 2'))
    reply = roomy.generate(LONG, prefix=PrefixCache(store=store))
    assert (reply.stats.cached_tokens, reply.ids) == (0, whole.ids)
    assert roomy.generate(LONG, prefix=PrefixCache(store=store)).stats.cached_tokens == len(LONG)


def test_other_weights_do_not_read_them(roomy, tmp_path) -> None:
    store = PrefixStore(tmp_path / "prompts")
    roomy.generate(LONG, prefix=PrefixCache(store=store))
    data = tiny.config(max_position_embeddings=4096)
    folder = tiny.write_tokenizer(tiny.write(tmp_path / "other", data))
    other = dg_mlx.load(str(folder), backend="cpu")
    assert cached(other, PrefixCache(store=store), LONG) == 0


def test_the_folder_stays_within_its_limit(roomy, tmp_path) -> None:
    once = PrefixStore(tmp_path / "once")
    roomy.generate(LONG, prefix=PrefixCache(store=once))
    size = sum(path.stat().st_size for path in once.folder.iterdir())
    store = PrefixStore(tmp_path / "prompts", limit=int(2.5 * size))
    for start in range(5):
        roomy.generate([start + 2, *LONG], prefix=PrefixCache(store=store))
    assert len([*store.folder.glob("*.safetensors")]) == 2
    assert cached(roomy, PrefixCache(store=store), [6, *LONG]) == len(LONG) + 1


def test_a_folder_that_cannot_be_written_is_no_error(roomy, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    store = PrefixStore(tmp_path / "file" / "prompts")
    assert roomy.generate(LONG, prefix=PrefixCache(store=store)).ids

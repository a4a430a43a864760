"""A few seconds of ``python -m tests.darknet.fuzz``, and what it found."""

import pytest

from d2proj.darknet import plan_network
from d2proj.errors import InputError
from tests.darknet import fuzz


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return fuzz.published()


def test_the_undamaged_text_is_built_and_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "draw_text", lambda draw, texts: fuzz.SMALL)
    ran = []
    run = fuzz._run
    monkeypatch.setattr(fuzz, "_run", lambda *parts: ran.append(run(*parts)))
    assert not fuzz.attempt_cfg(0, [], tmp_path)
    assert ran


def test_damaged_files_build_or_are_refused_in_a_sentence(texts, tmp_path) -> None:
    refused = [fuzz.attempt(seed, texts, tmp_path) for seed in range(240)]
    assert 60 < sum(refused) < 200
    assert refused[:40] == [fuzz.attempt(seed, texts, tmp_path) for seed in range(40)]


def test_values_of_any_length_make_short_errors() -> None:
    """Seed 7105 of the first run: twenty thousand anchors named, all of them in the error."""
    text = fuzz.SMALL.replace("mask=0,1", "mask=" + ",".join(["-1"] * 20_000))
    with pytest.raises(InputError, match="mask must name anchors from 0 to 2") as caught:
        plan_network(text)
    assert len(str(caught.value)) < 600

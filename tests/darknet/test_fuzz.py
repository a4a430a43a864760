"""A few seconds of ``python -m tests.darknet.fuzz``, and what it found."""

import pytest

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

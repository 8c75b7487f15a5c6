"""The interactive page: its data, its escaping, and that a real browser draws it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import interp
from studies._heat_map import heat_map, write_heat_map

PROMPT = " the <b>bold</b> capital capital of France is"


@pytest.fixture(scope="module")
def trace(checkpoint: Path) -> interp.LensTrace:
    model = interp.load(checkpoint)
    return interp.logit_lens(model, [PROMPT], [[" Paris"]], positions="all", top_k=3)


def test_colours_are_the_values_of_the_lens(trace: interp.LensTrace) -> None:
    figure = heat_map(trace, "t")
    shown = torch.tensor(figure.data[0].z)
    torch.testing.assert_close(shown, trace.top_logprob[..., 0].exp().T)
    buttons = {b.label: b for b in figure.layout.updatemenus[0].buttons}
    answer = torch.tensor(buttons["P(·Paris)"].args[0]["z"][0])
    torch.testing.assert_close(answer, trace.prob[..., 0].T)


def test_equal_tokens_keep_their_own_columns(trace: interp.LensTrace) -> None:
    names = heat_map(trace, "t").data[0].x
    assert len(set(names)) == len(names) == len(trace.position)


def test_text_from_prompt_and_vocabulary_is_escaped(
    trace: interp.LensTrace, tmp_path: Path
) -> None:
    page = write_heat_map(trace, tmp_path / "t.html", title="<img src=x onerror=alert(1)>")
    data = page.read_text().split("Plotly.newPlot")[-1]
    assert "<img" not in data
    assert "<b>bold" not in data
    assert "bold" in data


def test_a_real_browser_draws_it_without_a_network(trace: interp.LensTrace, tmp_path: Path) -> None:
    browser = next(
        (b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None
    )
    if browser is None:
        pytest.skip("no Chromium is installed")
    page = write_heat_map(trace, tmp_path / "t.html", title="drawn")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # Plotly writes the axis labels and cell texts into the page only once it has drawn them.
    assert 'class="heatmaplayer' in done.stdout
    assert done.stdout.count("token read") >= 2
    assert "1 ·&lt;b&gt;bold" in done.stdout.replace("&amp;lt;", "&lt;").replace("&amp;gt;", "&gt;")

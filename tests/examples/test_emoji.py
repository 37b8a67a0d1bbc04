"""The emoji example's model: its weights, and that fastcfg guides its samples as it says."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastcfg
from examples.emoji.animate import animate
from examples.emoji.demo import PROMPTS, make_picture, sections
from examples.emoji.measure import held_out_prompts
from examples.emoji.model import TextUNet
from examples.emoji.sample import rule_for
from examples.emoji.sampling import clean_path, conditions, ddim, draw_noise, sample
from examples.emoji.weights import PARTS, SHIPPED, load_weights, part, save_weights, trained_with
from examples.emoji.words import HELD_OUT, words_of
from fastcfg.files import load_tensors, tensors_digest

SHA256 = "e0b4730c98ee43e9f99e42b172aff7a7769c7f5db34b82820ccbdcb8ba675312"


@pytest.fixture(scope="module")
def model() -> TextUNet:
    return load_weights()


def test_the_weights_are_those_that_were_measured(model: TextUNet) -> None:
    sizes = [part(SHIPPED, index).stat().st_size for index in range(PARTS)]
    assert sum(sizes) < 8_000_000 and max(sizes) < 4_000_000
    tensors: dict[str, torch.Tensor] = {}
    for index in range(PARTS):
        tensors |= load_tensors(part(SHIPPED, index))[0]
    assert tensors_digest(tensors) == SHA256
    assert trained_with()["seed"] == 0


def test_weights_come_back_and_damage_is_noticed(model: TextUNet, tmp_path: Path) -> None:
    save_weights(tmp_path, model, {"training": {}})
    again = load_weights(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    file = part(tmp_path, 1)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_weights(tmp_path)
    file.write_bytes(part(tmp_path, 0).read_bytes())
    with pytest.raises(ValueError, match="do not make one model"):
        load_weights(tmp_path)


# Samples.


def test_fastcfg_guides_by_the_formula(model: TextUNet) -> None:
    noise = draw_noise(2)
    prompts = ["red heart", "a blue dog"]
    given = conditions({"cond": prompts}, noise)
    made = sample(model, fastcfg.CFG(4.0), {"cond": prompts}, noise, steps=4)
    x = noise
    with torch.no_grad():
        for step in ddim(4):
            batch = {"prompt": torch.cat([given["uncond"]["prompt"], given["cond"]["prompt"]])}
            u, c = model(torch.cat([x, x]), step.timestep, **batch).double().chunk(2)
            guided = u + 4.0 * (c - u)
            x = (step.x * x.double() + step.prediction * guided).float()
    # A rounding of each step's result; the network, here as smooth as an identity, carries it on.
    assert (made.pictures - x).abs().max() < 1e-4
    assert (made.passes, made.saved) == (8, 0)


def test_samples_have_the_colour_asked_for_even_where_training_never_showed_it(model: TextUNet) -> None:
    prompts = ["red heart", "blue heart", "blue apple", "a blue dog"]
    pictures = sample(model, fastcfg.CFG(4.0), {"cond": prompts}, draw_noise(4, seed=1), steps=12).pictures
    red_over_blue = (pictures[:, 0] - pictures[:, 2])[:, 12:32, 12:32].mean((1, 2))
    assert red_over_blue[0] > 0.5
    assert (red_over_blue[1:] < -0.2).all()


def test_a_negative_prompt_takes_its_word_away(model: TextUNet) -> None:
    noise = draw_noise(8, seed=2)
    asked = {"cond": ["a heart"]}
    plain = sample(model, fastcfg.CFG(4.0), asked, noise, steps=12).pictures
    without = {**asked, "negative": ["red"]}
    taken = sample(model, fastcfg.PerpNeg(4.0, (6.0,)), without, noise, steps=12).pictures

    def red(pictures: torch.Tensor) -> int:
        middle = pictures[:, :, 14:26, 14:26].mean((2, 3))
        return int(((middle[:, 0] > 0.5) & (middle[:, 1:] < 0).all(1)).sum())

    assert red(plain) >= 3
    assert red(taken) < red(plain) / 2


def test_rescale_mends_saturation_and_gates_save_passes(model: TextUNet) -> None:
    noise = draw_noise(4, seed=4)
    prompts = {"cond": list(PROMPTS[:4])}
    strong = sample(model, fastcfg.CFG(12.0), prompts, noise, steps=10)
    mended = sample(model, fastcfg.CFG(12.0, rescale=0.7), prompts, noise, steps=10)
    assert mended.overshoot < 0.7 * strong.overshoot
    gated = sample(model, fastcfg.GatedCFG(4.0, every=3), prompts, noise, steps=10)
    assert (gated.passes, gated.saved) == (14, 6)


def test_the_clean_path_ends_in_the_sample(model: TextUNet) -> None:
    noise = draw_noise(2)
    noisy, clean = clean_path(model, fastcfg.CFG(3.0), {"cond": ["red heart"]}, noise, steps=4)
    assert torch.equal(noisy[0], noise)
    made = sample(model, fastcfg.CFG(3.0), {"cond": ["red heart"]}, noise, steps=4).pictures
    assert (clean[-1] - made).abs().max() < 1e-4


def test_the_demo_makes_its_picture() -> None:
    picture, figures = make_picture(steps=1, progress=False)
    assert picture.startswith(b"\x89PNG\r\n")
    assert [figure["row"] for figure in figures] == [row.label for part in sections() for row in part.rows]
    assert all(words_of(text) for part in sections() for row in part.rows for text in (*row.cond, *row.negative))


def test_options_make_a_rule() -> None:
    assert rule_for(4.0, 0.0, "", 2.0) == fastcfg.CFG(4.0)
    assert rule_for(4.0, 0.0, "red", 2.0) == fastcfg.PerpNeg(4.0, (2.0,))
    assert rule_for(4.0, 0.5, "", 2.0) == fastcfg.Rescale(fastcfg.CFG(4.0), 0.5)


def test_held_out_prompts_ask_for_every_held_out_pair() -> None:
    assert {frozenset(words_of(prompt)) for prompt in held_out_prompts()} == HELD_OUT


def test_the_animation_has_a_frame_a_step() -> None:
    film = Image.open(io.BytesIO(animate(steps=2, columns=2)))
    assert film.format == "WEBP" and film.n_frames == 2

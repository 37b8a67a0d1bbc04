"""The emoji example's training: its captions, its pictures, and that a run can be resumed."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.emoji.canvas import Canvas
from examples.emoji.judge import answers, train_judge
from examples.emoji.layers import Anchor, Layers, Subject, load_layers, recolour, subjects
from examples.emoji.scenes import Scene, draw, drop_words, random_scene, words_for
from examples.emoji.train import TrainConfig, Trainer
from examples.emoji.weights import alphas
from examples.emoji.words import HELD_OUT, MAX_WORDS, VOCABULARY, encode, held_out_pairs, words_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def layers() -> Layers:
    """Every subject, with random pictures in the place of the package's."""
    generator = torch.Generator().manual_seed(0)
    everyone = tuple(subjects())
    bodies = torch.rand(len(everyone), 9, 4, 40, 40, generator=generator)
    return Layers(everyone, bodies, torch.rand(7, 4, 28, 28, generator=generator))


# Words and captions.


def test_fillers_are_left_out() -> None:
    assert words_of("A panda with a crown, and sunglasses") == ["panda", "crown", "sunglasses"]
    assert words_of("") == []


def test_an_unknown_word_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"does not know 'giraffe'; it knows: .*panda"):
        words_of("a red giraffe")
    with pytest.raises(ValueError, match="does not know '<pad>'"):
        words_of("<pad>")


def test_a_long_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_WORDS} words besides fillers, got {MAX_WORDS + 1}"):
        words_of(" ".join(["red"] * (MAX_WORDS + 1)))


def test_encoding_starts_and_pads() -> None:
    rows = encode([["red", "heart"], []])
    assert rows.shape == (2, 1 + MAX_WORDS)
    assert [VOCABULARY[index] for index in rows[0].tolist()][:4] == ["<start>", "red", "heart", "<pad>"]
    assert rows[1].tolist() == [1] + [0] * MAX_WORDS
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_no_training_picture_shows_a_held_out_pair(layers: Layers) -> None:
    rng = random.Random(0)
    captions = [words_for(random_scene(layers, rng), layers) for _ in range(5000)]
    assert not any(held_out_pairs(words) for words in captions)
    # Without the rule they would come: the test can fail.
    free = [words_for(random_scene(layers, rng, held_out=True), layers) for _ in range(5000)]
    assert sum(bool(held_out_pairs(words)) for words in free) > 100
    assert {word for words in captions for word in words} == set(VOCABULARY) - {
        *("<pad>", "<start>"),
        *("animal", "person", "thing"),
    }


def test_held_out_pairs_look_before_the_background() -> None:
    assert held_out_pairs(words_of("a green cat on yellow")) == [frozenset({"green", "cat"})]
    assert not held_out_pairs(words_of("cat on green"))
    assert all(word in VOCABULARY for pair in HELD_OUT for word in pair)


def test_a_caption_says_less_now_and_then_and_never_something_else(layers: Layers) -> None:
    rng = random.Random(1)
    count = 4000
    empty = 0
    for _ in range(count):
        scene = random_scene(layers, rng)
        words, kind = words_for(scene, layers), layers.subjects[scene.subject].kind
        said = drop_words(words, kind, rng, nameless=0.2)
        empty += not said
        rest = iter(words)
        assert all(word in rest for word in said if word != kind)  # In the caption's order.
    # 12 % of all; five standard deviations of a binomial.
    assert abs(empty - 0.12 * count) < 5 * (count * 0.12 * 0.88) ** 0.5


def test_answers_take_a_caption_apart() -> None:
    assert answers(words_of("green angry cat with a hat and glasses on pink")) == {
        "colour": "green",
        "subject": "angry cat",
        "headwear": "hat",
        "eyewear": "glasses",
        "background": "pink",
    }
    assert answers(["heart"]) == {"subject": "heart"}


# Pictures.


def test_recolouring_changes_the_main_colour_alone() -> None:
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[8:56, 8:56] = (220, 40, 40, 255)
    pixels[8:16, 8:56] = (60, 160, 60, 255)  # A leaf.
    pixels[50:56, 8:56] = (170, 31, 31, 255)  # A shade.
    made = np.asarray(recolour(Image.fromarray(pixels, "RGBA"), (35, 125, 225))).astype(int)
    assert (made[..., 3] == pixels[..., 3]).all()
    assert (made[8:16] == pixels[8:16]).all()
    assert np.abs(made[30, 30, :3] - (35, 125, 225)).max() <= 1
    shade = made[52, 30, :3]
    assert shade[2] > shade[1] > shade[0] and shade[2] < 225


def _flat_layers() -> Layers:
    """One head that wears things and one thing, each a grey square filling its frame."""
    anchor = Anchor(32, 8, 32, 30, 24)
    bodies = torch.ones(2, 9, 4, 40, 40) * torch.tensor([0.5, 0.5, 0.5, 1.0])[:, None, None]
    worn = torch.ones(7, 4, 28, 28) * torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None, None]
    return Layers((Subject(("cat",), "", "animal", anchor), Subject(("heart",), "", "thing")), bodies, worn)


def test_a_scene_is_drawn_where_it_says() -> None:
    flat = _flat_layers()
    plain, moved, dressed = draw([Scene(1, 0, size=0.5), Scene(1, 0, size=0.5, right=0.25), Scene(0, 0, "crown")], flat)
    grey = (plain == 0).all(0)
    assert grey[11:29, 11:29].all() and not grey[:9].any() and not grey[:, :9].any()
    assert (plain[:, 0, 0] == 1).all()
    assert torch.equal((moved == 0).all(0)[:, 10:], grey[:, :-10])
    red = (dressed[0] > 0.9) & (dressed[1] < -0.9)
    assert red.any() and red.nonzero()[:, 0].float().mean() < 12  # On the head.
    coloured = draw([Scene(1, 0, background="blue", size=0.5)], flat)[0]
    assert coloured[2, 0, 0] > coloured[0, 0, 0]


def test_things_wear_nothing() -> None:
    with pytest.raises(ValueError, match="a heart wears nothing, got 'crown'"):
        draw([Scene(1, 0, "crown")], _flat_layers())


def test_a_missing_package_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="npm pack emoji-datasource-google"):
        load_layers(tmp_path)


def test_a_canvas_is_a_png() -> None:
    canvas = Canvas(2)
    canvas.title("title", "a note")
    canvas.row(torch.zeros(2, 3, 40, 40), "label", "note", captions=["red heart", "a green cat"], marked=[False, True])
    assert canvas.png().startswith(b"\x89PNG\r\n")


# Training.


def test_neither_weights_nor_code_go_into_the_wheel() -> None:
    listed = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None and "fastcfg.demo" in listed[1] and "examples" not in listed[1]


def test_a_resumed_run_ends_in_the_same_bits(layers: Layers, tmp_path: Path) -> None:
    config = TrainConfig(steps=4, batch=2)
    whole = Trainer(config, layers)
    losses = [whole.step() for _ in range(3)]
    begun = Trainer(config, layers)
    begun.step()
    begun.save(tmp_path / "state.safetensors")
    resumed = Trainer(config, layers)
    resumed.restore(tmp_path / "state.safetensors")
    assert [resumed.step() for _ in range(2)] == losses[1:]
    assert all(torch.equal(a, b) for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True))


def test_the_learning_rate_holds_and_then_decays() -> None:
    config = TrainConfig(steps=1000, warmup=100, decay=0.3)
    assert config.learning_rate_at(99) == config.learning_rate_at(500) == config.learning_rate_at(700)
    assert 0 < config.learning_rate_at(999) < config.learning_rate_at(850) < config.learning_rate_at(700)


def test_the_schedule_is_the_cosine_one() -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    theirs = DDIMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    # Theirs is a float32 product of 1,000 factors: half an ulp each, of numbers below 1.
    assert (alphas() - theirs).abs().max() < 1000 * 2**-24


def test_a_judge_learns_what_it_is_shown() -> None:
    flat = _flat_layers()
    judge = train_judge(flat, steps=60, batch=16)
    rng = random.Random(5)
    scenes = [random_scene(flat, rng) for _ in range(64)]
    asked = [{"subject": flat.subjects[scene.subject].words[0], "background": scene.background} for scene in scenes]
    right = judge.right(draw(scenes, flat), asked)
    assert sum(right) > 0.5 * len(right)  # One in sixteen by chance.

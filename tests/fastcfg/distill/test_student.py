"""Students: as denoisers, in files, on and off their teacher."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastcfg import APG, CFG, GuidedDenoiser, InDomain, PerpNeg, Rescale, Rule
from fastcfg.distill import DistillConfig, Distiller, LoraConfig, Student, Task, fingerprint, load_student, save_student
from fastcfg.distill.families import copy_network
from fastcfg.distill.lora import Lora
from fastcfg.distill.rollout import conditional_at_one
from fastcfg.files import load_tensors, save_tensors
from fastcfg.schedules import Ramp

CONFIG = DistillConfig(
    steps=4, batch=4, trajectories=2, sampler_steps=(2,), window=2, warmup=0, lora=LoraConfig(rank=2)
)
MODES = ("full", "lora", "embedding")
Make = Callable[..., Task]


def trained(task: Task, mode: str, steps: int = 3, full_at: float | None = 10.0) -> Student:
    distiller = Distiller(task, replace(CONFIG, mode=mode, lora=replace(CONFIG.lora, full_at=full_at)))
    for _ in range(steps):
        distiller.step()
    return distiller.student()


def inputs(task: Task, count: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return task.noise(count, generator), dict(task.conditions(count, generator)["cond"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["lcm", "flux"])
def test_an_untrained_student_is_the_conditional_pass_to_the_bit(tiny_task: Make, mode: str, form: str) -> None:
    task = tiny_task()
    config = replace(CONFIG, mode=mode, convention=replace(CONFIG.convention, form=form))
    student = Distiller(task, config).student()
    x, condition = inputs(task)
    expected = task.network(x, 500, **condition)
    for scale in (1.0, 4.5, 10.0):
        assert torch.equal(student(x, 500, scale=scale, **condition), expected)


def test_it_is_called_as_a_guided_denoiser_is(tiny_task: Make) -> None:
    task = tiny_task()
    student = trained(task, "full")
    x, condition = inputs(task)
    plain = student(x, 500, scale=3.0, **condition)
    named = {"uncond": {}, "cond": condition}
    assert torch.equal(student(x, 500, conditions=named, scale=3.0, step=2, num_steps=20), plain)
    assert torch.equal(student(x, 500, conditions=named, params={"scale": torch.full((3,), 3.0)}), plain)
    student.scale = 3.0
    assert torch.equal(student(x, torch.tensor([500] * 3), **condition), plain)
    assert (student.passes_run, student.passes_saved) == (4, 4)
    student.reset()
    assert student.passes_run == 0
    # A scale for each sample is what each alone would get.
    scales = torch.tensor([1.0, 3.0, 7.0])
    mixed = student(x, 500, scale=scales, **condition)
    for row, scale in enumerate(scales.tolist()):
        assert torch.equal(mixed[row], student(x, 500, scale=scale, **condition)[row])
    assert not torch.equal(mixed[0], plain[0])


def test_one_pass_in_a_guided_denoiser_and_a_warning_for_two(tiny_task: Make) -> None:
    task = tiny_task()
    student = trained(task, "full")
    student.scale = 3.0
    x, condition = inputs(task)
    conditions = {"uncond": condition, "cond": condition}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = GuidedDenoiser(student, CFG(1.0))
        assert torch.equal(once(x, 500, conditions=conditions), student(x, 500, **condition))
    with pytest.warns(UserWarning, match="distilled guidance scale"):
        GuidedDenoiser(student, CFG(4.0))


def test_scales_outside_the_range_warn(tiny_task: Make) -> None:
    student = Distiller(tiny_task(), replace(CONFIG, low=2.0, high=8.0)).student()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for inside in (1.0, 2.0, 8.0):
            student.scale = inside
    for outside in (1.5, 8.5, 0.0):
        with pytest.warns(UserWarning, match=r"outside 2 \.\.\. 8"):
            student.scale = outside


def test_bad_calls_name_the_argument(tiny_task: Make) -> None:
    task = tiny_task()
    student = Distiller(task, CONFIG).student()
    x, condition = inputs(task)
    with pytest.raises(ValueError, match=r"^conditions: expected one called 'cond'"):
        student(x, 5, conditions={"uncond": condition})
    with pytest.raises(ValueError, match=r"^conditions: give them or"):
        student(x, 5, conditions={"cond": condition}, **condition)
    with pytest.raises(ValueError, match=r"^params: .*phi"):
        student(x, 5, params={"phi": 1.0}, **condition)
    with pytest.raises(ValueError, match=r"^scale: expected a floating tensor \[3\]"):
        student(x, 5, scale=torch.ones(2), **condition)
    with pytest.raises(ValueError, match=r"^scale"):
        student.scale = float("nan")


@pytest.mark.parametrize("mode", MODES)
def test_a_file_holds_what_the_student_needs_and_no_more(tiny_task: Make, tmp_path: Path, mode: str) -> None:
    task = tiny_task(CFG(4.0, rescale=0.5))
    student = trained(task, mode)
    path = tmp_path / "student.safetensors"
    save_student(path, student)
    tensors, metadata = load_tensors(path)
    card = metadata["student"]
    assert card["teacher"] == fingerprint(task.network) and card["rule"] == CFG(4.0, rescale=0.5).to_dict()
    assert (card["low"], card["high"], card["mode"]) == (1.0, 10.0, mode)
    assert card["convention"] == {"form": "lcm", "dim": 256, "serving": "float32"}
    assert card["version"] and card["format"] == 1
    if mode != "full":
        own = {name for name in tensors if not name.startswith("scale_embedding.")}
        assert bool(own) == (mode == "lora") and all(".lora_A.weight" in n or ".lora_B.weight" in n for n in own)

    x, condition = inputs(task)
    expected = student(x, 500, scale=5.0, **condition)
    teacher = None if mode == "full" else copy_network(task.network)
    loaded = load_student(path, teacher, scale=5.0)
    assert loaded.card == student.card
    assert torch.equal(loaded(x, 500, **condition), expected)
    assert not torch.equal(expected, task.network(x, 500, **condition))


@pytest.mark.parametrize("mode", ["lora", "embedding"])
def test_unloading_restores_the_teacher_to_the_bit(tiny_task: Make, tmp_path: Path, mode: str) -> None:
    task = tiny_task()
    path = tmp_path / "student.safetensors"
    save_student(path, trained(task, mode))
    network = task.network
    x, condition = inputs(task)
    before, weights = network(x, 500, **condition), {n: v.clone() for n, v in network.state_dict().items()}
    student = load_student(path, network)
    assert not torch.equal(student(x, 500, scale=5.0, **condition), before)
    assert student.unload() is network
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(x, 500, **condition), before)
    assert fingerprint(network) == student.card.teacher and not hasattr(network, "peft_config")
    # And it can be put on again.
    assert not torch.equal(load_student(path, network)(x, 500, scale=5.0, **condition), before)


@pytest.mark.parametrize("form", ["lcm", "flux"])
def test_an_adapter_follows_the_scale(tiny_task: Make, form: str) -> None:
    task = tiny_task()
    distiller = Distiller(task, replace(CONFIG, mode="lora", convention=replace(CONFIG.convention, form=form)))
    for _ in range(3):
        distiller.step()
    student = distiller.student()
    x, condition = inputs(task)
    teacher = task.network(x, 500, **condition)
    assert torch.equal(student(x, 500, scale=1.0, **condition), teacher), "to the bit"
    assert not torch.equal(student(x, 500, scale=1.1, **condition), teacher)
    scales = torch.tensor([1.0, 3.0, 10.0])
    together = student(x, 500, scale=scales, **condition)
    for i, scale in enumerate(scales.tolist()):
        alone = student(x, 500, scale=scale, **condition)
        assert torch.equal(together[i], alone[i])
    with pytest.raises(RuntimeError, match="call the student"):
        distiller.student().network(x, 500, **condition, **student.card.convention.arguments(scales, x.dtype))


def test_the_strength_of_an_adapter() -> None:
    scales = torch.tensor([-8.0, 0.0, 1.0, 2.0, 10.0, 13.25])
    expected = torch.tensor([-1.0, -1 / 3, 0.0, 1 / 3, 1.0, 7 / 6])
    torch.testing.assert_close(LoraConfig().strength(scales), expected, rtol=2**-22, atol=0)
    assert torch.equal(LoraConfig(full_at=None).strength(scales), torch.ones(6))
    for wrong in (1.0, float("nan"), "10"):
        with pytest.raises((TypeError, ValueError), match="full_at"):
            LoraConfig(full_at=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "conditional"),
    [
        (CFG(7.5, rescale=0.7), True),
        (CFG(Ramp(7.5, 1.0)), True),
        (InDomain(APG(6.5, momentum=-0.5, base="cond")), True),
        (PerpNeg(7.5, (1.5,)), False),
        (Rescale(PerpNeg(7.5, (1.5,)), phi=0.3), False),
    ],
    ids=str,
)
def test_an_adapter_has_one_strength_where_scale_1_is_guided_too(
    tiny_task: Make, rule: Rule, conditional: bool
) -> None:
    task = tiny_task(rule)
    assert conditional_at_one(task) is conditional
    student = Distiller(task, replace(CONFIG, mode="lora")).student()
    assert student.card.lora == replace(CONFIG.lora, full_at=10.0 if conditional else None)


def test_tokens_and_frames_along_dim_0_have_their_samples_strength() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3))
    lora = Lora(network, LoraConfig(rank=2))
    with torch.no_grad():
        for parameter in lora.parameters().values():
            parameter.fill_(1.0)
    lora.follow(torch.tensor([1.0, 10.0]))
    tokens = torch.randn(2, 5, 3)
    assert torch.equal(network(tokens.flatten(0, 1)).view(2, 5, 3), network(tokens))
    plain = torch.nn.functional.linear(tokens[0], network[0].weight, network[0].bias)  # type: ignore[arg-type]
    assert torch.equal(network(tokens)[0], plain)


@pytest.mark.parametrize("full_at", [None, 10.0])
def test_merging_keeps_the_prediction(tiny_task: Make, full_at: float | None) -> None:
    task = tiny_task()
    student = trained(task, "lora", full_at=full_at)
    x, condition = inputs(task)
    apart = student(x, 500, scale=5.0, **condition)
    student.merge(5.0)
    assert not any("lora" in name for name in student.network.state_dict())
    assert (student.scale, student.card.low) == ((7.5, 1.0) if full_at is None else (5.0, 5.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student(x, 500, scale=5.0, **condition)
        if full_at is not None:
            for other in (1.0, 7.5):
                with pytest.raises(UserWarning, match=r"outside 5 \.\.\. 5"):
                    student(x, 500, scale=other, **condition)
    # Weights rounded once more, by half an ulp each; a dozen layers of up to 144 terms pass it on.
    torch.testing.assert_close(student(x, 500, scale=5.0, **condition), apart, rtol=0, atol=1e-4)
    for call in (student.merge, student.unload):
        with pytest.raises(ValueError, match=r"^mode"):
            call()
    with pytest.raises(ValueError, match=r"^mode"):
        save_student(Path("never"), student)


def test_another_teacher_is_refused(tiny_task: Make, tmp_path: Path) -> None:
    task = tiny_task()
    path = tmp_path / "student.safetensors"
    save_student(path, trained(task, "lora"))
    other = copy_network(task.network)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    with pytest.raises(ValueError, match=r"^teacher: its weights are not those"):
        load_student(path, other)
    assert "scale_embedding.cond_proj.weight" not in other.state_dict()
    assert load_student(path, other, check=False).card.mode == "lora"
    with pytest.raises(ValueError, match=r"^teacher: .* needs its teacher"):
        load_student(path)
    # The same weights in another dtype are another teacher.
    with pytest.raises(ValueError, match="dtype"):
        load_student(path, copy_network(task.network).bfloat16())


def test_damaged_files_are_refused(tiny_task: Make, tmp_path: Path) -> None:
    task = tiny_task()
    path = tmp_path / "student.safetensors"
    save_student(path, trained(task, "lora"))
    tensors, metadata = load_tensors(path)
    network = task.network
    names = sorted(tensors)
    broken = [
        ({n: tensors[n] for n in names[1:]}, metadata, "weights: do not fit"),
        ({**tensors, names[0]: tensors[names[0]][:1]}, metadata, "weights: .* has the shape"),
        (tensors, {"student": {**metadata["student"], "format": 2}}, "format"),
        (tensors, {"student": {**metadata["student"], "mode": "half"}}, "mode"),
        (tensors, {"student": {**metadata["student"], "family": "mlp"}}, "family"),
        (tensors, {"student": {**metadata["student"], "colour": 1}}, "card"),
        (tensors, {"model": {}}, "holds no student"),
    ]
    for content, description, message in broken:
        save_tensors(path, content, description)
        with pytest.raises(ValueError, match=message):
            load_student(path, network)
    assert fingerprint(network) == metadata["student"]["teacher"], "a failed load leaves the teacher as it was"


def test_a_narrow_file_is_smaller(tiny_task: Make, tmp_path: Path) -> None:
    student = trained(tiny_task(), "full")
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    save_student(wide, student)
    save_student(narrow, student, torch.float16)
    assert narrow.stat().st_size < 0.6 * wide.stat().st_size
    for name, value in load_student(narrow).network.state_dict().items():
        assert torch.equal(value, student.network.state_dict()[name].half().float())

"""Scale inputs: the values that reach a network, and that a new input changes nothing."""

from collections.abc import Callable

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from fastcfg.distill import Convention, Network, Task, family_of, flux_guidance_value, lcm_embedding
from fastcfg.distill.families import copy_network

SCALES = torch.tensor([1.0, 3.5, 7.3])


def test_lcm_is_what_the_pipeline_feeds() -> None:
    peer = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, SCALES - 1, embedding_dim=64)
    arguments = Convention("lcm", 64).arguments(SCALES, torch.float32)
    assert arguments.keys() == {"timestep_cond"} and torch.equal(arguments["timestep_cond"], peer)
    # A bfloat16 pipeline casts the embedding; a student in float32 is trained on the cast values.
    wide = Convention("lcm", 64, "bfloat16").arguments(SCALES, torch.float32)["timestep_cond"]
    assert wide.dtype == torch.float32 and torch.equal(wide, peer.bfloat16().float())


def test_flux_is_the_scale_itself_or_what_the_serving_dtype_makes_of_it() -> None:
    own = Convention("flux", serving="bfloat16")
    assert torch.equal(own.arguments(SCALES, torch.bfloat16)["guidance"], SCALES)
    trained = own.arguments(SCALES, torch.float32)["guidance"] * 1000
    # The quotient and the product round once each in float32.
    torch.testing.assert_close(trained, flux_guidance_value(SCALES).float(), rtol=2**-23, atol=0)
    assert trained[1].item() == pytest.approx(3504, rel=2**-23)
    assert Convention("flux").arguments(SCALES, torch.float32)["guidance"].equal(SCALES)


def test_conventions_name_what_is_wrong() -> None:
    for arguments, name in (
        (("w",), "form"),
        (("lcm", 255), "dim"),
        (("lcm", 2), "dim"),
        (("lcm", 64, "f8"), "serving"),
    ):
        with pytest.raises(ValueError, match=f"^{name}:"):
            Convention(*arguments)


CONVENTIONS = [
    pytest.param("tiny", Convention("lcm", 32), id="demo-lcm"),
    pytest.param("tiny", Convention("flux", 32), id="demo-flux"),
    pytest.param("unet_task", Convention("lcm", 32), id="diffusers-unet"),
    pytest.param("flux_task", Convention("flux"), id="diffusers-flux"),
]


def make(name: str, request: pytest.FixtureRequest) -> Task:
    task: Task = request.getfixturevalue("tiny_task")() if name == "tiny" else request.getfixturevalue(name)
    return task


@pytest.mark.parametrize(("name", "convention"), CONVENTIONS)
def test_a_new_scale_input_changes_nothing_and_comes_off_again(
    name: str, convention: Convention, request: pytest.FixtureRequest
) -> None:
    task = make(name, request)
    generator = torch.Generator().manual_seed(0)
    x, conditions = task.noise(3, generator), task.conditions(3, generator)["cond"]
    t = torch.tensor([900.0, 500.0, 3.0])
    family, network = task.family, copy_network(task.network)
    before = family.call(network, x, t, **conditions)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    config = family.config(network)

    family.add_scale_input(network, convention)
    arguments = convention.arguments(SCALES, x.dtype)
    assert torch.equal(family.call(network, x, t, **conditions, **arguments), before)
    with pytest.raises(ValueError, match="already"):
        family.add_scale_input(network, convention)

    # It is heard once it is trained.
    prefix = family.scale_module(network)
    with torch.no_grad():
        for parameter in network.get_submodule(prefix).parameters():
            parameter.add_(0.1)
    assert not torch.equal(family.call(network, x, t, **conditions, **arguments), before)

    # The configuration makes a network that takes the weights.
    again = family.build(family.config(network)).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(
        family.call(again, x, t, **conditions, **arguments), family.call(network, x, t, **conditions, **arguments)
    )

    family.remove_scale_input(network)
    assert torch.equal(family.call(network, x, t, **conditions), before)
    assert family.config(network) == config and network.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["unet_task", "flux_task"])
def test_a_family_refuses_another_form(name: str, request: pytest.FixtureRequest) -> None:
    task = make(name, request)
    wrong = Convention("flux" if name == "unet_task" else "lcm")
    with pytest.raises(ValueError, match=r"^form"):
        task.family.add_scale_input(task.network, wrong)


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^network: Linear is of no known family"):
        family_of(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"^network"):
        Network(torch.nn.Linear(2, 2))


def test_a_network_refuses_the_form_that_it_has_not(tiny_task: Callable[..., Task]) -> None:
    network = tiny_task().network
    labels = {"digit": torch.tensor([1]), "colour": torch.tensor([2])}
    with pytest.raises(ValueError, match="lcm form"):
        network(torch.zeros(1, 3, 28, 28), 5, **labels, timestep_cond=lcm_embedding(3.0))

"""Maps that are written down and rebuilt, by the registry; and their copies in another precision."""

import copy

import pytest
import torch
from torch import nn

import wprox
from wprox.maps import GradientStepMap
from wprox.maps.base import describe
from wprox.maps.precision import in_precision
from wprox.maps.registry import MAPS, REGISTRY, map_factory, rebuild


class TailMap(wprox.TransportMap):
    """T(x) = sinh(exp(a) asinh x), coordinate by coordinate: the map of docs/write_your_own.md."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.log_power = nn.Parameter(torch.zeros(dim))

    @property
    def config(self):
        return {"dim": self.dim}

    def forward(self, x):
        u = self.log_power.exp() * x.asinh()
        log_slope = self.log_power + u.cosh().log() - 0.5 * torch.log1p(x.square())
        return u.sinh(), log_slope.sum(-1)

    def inverse(self, y):
        return (y.asinh() / self.log_power.exp()).sinh()


class Twice(wprox.ComposedMap):
    """A composed map with a constructor of its own and no config."""

    def __init__(self, dim):
        super().__init__([wprox.AffineMap(dim), wprox.AffineMap(dim)])


class Nameable(Twice):
    @property
    def config(self):
        return {"dim": self.dim}


def nested(dim):
    return wprox.ComposedMap([wprox.AffineMap(dim), wprox.ComposedMap([TailMap(dim), wprox.SplineMap(dim)])])


def scramble(map, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in map.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return map.eval()


# the registry


def test_every_name_and_class_of_the_registry_is_there_once():
    assert list(MAPS) == ["spline", "ode", "residual", "convex"]
    assert len({cls.__name__ for _, cls in REGISTRY}) == len(REGISTRY)
    for name, cls in MAPS.items():
        assert type(map_factory(name)(2)) is cls


@pytest.mark.parametrize("build", [*MAPS.values(), wprox.AffineMap, nested, Nameable, TailMap])
def test_what_describes_a_map_rebuilds_it(build):
    map = scramble(build(3))
    again = rebuild(describe(map), [TailMap, Nameable])
    again.load_state_dict(map.state_dict())
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for result, expected in zip(again.eval()(x), map(x), strict=True):
        assert torch.equal(result, expected)


def test_a_class_that_is_not_known_is_named_however_deep_it_is():
    with pytest.raises(ValueError, match=r"class TailMap, .* map_classes=\[TailMap\]"):
        rebuild(describe(nested(2)))


@pytest.mark.parametrize(
    ("map", "name"),
    [
        (Twice(2), "Twice"),
        (wprox.ComposedMap([wprox.AffineMap(2), Twice(2)]), "Twice"),
        (GradientStepMap(2, lambda x: x[:, 0], 0.5), "GradientStepMap"),
    ],
)
def test_a_map_that_does_not_say_how_to_rebuild_it_is_named(map, name):
    with pytest.raises(NotImplementedError, match=f"{name} does not say .* `config`"):
        describe(map)


# copies in another precision


@pytest.mark.parametrize("build", [*MAPS.values(), wprox.AffineMap, TailMap, Nameable])
def test_a_copy_in_another_precision_is_that_of_a_deep_copy(build):
    map = scramble(build(3))
    before = copy.deepcopy(map.state_dict())
    double = in_precision(map, torch.float64)
    assert in_precision(map, torch.float32) is map
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = copy.deepcopy(map).double()(x)
    for result, other in zip(double(x), expected, strict=True):
        assert torch.equal(result, other)
    y, _ = double(x)
    for result, other in zip((double.inverse(y), double(x)[0]), (expected_inverse(map, y), y), strict=True):
        assert torch.equal(result, other)
    double.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in double.state_dict().items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in map.state_dict().items())  # nothing is shared


def expected_inverse(map, y):
    return copy.deepcopy(map).double().inverse(y)


def _write_data(map):
    map.maps[0].shift.data.add_(1)


def _load(map):
    map.load_state_dict(scramble(copy.deepcopy(map), 1).state_dict())


def _train(map):
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(map.parameters(), lr=0.1)
    map(x)[0].square().mean().backward()
    optimizer.step()
    map.zero_grad(set_to_none=True)


def _set(map):
    map.maps[1].bound = 4.0


def _replace(map):
    map.layers[0] = scramble(wprox.AffineMap(2), 3)


def _freeze(map):
    map.requires_grad_(False)


@pytest.mark.parametrize("change", [_write_data, _load, _train, _set, _replace, _freeze, nn.Module.train])
def test_a_copy_is_never_stale(change):
    map = scramble(Changeable())
    before = in_precision(map, torch.float64)
    change(map)
    after, expected = in_precision(map, torch.float64), copy.deepcopy(map).double()
    assert after is not before
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for result, other in zip(after(x), expected(x), strict=True):
        assert torch.equal(result, other)
    assert after.maps[0].shift.requires_grad == map.maps[0].shift.requires_grad


class Bounded(TailMap):
    """A tail map of bound · x."""

    def __init__(self, dim, bound):
        super().__init__(dim)
        self.bound = bound

    def forward(self, x):
        y, log_det = super().forward(self.bound * x)
        return y, log_det


class Changeable(wprox.ComposedMap):
    """A ComposedMap with an attribute that counts."""

    def __init__(self):
        super().__init__([wprox.AffineMap(2), Bounded(2, 2.0)])


class Tied(wprox.ComposedMap):
    """One map twice, also in a list beside the modules."""

    def __init__(self):
        part = scramble(wprox.AffineMap(2))
        super().__init__([part, part])
        self.others = [part]


def test_what_is_one_stays_one():
    map = Tied()
    double = in_precision(map, torch.float64)
    assert double.maps[0] is double.maps[1] is double.others[0]
    assert double.others[0].shift.dtype == torch.float64
    assert map.others[0].shift.dtype == torch.float32

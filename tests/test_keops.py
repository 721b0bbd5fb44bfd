"""Sums over pairs by KeOps against those in blocks, and what is said where it cannot sum."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_kernels import ALL, name, normal
from test_pairs import weights

import wprox
from wprox import kernels
from wprox.pairs import keops, sums


class Rational(kernels.RadialKernel):
    """A kernel of one's own, written so that KeOps knows it too."""

    smooth = True

    def profile(self, s):
        return 1 / (1 + s)

    def __repr__(self):  # the name of a test, the same in every process
        return "Rational()"


class Opaque(kernels.RadialKernel):
    smooth = True

    def profile(self, s):
        return torch.exp(-s)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [*ALL, Rational()], ids=name)
def test_values_and_gradients_are_those_of_the_blocks(kernel):
    """To rounding, with two points in one place where the kernel allows it. Each formula takes 10 s to compile."""
    pytest.importorskip("pykeops", reason="pip install pykeops")
    x = normal(40, 2)
    if not kernel.singular:
        x[3] = x[17]
    y, v = torch.cat((normal(30, 2, seed=2) + 0.5, x[:1])), weights(31, 3)
    others = () if kernel.singular else (y, v)  # infinite at x_0, in both
    inputs = [t.requires_grad_() for t in (x, weights(40), *others)]
    for chosen in (inputs[:2], inputs)[: 1 if kernel.singular else 2]:
        mine, theirs = (sums.pair_sum(kernel.with_backend(b), *chosen) for b in ("keops", "blocks"))
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=0)
        for a, b in zip(torch.autograd.grad(mine, chosen), torch.autograd.grad(theirs, chosen), strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))
    if kernel.singular:
        twice = wprox.Particles(torch.cat((x, x[5:6])).detach())
        with pytest.raises(ValueError, match="particles 5 and 40 coincide"):
            wprox.InteractionEnergy(kernel.with_backend("keops"))(twice)


@pytest.mark.slow
@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd_and_steps_by_keops_are_those_in_blocks(unbiased):
    pytest.importorskip("pykeops", reason="pip install pykeops")
    mine, theirs = (
        wprox.MMD(normal(30, 2) + 1, kernels.Riesz().with_backend(b), unbiased=unbiased) for b in ("keops", "blocks")
    )
    rho = wprox.Particles(normal(40, 2, seed=1), weights(40))
    assert torch.allclose(mine(rho), theirs(rho), rtol=1e-10, atol=0)
    steps = [wprox.ExplicitEuler().step(functional, rho, 0.5) for functional in (mine, theirs)]
    assert torch.allclose(steps[0].measure.points, steps[1].measure.points, rtol=1e-10)


@pytest.mark.slow
def test_a_profile_that_keops_does_not_know_says_how_to_write_it():
    pytest.importorskip("pykeops", reason="pip install pykeops")
    with pytest.raises(TypeError, match=r"no formula of KeOps.*operators and methods"):
        wprox.Particles(normal(5, 2)).integrate_pairs(Opaque().with_backend("keops"))


def test_where_keops_is_missing(monkeypatch):
    monkeypatch.setattr(keops, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pip install pykeops"):
        wprox.Particles(normal(5, 2)).integrate_pairs(kernels.Gaussian().with_backend("keops"))
    assert not keops.is_ready()


def test_a_cpu_sums_in_blocks_unless_it_is_told_otherwise(monkeypatch):
    monkeypatch.setattr(keops, "is_ready", lambda: True)
    x, w = normal(5, 2), weights(5)
    assert keops.keops_sums(kernels.Gaussian(), x, x, w, gradient=True) is None


class Lazy:
    """Stands in for a LazyTensor of KeOps whose formulas do not compile."""

    def __init__(self, *_, **__):
        pass

    def __sub__(self, *_):
        return self

    __pow__ = __mul__ = exp = concat = grad = __sub__

    def sum(self, axis):
        if axis == 1:
            raise ImportError("no module named pykeops_formula")
        return self


class OnGpu(torch.Tensor):
    """On a CPU, but says otherwise."""

    device = SimpleNamespace(type="cuda")


@pytest.fixture
def lazy(monkeypatch):
    module = ModuleType("pykeops.torch")
    module.LazyTensor = Lazy
    monkeypatch.setitem(sys.modules, "pykeops", ModuleType("pykeops"))
    monkeypatch.setitem(sys.modules, "pykeops.torch", module)
    monkeypatch.setattr(keops, "find_spec", lambda _: True)
    monkeypatch.setattr(keops, "which", lambda _: "/usr/bin/g++")


@pytest.mark.usefixtures("lazy")
def test_a_gpu_sums_in_blocks_what_keops_does_not_know():
    x, w = normal(5, 2).as_subclass(OnGpu), weights(5)
    assert keops.keops_sums(Opaque(), x, x, w, gradient=True) is None
    assert keops.keops_sums(kernels.Gaussian().with_backend("blocks"), x, x, w, gradient=True) is None
    with pytest.raises(keops.NoFormulaError, match=r"no formula of KeOps.*operators and methods"):
        keops.keops_sums(Opaque().with_backend("keops"), x, x, w, gradient=True)


@pytest.mark.usefixtures("lazy")
@pytest.mark.parametrize("gradient", [True, False])
def test_a_formula_that_does_not_compile_says_what_is_needed(gradient):
    x, w = normal(5, 2), weights(5)
    for kernel, points in ((kernels.Gaussian(), x.as_subclass(OnGpu)), (kernels.Gaussian().with_backend("keops"), x)):
        with pytest.raises(RuntimeError, match=r"could not compile Gaussian.*C\+\+ compiler.*backend=\"blocks\""):
            keops.keops_sums(kernel, points, points, w, gradient)


@pytest.mark.usefixtures("lazy")
def test_a_gpu_without_a_compiler_sums_in_blocks(monkeypatch):
    monkeypatch.setattr(keops, "which", lambda _: None)
    x, w = normal(5, 2).as_subclass(OnGpu), weights(5)
    assert keops.keops_sums(kernels.Gaussian(), x, x, w, gradient=True) is None


def test_backends():
    kernel = kernels.PowerLaw(4, 2)
    assert kernel.with_backend("keops").with_backend("blocks").backend == "blocks"
    assert kernel.backend == "auto"
    assert kernel.with_backend("keops").modulus == kernel.modulus
    with pytest.raises(ValueError, match="backend must be one of"):
        kernel.with_backend("cuda")
    with pytest.raises(ValueError, match="summed in blocks only"):
        wprox.KSD(lambda x: -x.square().sum(-1) / 2, kernels.Gaussian().with_backend("keops"))


def test_importing_wprox_imports_no_keops():
    code = "import sys, wprox, torch; wprox.MMD(torch.randn(5, 2)); sys.exit('pykeops' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

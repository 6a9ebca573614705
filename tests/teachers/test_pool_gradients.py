"""What trains in a pool gets gradients, what is frozen carries no graph, and both may meet in one loss."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ModelError
from moekd.teachers import Teacher, TeacherPool

from ..builders import (
    Fusion,
    make_batch,
    make_mask,
    make_pool,
    make_student,
    make_teacher,
    randomise,
    same_state,
    snapshot,
)


@pytest.mark.parametrize("sharing", ["prefix", "replicate"])
@pytest.mark.parametrize("stacking", ["independent", "cumulative"])
def test_gradient_reaches_the_own_mask_alone_and_no_teacher(stacking: str, sharing: str) -> None:
    """N5: masks learn, teachers do not."""
    pool = make_pool("fusion", "maps", mask_stacking=stacking, sharing=sharing)
    pool.masks.requires_grad_(True)
    pool.masks_train = True
    before, signals = snapshot(pool.teachers), pool(make_batch())
    for name in pool.experts:
        pool.zero_grad()
        signals[name].logits.square().sum().backward(retain_graph=True)
        for variant in pool.specialised:
            total = sum(float(p.grad.abs().sum()) for p in pool.mask(variant).parameters() if p.grad is not None)
            assert (total > 0) == (variant == name), variant
        assert all(p.grad is None for p in pool.teachers.parameters())
    assert same_state(pool.teachers, before)


def test_gradients_of_shared_and_replicated_forwards_agree() -> None:
    gradients = []
    for sharing in ("prefix", "replicate"):
        pool = make_pool("fusion", sharing=sharing)
        pool.masks.requires_grad_(True)
        pool(make_batch()).logits.square().mean().backward()
        gradients.append([p.grad for p in pool.masks.parameters()])
    for shared, replicated in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, replicated, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_frozen_outputs_carry_no_graph_and_fit_into_a_loss(masked: bool) -> None:
    pool, student, batch = make_pool("fusion", "late", masked=masked), make_student(), make_batch()
    for name in pool.names:
        pool.teacher(name).taps = ("left",)
    signals = pool(batch, features=True)
    tensors = [signals.logits, *[s.features["left"] for s in signals.values()]]
    assert not any(t.requires_grad or t.grad_fn is not None or t.is_inference() for t in tensors)
    said = student(batch).logits
    (said[:, None] * signals.logits).sum().backward()
    torch.testing.assert_close(student.network.out.bias.grad, signals.logits.sum(dim=(0, 1)))


def test_only_teachers_that_train_build_a_graph() -> None:
    pool, batch = make_pool("fusion", "vectors", masked=False), make_batch()
    pool.teacher("fusion").thaw()
    assert not pool.frozen()
    assert not pool.frozen(["fusion"])
    assert pool.frozen(["vectors"])
    signals = pool(batch)
    assert signals["fusion"].logits.requires_grad
    assert not signals["vectors"].logits.requires_grad
    signals["fusion"].logits.sum().backward()
    assert all(p.grad is not None for p in pool.teacher("fusion").parameters())


def test_frozen_knows_the_masks_that_are_active() -> None:
    pool = make_pool("fusion", "vectors")
    pool.mask("fusion/join").requires_grad_(True)
    assert pool.frozen(["fusion", "fusion/head.first", "vectors/fc1"])
    assert not pool.frozen(["vectors", "fusion/join"])
    assert not pool.frozen()


def test_parts_are_the_teacher_and_the_masks_that_are_active() -> None:
    for stacking, count in (("independent", 1), ("cumulative", 2)):
        pool = make_pool("fusion", mask_stacking=stacking)
        masks = [pool.mask(name) for name in pool.specialised]
        assert pool.parts("fusion/head.first") == [pool.teacher("fusion"), *masks[-count:]]
        assert pool.parts("fusion/join") == [pool.teacher("fusion"), masks[0]]
        assert pool.parts("fusion") == [pool.teacher("fusion")]


def test_masks_train_alone_and_stack_once_they_are_frozen() -> None:
    pool, alone, batch = make_pool("vectors", mask_stacking="cumulative"), make_pool("vectors"), make_batch()
    last = pool.specialised[-1]
    pool.masks_train = True
    torch.testing.assert_close(pool(batch)[last].logits, alone(batch)[last].logits)
    pool.masks_train = False
    assert (pool(batch)[last].logits - alone(batch)[last].logits).abs().max() > 1e-2


def test_masked_variants_of_a_teacher_in_training_are_refused() -> None:
    pool = make_pool("fusion")
    pool.teacher("fusion").thaw()
    with pytest.raises(ModelError, match="teacher 'fusion' is being trained: its masked variants can't run"):
        pool(make_batch())
    assert pool(make_batch(), ["fusion"])["fusion"].logits.requires_grad
    pool.eval()
    assert pool(make_batch())["fusion/join"].logits.shape == (6, 4)


def test_finding_out_how_to_share_changes_nothing() -> None:
    pool = make_pool("maps")
    pool.masks.requires_grad_(True)
    pool.train()
    before, state = snapshot(pool), torch.get_rng_state()
    with torch.no_grad():
        assert pool._shares(pool.teacher("maps"), make_batch())
    assert same_state(pool, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(mask.training for mask in pool.masks.values())
    assert pool.forwards == 0


def test_a_half_precision_teacher_with_full_precision_masks() -> None:
    teacher = Teacher(randomise(Fusion(), 10, scale=0.3), ["left", "right"], dtype=torch.bfloat16, name="t")
    full = Teacher(randomise(Fusion(), 10, scale=0.3), ["left", "right"], name="t")
    logits = []
    for each in (teacher, full):
        pool = TeacherPool({"t": each})
        pool.specialise("t", "join", make_mask())
        signals = pool(make_batch())["t/join"]
        signals.logits.sum().backward()
        assert all(p.grad is not None and p.dtype == torch.float32 for p in pool.masks.parameters())
        logits.append(signals.logits.detach())
    assert logits[0].dtype == torch.float32
    torch.testing.assert_close(logits[0], logits[1], rtol=0.05, atol=0.05)


def test_state_of_masks_is_saved_under_names_without_dots_and_loads() -> None:
    pool, other = make_pool("fusion"), make_pool("fusion")
    for parameter in other.masks.parameters():
        parameter.zero_()
    other.load_state_dict(pool.state_dict())
    assert "masks.fusion/head:first.embed.weight" in pool.state_dict()
    assert torch.equal(other(make_batch()).logits, pool(make_batch()).logits)


def test_teachers_share_nothing_between_pools() -> None:
    first, second = make_pool("fusion"), make_pool("fusion")
    first(make_batch())
    assert (first.forwards, second.forwards) == (1, 0)
    assert make_teacher("fusion", "fusion", 10).fingerprint() == first.teacher("fusion").fingerprint()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_teachers_that_could_learn_hold_no_graph_where_gradients_are_off(context: type) -> None:
    """As after a stage that trained them: `torch.inference_mode(False)` inside of `no_grad` would build graphs."""
    pool = make_pool("fusion", "maps")
    for name in pool.names:
        pool.teacher(name).thaw()
        pool.teacher(name).eval()
    assert not pool.frozen(pool.names)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), context():
        signals = pool(make_batch(), pool.names)
    assert not any(signals[name].logits.requires_grad for name in pool.names)
    assert not kept

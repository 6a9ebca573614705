"""Deep mutual learning: the mean over each learner's peers, targets without gradient."""

from __future__ import annotations

import torch

from moekd.objectives import PeerLearning, kd_kl

from ..builders import make_batch, make_pool, make_step, make_student


def test_two_networks_learn_from_each_other() -> None:
    pool, student, batch = make_pool("vectors", masked=False), make_student(), make_batch()
    pool.teacher("vectors").thaw()
    step = make_step(pool, None, batch, student)
    loss = PeerLearning()(step)["dml"]
    s, t = step.student.logits, step.signals("vectors").logits
    torch.testing.assert_close(loss, kd_kl(s, t, 1.0) + kd_kl(t, s, 1.0))
    loss.mean().backward()
    mine = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    kd_kl(student(batch).logits, t.detach(), 1.0).mean().backward()
    for got, alone in zip(mine, student.parameters(), strict=True):
        torch.testing.assert_close(got, alone.grad)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pool.teachers.parameters())


def test_three_networks_take_the_mean_over_their_peers() -> None:
    step = make_step(make_pool("fusion", "vectors", masked=False))
    logits = [step.student.logits, *(step.signals(name).logits for name in ("fusion", "vectors"))]
    pairs = [kd_kl(a, b, 1.0) for a in logits for b in logits if a is not b]
    torch.testing.assert_close(PeerLearning()(step)["dml"], torch.stack(pairs).sum(dim=0) / 2)

"""The text encoder sees tokens, not padding; the classifier stands on any encoder."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError, ModelError
from moekd.networks import Classifier, TokenEncoder


def test_padding_changes_nothing():
    encoder = TokenEncoder(context=12, width=16, heads=2).eval()
    short = torch.tensor([[5, 6, 7]])
    long = torch.tensor([[5, 6, 7, 0, 0, 0]])
    torch.testing.assert_close(encoder(short), encoder(long))


def test_order_counts_and_rows_do_not_mix():
    encoder = TokenEncoder(context=12, width=16, heads=2).eval()
    ids = torch.tensor([[5, 6, 7], [7, 6, 5]])
    together = encoder(ids)
    assert (together[0] - together[1]).abs().max() > 1e-4
    torch.testing.assert_close(encoder(ids[:1])[0], together[0])


def test_a_text_of_padding_alone_is_finite():
    encoder = TokenEncoder(context=4, width=16, heads=2)
    value = encoder(torch.zeros(2, 4, dtype=torch.int64))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_classifier_gives_logits_and_errors_say_what_to_do():
    network = Classifier(num_classes=5, encoder=TokenEncoder(context=8, width=16, heads=2, layers=0))
    assert network(torch.ones(3, 8, dtype=torch.int64)).shape == (3, 5)
    with pytest.raises(ModelError, match="expected integer ids"):
        network(torch.zeros(3, 8))
    with pytest.raises(ModelError, match="N <= 8"):
        network(torch.ones(3, 9, dtype=torch.int64))
    with pytest.raises(ConfigError, match="multiple of heads"):
        TokenEncoder(width=10, heads=4)

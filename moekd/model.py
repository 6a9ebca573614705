"""A network, the batch fields it reads, and the activations that are tapped on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .errors import DataError, ModelError, did_you_mean
from .signals import Signals

Batch = Mapping[str, Any]
OnTap = Callable[[str, Tensor], Tensor | None]


class Model(nn.Module):
    """Wraps a plain PyTorch network so that it maps a batch to `Signals`.

    Args:
        network: any module; it returns logits, a dict of named tensors (`logits`, a dict `embeddings` by modality, and
            heads), or `Signals`.
        inputs: batch fields that are passed to the network, in call order.
        taps: module paths inside the network ("visual.blocks.5") whose outputs become `Signals.features`.
        heads: extra modules `{name: module}`; each reads the tap (or "logits") named by `head_inputs[name]`.
        head_inputs: tap that each head reads.

    Raises:
        ModelError: a tap names no module; the message lists the nearest paths.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[str],
        taps: Sequence[str] = (),
        heads: Mapping[str, nn.Module] | None = None,
        head_inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.inputs = tuple(inputs)
        self.taps = tuple(taps)
        self.heads = nn.ModuleDict(dict(heads or {}))
        self.head_inputs = dict(head_inputs or {})
        for tap in self.taps:
            find_module(network, tap)

    def forward(self, batch: Batch, taps: Sequence[str] | None = None) -> Signals:
        """Run the network on the fields of `batch` that it reads; `taps` replaces the taps to record for this call."""
        features: dict[str, Tensor] = {}

        def keep(tap: str, output: Tensor) -> None:
            features[tap] = output

        with tapped(self.network, self.taps if taps is None else taps, keep):
            output = self.call(self.arguments(batch))
        said = self.interpret(output)
        signals = Signals(said.logits, said.features | features, said.embeddings, dict(said.heads))
        for name, head in self.heads.items():
            source = self.head_inputs.get(name, "logits")
            value = (
                signals.require_logits(f"head '{name}'")
                if source == "logits"
                else signals.feature(source, f"head '{name}'")
            )
            signals.heads[name] = head(value)
        return signals

    def call(self, arguments: tuple[Tensor, ...]) -> Any:
        """Return what the network gives for its inputs."""
        return self.network(*arguments)

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the network's inputs in call order.

        Raises:
            DataError: the batch lacks one of the fields.
        """
        for field in self.inputs:
            if field not in batch:
                hint = did_you_mean(field, batch) or f"; fields: {', '.join(batch)}"
                raise DataError(f"the model reads field '{field}', which the data set does not have{hint}")
        return tuple(batch[field] for field in self.inputs)

    def interpret(self, output: Any) -> Signals:
        """Turn what the network returned into `Signals`; adapters of other libraries override this."""
        if isinstance(output, Signals):
            return output
        if isinstance(output, Tensor):
            return Signals(logits=output)
        if isinstance(output, Mapping):
            named = dict(output)
            embeddings = dict(named.pop("embeddings")) if isinstance(named.get("embeddings"), Mapping) else {}
            odd = {k: type(v).__name__ for k, v in (named | embeddings).items() if not isinstance(v, Tensor)}
            if odd:
                raise ModelError(f"{type(self.network).__name__} returned a dict with more than tensors: {odd}")
            return Signals(named.pop("logits", None), embeddings=embeddings, heads=named)
        raise ModelError(
            f"{type(self.network).__name__} returned {type(output).__name__}; expected logits, a dict or Signals"
        )


@contextmanager
def tapped(network: nn.Module, taps: Sequence[str], on_tap: OnTap) -> Iterator[None]:
    """Call `on_tap(path, output)` for each tapped module while the context is open; a returned tensor replaces the
    output.

    Hooks exist only inside the context, so a network has the same hooks before and after a forward, also when it fails.
    """
    handles = []
    try:
        for tap in taps:
            handles.append(find_module(network, tap).register_forward_hook(_hook(tap, on_tap)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(tap: str, on_tap: OnTap) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"tap '{tap}' ({type(module).__name__}) gives {type(output).__name__}, no tensor; tap a submodule"
            )
        return on_tap(tap, output)

    return hook


def find_module(network: nn.Module, path: str) -> nn.Module:
    """Return the submodule at `path`.

    Raises:
        ModelError: with the nearest module paths.
    """
    modules = dict(network.named_modules())
    if not path or path not in modules:
        known = [name for name in modules if name]
        hint = did_you_mean(path, known) or f"; modules: {', '.join(known[:20])}"
        raise ModelError(f"tap '{path}' is no module of {type(network).__name__}{hint}")
    return modules[path]

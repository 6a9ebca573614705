"""The towers of a student, each on its own: one for pictures (or sounds), one for texts.

Shapes: B inputs, T texts, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..export.parts import Tower
from ..model import Model
from ..networks.adapter import Adapter
from ..signals import Signals

See = Callable[[Tensor], Signals]
ReadTexts = Callable[[Sequence[str]], Tensor]


def has_towers(network: nn.Module) -> bool:
    """Tell whether pictures and texts go through towers of their own, so that either can be given alone."""
    return isinstance(network, Adapter)


def seer(network: nn.Module, name: str, modality: str, alone: bool) -> See:
    """Return a student as a function of its one input that is no text.

    Args:
        network: the student, in eval mode.
        name: its input field.
        modality: of this field.
        alone: whether the field is the only input; then the whole network runs, otherwise the tower with what
            classifies on top of it.
    """
    if alone:
        model = Model(network, [name])
        return lambda batch: model({name: batch})
    assert isinstance(network, Adapter)
    tower = Tower(network, name)

    def see(batch: Tensor) -> Signals:
        said = tower(batch)
        key = f"{modality}_embeds"
        return Signals(said.get("logits"), embeddings={modality: said[key]} if key in said else {})

    return see


def text_reader(network: nn.Module) -> ReadTexts | None:
    """Return the text tower as a function of texts, with embeddings `[T, D]`; None if there is none."""
    if not getattr(network, "reads_texts", False):
        return None
    return network.embed_texts  # type: ignore[return-value]


def map_vectors(network: nn.Module, vectors_TD: Tensor) -> Tensor:
    """Return vectors that a text encoder made elsewhere in the student's own space `[T, D]`.

    A student that was trained with such vectors may have a layer for them; for others they stay as they are.
    """
    names = [name for name, modality in getattr(network, "readers", {}).items() if modality == "text"]
    reader = network.reader(names[0]) if names and isinstance(network, Adapter) else None
    if reader is None or not isinstance(network, Adapter):
        return vectors_TD
    return network.encode("text", network._cast(reader(vectors_TD)))


def scale_and_bias(network: nn.Module) -> tuple[float | None, float | None]:
    """Return the factor and the bias with which cosines become logits, where the student has them."""
    found = network.scale_and_bias() if isinstance(network, Adapter) else (None, None)
    scale, bias = (None if value is None else float(value.detach().reshape(-1)[0]) for value in found)
    return scale, bias


def own_templates(network: nn.Module) -> tuple[str, ...] | None:
    """Return the prompts with which a student was made a zero-shot classifier."""
    options = getattr(getattr(network, "zero_shot", None), "options", None)
    return None if options is None else tuple(options.templates)

"""A student at work: decodes pictures, forms batches, keeps what its text tower said.

Shapes: B inputs, C labels, T texts, D width of an embedding.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..evaluation.zero_shot import class_vectors
from ..inference import Labels, Predictor, Seen
from ..inference.files import FORMATS, read_picture, takes_pictures
from .batcher import Batcher, ClosedError
from .questions import Picture
from .request_error import RequestError
from .settings import Settings

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
KEPT_TEXTS, KEPT_LABELS = 10_000, 64
#: Pictures that are decoded at a time; each may take some 10 bytes a pixel while it is.
DECODERS = 2


class Recent(Generic[Key, Value]):
    """The values that were used last."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Return a value, if it is kept."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep a value; the one that was not used for longest goes."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self.most:
            self._values.popitem(last=False)


class Service:
    """What the addresses of the server call; everything runs on one event loop.

    The student works in one thread of its own, pictures are decoded in others.

    Args:
        predictor: the student.
        settings: limits.

    Raises:
        DataError: the student takes no pictures.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        if not takes_pictures(predictor.field):
            raise DataError(
                f"the server is for students that read pictures; this one reads {predictor.field['modality']} "
                f"{list(predictor.field['shape'])}"
            )
        self.predictor, self.settings, self.ready = predictor, settings, False
        self.model = ThreadPoolExecutor(1, "student")
        self.decoders = ThreadPoolExecutor(DECODERS, "decoder")
        wait = settings.max_wait_ms / 1000
        self.looks: Batcher[Tensor, Seen] = Batcher(self._look, self.model, settings.max_batch, wait)
        self.reads: Batcher[str, Tensor] = Batcher(self._read, self.model, settings.max_batch, wait)
        self._texts: Recent[str, Tensor] = Recent(KEPT_TEXTS)
        self._vectors: Recent[Labels, Tensor] = Recent(KEPT_LABELS)

    async def start(self) -> None:
        """Begin to take inputs, and warm up; `ready` says when that is done."""
        self.looks.start()
        self.reads.start()
        blank = torch.zeros(tuple(self.predictor.field["shape"]))
        await asyncio.get_running_loop().run_in_executor(self.model, self._warm_up, blank)
        if self.predictor.reads_texts:
            labels = self.predictor.labels()
            if labels is not None:
                await self.vectors(labels)
        self.ready = True

    async def stop(self) -> None:
        """Finish what has been taken in."""
        self.ready = False
        await self.looks.close()
        await self.reads.close()
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.model.shutdown(wait=True)

    async def see(self, pictures: Sequence[Picture]) -> Seen:
        """Decode pictures and return what the student says about them.

        Raises:
            RequestError: something that is no picture, is damaged or too large.
        """
        loop = asyncio.get_running_loop()
        prepared = await asyncio.gather(
            *(loop.run_in_executor(self.decoders, self._decode, index, one) for index, one in enumerate(pictures))
        )
        return Seen.cat(await self._submit(self.looks, prepared))

    async def read(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings `[T, D]` of texts."""
        known = {text: vector for text in texts if (vector := self._texts.get(text)) is not None}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known |= dict(zip(new, await self._submit(self.reads, new), strict=True))
            for text in new:
                self._texts.put(text, known[text])
        return torch.stack([known[text] for text in texts])

    async def vectors(self, labels: Labels) -> Tensor:
        """Return the vectors `[C, D]` of labels."""
        found = self._vectors.get(labels)
        if found is None:
            prompts = labels.prompts
            texts = list(dict.fromkeys(text for own in prompts for text in own))
            known = dict(zip(texts, await self.read(texts), strict=True))
            found = class_vectors(lambda some: torch.stack([known[text] for text in some]), prompts)
            self._vectors.put(labels, found)
        return found

    def labels(self, names: Sequence[str] | None, templates: Sequence[str] | None) -> Labels | None:
        """Return checked labels; see `Predictor.labels`.

        Raises:
            RequestError: labels or templates that this student can't use.
        """
        try:
            return self.predictor.labels(names, templates)
        except ConfigError as error:
            code = "templates" if str(error).startswith("templates") else "labels"
            raise RequestError(422, code, str(error)) from error

    async def _submit(self, batcher: Batcher[Key, Value], inputs: Sequence[Key]) -> list[Value]:
        try:
            return await batcher.submit(inputs)
        except ClosedError as error:
            raise RequestError(503, "stopping", "the server is stopping", retry=1) from error

    def _decode(self, index: int, picture: Picture) -> Tensor:
        try:
            return read_picture(picture.content, self.predictor.field, self.settings.max_pixels, FORMATS)
        except DataError as error:
            raise RequestError(422, "picture", f"pictures[{index}]: {error}") from error

    def _look(self, batch: list[Tensor]) -> list[Seen]:
        seen = self.predictor.see(torch.stack(batch))
        return [seen.row(index) for index in range(len(batch))]

    def _read(self, texts: list[str]) -> list[Tensor]:
        return list(self.predictor.read(texts))

    def _warm_up(self, blank: Tensor) -> None:
        for size in sorted({1, self.settings.max_batch}):
            self.predictor.see(torch.stack([blank] * size))

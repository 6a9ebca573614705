"""Retrieval between images and texts.

Shapes: N images, M texts, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError

#: Maps the embeddings of P images and of P texts to P scores.
PairScorer = Callable[[Tensor, Tensor], Tensor]


def retrieval(
    image_ND: Tensor,
    text_MD: Tensor,
    image_of_text_M: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 1024,
    *,
    groups: tuple[Tensor, Tensor] | None = None,
    names: tuple[str, str] = ("image", "text"),
    scorer: PairScorer | None = None,
) -> dict[str, float]:
    """Return recall at k and the median rank, from images to texts and from texts to images, by cosine.

    The rank of a query is that of its best match: an image may have several texts, of which one has to be found. Ties
    count against the model: a wrong candidate with the same score (to a few roundings) stands before the right one, so
    that a model which gives one embedding to everything finds nothing.

    Args:
        image_ND: embeddings of all images, not normalised.
        text_MD: embeddings of all texts.
        image_of_text_M: index of the image that each text belongs to; None: text i belongs to image i.
        ks: the k of recall at k.
        chunk: queries that are compared at a time; memory is `chunk * max(N, M)` numbers.
        groups: integers `[N]` and `[M]`, in place of `image_of_text_M`: an image and a text of the same number are
            right answers for each other, so that a text may belong to several images too.
        names: what the two sides are called in the result.
        scorer: scores P pairs of an image and a text embedding, `[P, D]` each, for models that judge pairs in another
            way than by cosine; embeddings are then taken as they are, and every image meets every text.

    Returns:
        `image_to_text_r1`, ..., `text_to_image_r1`, ... in [0, 1], `image_to_text_median_rank` and
        `text_to_image_median_rank` (1 is best; the lower of two middle ranks). Images without a text, and texts without
        an image, are candidates, no queries.

    Raises:
        DataError: shapes that do not fit, an index that is no image, no image with a text, or embeddings that are not
            finite.
    """
    if groups is None:
        owner_M = torch.arange(len(text_MD), device=text_MD.device) if image_of_text_M is None else image_of_text_M
        _check(image_ND, text_MD, ks, chunk)
        _check_owners(owner_M, len(image_ND), len(text_MD))
        own_N, own_M = torch.arange(len(image_ND)), owner_M.long()
    else:
        own_N, own_M = groups
        _check(image_ND, text_MD, ks, chunk)
        _check_groups(own_N, own_M, len(image_ND), len(text_MD))
    if scorer is None:
        image_ND, text_MD = (F.normalize(x.detach().float(), dim=1, eps=1e-6) for x in (image_ND, text_MD))
    own_N, own_M = own_N.to(image_ND.device), own_M.to(image_ND.device)
    first, second = names
    back = None if scorer is None else _turned(scorer)
    ranks = {
        f"{first}_to_{second}": match_ranks(image_ND, text_MD, own_N, own_M, chunk, scorer),
        f"{second}_to_{first}": match_ranks(text_MD, image_ND, own_M, own_N, chunk, back),
    }
    return {name: value for direction, rank in ranks.items() for name, value in _recalls(direction, rank, ks).items()}


def _recalls(direction: str, rank_Q: Tensor, ks: Sequence[int]) -> dict[str, float]:
    rank_Q = rank_Q[rank_Q > 0]
    if not len(rank_Q):
        raise DataError("retrieval: no query has a right answer; no image and text belong together")
    found = {f"{direction}_r{k}": (rank_Q <= k).double().mean().item() for k in ks}
    return found | {f"{direction}_median_rank": float(rank_Q.median())}


def match_ranks(
    query_QD: Tensor,
    candidate_CD: Tensor,
    query_group_Q: Tensor,
    group_C: Tensor,
    chunk: int,
    scorer: PairScorer | None = None,
) -> Tensor:
    """Return the rank, from 1, of each query's best match among the candidates; 0 for queries without a match.

    Args:
        query_QD, candidate_CD: embeddings of length 1.
        query_group_Q, group_C: a candidate matches a query of the same number.
        chunk: queries that are compared at a time.
        scorer: scores pairs of a query and a candidate; None: by cosine.
    """
    tolerance, parts = 8 * torch.finfo(query_QD.dtype).eps, []
    for rows, groups in zip(query_QD.split(chunk), query_group_Q.split(chunk), strict=True):
        scores = rows @ candidate_CD.T if scorer is None else all_pairs(scorer, rows, candidate_CD)
        matches = groups[:, None] == group_C
        best = scores.masked_fill(~matches, -torch.inf).amax(dim=1, keepdim=True)
        before = ((scores >= best - tolerance) & ~matches).sum(dim=1)
        parts.append(torch.where(matches.any(dim=1), before + 1, 0))
    return torch.cat(parts)


@torch.no_grad()
def all_pairs(scorer: PairScorer, image_ND: Tensor, text_MD: Tensor, pairs: int = 1 << 16) -> Tensor:
    """Return the score of every image with every text, `[N, M]`.

    Args:
        scorer: scores P pairs.
        image_ND, text_MD: what it reads.
        pairs: scored at a time, about.
    """
    parts, count = [], len(text_MD)
    for rows in image_ND.split(max(1, pairs // max(count, 1))):
        texts = text_MD.repeat(len(rows), 1)
        parts.append(scorer(rows.repeat_interleave(count, dim=0), texts).float().reshape(len(rows), count))
    return torch.cat(parts)


def _turned(scorer: PairScorer) -> PairScorer:
    return lambda text, image: scorer(image, text)


def _check(image_ND: Tensor, text_MD: Tensor, ks: Sequence[int], chunk: int) -> None:
    shapes = f"images {tuple(image_ND.shape)}, texts {tuple(text_MD.shape)}"
    if image_ND.dim() != 2 or text_MD.dim() != 2 or image_ND.shape[1] != text_MD.shape[1]:
        raise DataError(f"retrieval needs embeddings [N, D] and [M, D] of the same width; found {shapes}")
    if not len(image_ND) or not len(text_MD):
        raise DataError(f"retrieval needs at least one image and one text; found {shapes}")
    if not (image_ND.isfinite().all() and text_MD.isfinite().all()):
        raise DataError("retrieval: some embeddings are not finite")
    if chunk < 1 or not ks or min(ks) < 1:
        raise DataError(f"retrieval needs chunk >= 1 and ks >= 1; found chunk {chunk}, ks {list(ks)}")


def _check_owners(owner_M: Tensor, images: int, texts: int) -> None:
    if owner_M.shape != (texts,) or owner_M.is_floating_point():
        raise DataError(
            f"image_of_text needs one image index for each of {texts} texts; found {tuple(owner_M.shape)} of "
            f"{owner_M.dtype}"
        )
    if int(owner_M.min()) < 0 or int(owner_M.max()) >= images:
        raise DataError(
            f"image_of_text holds indices {int(owner_M.min())} to {int(owner_M.max())}, but there are {images} "
            "images; give image_of_text where texts are not in the order of the images"
        )


def _check_groups(own_N: Tensor, own_M: Tensor, images: int, texts: int) -> None:
    found = f"{tuple(own_N.shape)} of {own_N.dtype} and {tuple(own_M.shape)} of {own_M.dtype}"
    if own_N.shape != (images,) or own_M.shape != (texts,) or own_N.is_floating_point() or own_M.is_floating_point():
        raise DataError(f"groups need an integer for each of {images} images and {texts} texts; found {found}")

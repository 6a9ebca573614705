"""The answers of a running server: those of the student, whatever comes together with them."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from moekd.inference import Predictor, predict, search
from moekd.serve import Settings

from .conftest import CLASSES, Place, encoded, files, running


def shares(answer: httpx.Response) -> list[dict[str, float]]:
    """Return label -> probability for each picture of an answer."""
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    return [{one["label"]: one["probability"] for one in row["classes"]} for row in rows]


def test_a_picture_gets_the_students_own_classes(place: Place, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded())
    (expected,) = predict(classifier, [tmp_path / "0.png"], top=9)
    (found,) = shares(place.post("/predict", files=files(encoded())))
    assert found == pytest.approx(dict(expected.classes), abs=1e-6)
    assert list(found) == [name for name, _ in expected.classes], "the most probable is first"
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    assert place.post("/predict", files=files(encoded())).json()["predictions"][0]["picture"] == "0.png"


def test_forms_and_json_say_the_same(place: Place) -> None:
    contents = [encoded(seed) for seed in range(3)]
    form = place.post("/predict", files=files(*contents), data={"top": 2})
    raw = [base64.b64encode(content).decode() for content in contents]
    raw[1] = f"data:image/png;base64,{raw[1]}"
    plain = place.post("/predict", json={"pictures": raw, "top": 2})
    for one, other in zip(shares(form), shares(plain), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert [len(row) for row in shares(form)] == [2, 2, 2]


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP"])
def test_other_formats_are_read(place: Place, form: str) -> None:
    assert len(shares(place.post("/predict", files=files(encoded(form=form))))) == 1


def test_a_classifier_chooses_among_some_of_its_classes(place: Place) -> None:
    (whole,) = shares(place.post("/predict", files=files(encoded())))
    (part,) = shares(place.post("/predict", files=files(encoded()), data={"labels": " sky ,naïve café, sky"}))
    total = whole["sky"] + whole["naïve café"]
    assert part == pytest.approx({name: whole[name] / total for name in ("sky", "naïve café")}, abs=1e-6)
    (comma,) = shares(
        place.post("/predict", json={"pictures": [base64.b64encode(encoded()).decode()], "labels": ["food, drink"]})
    )
    assert comma == pytest.approx({"food, drink": 1.0})


def test_a_student_that_reads_is_asked_for_any_label(reader: Place, two_towers: Path, tmp_path: Path) -> None:
    labels = ["ein grüner Apfel", "日本", "🙂 a face", "b" * 300]
    (tmp_path / "a.png").write_bytes(encoded())
    for templates in (None, ["{}", "a drawing of a {}."]):
        (expected,) = predict(two_towers, [tmp_path / "a.png"], top=9, labels=labels, templates=templates)
        data = {"labels": ",".join(labels)} | ({} if templates is None else {"templates": templates})
        (found,) = shares(reader.post("/predict", files=files(encoded()), data=data))
        assert found == pytest.approx(dict(expected.classes), abs=1e-6)
    (own,) = shares(reader.post("/predict", files=files(encoded())))
    assert set(own) == set(CLASSES)


def test_embeddings_and_search(reader: Place, two_towers: Path, tmp_path: Path) -> None:
    contents = [encoded(seed) for seed in range(4)]
    texts = ["a red apple", "naïve café", "a red apple"]
    answer = reader.post("/embed", files=files(*contents), data={"texts": texts}).json()
    predictor = Predictor(two_towers)
    assert torch.allclose(torch.tensor(answer["texts"]), predictor.read(texts), atol=1e-6)
    assert torch.tensor(answer["pictures"]).shape == (4, 16)
    assert reader.post("/embed", json={"texts": texts[:1]}).json()["pictures"] is None
    for index, content in enumerate(contents):
        (tmp_path / f"{index}.png").write_bytes(content)
    expected = search(predictor, texts, [tmp_path], top=3)
    found = reader.post("/search", files=files(*contents), data={"texts": texts, "top": 3}).json()["matches"]
    for one, other in zip(expected, found, strict=True):
        assert one.text == other["text"]
        assert [Path(path).name for path, _ in one.pictures] == [hit["picture"] for hit in other["pictures"]]
        assert [c for _, c in one.pictures] == pytest.approx([hit["cosine"] for hit in other["pictures"]], abs=1e-6)
        assert [hit["picture"] for hit in other["pictures"]] == [f"{hit['index']}.png" for hit in other["pictures"]]


def test_many_at_a_time_get_what_each_gets_alone(classifier: Path) -> None:
    """40 requests from 8 threads, in batches of up to 16: the probabilities are those of one picture at a time."""
    predictor = Predictor(classifier)
    with running(predictor, Settings(max_batch=1)) as alone:
        expected = [shares(alone.post("/predict", files=files(encoded(seed)))) for seed in range(40)]
    with running(predictor, Settings(max_batch=16, max_wait_ms=50)) as together:

        def ask(seed: int) -> list[dict[str, float]]:
            return shares(together.post("/predict", files=files(encoded(seed))))

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, range(40)))
        counted = dict(re.findall(r'moekd_(\w+)_total\{tower="picture"\} (\d+)', together.get("/metrics").text))
    assert int(counted["inputs"]) == 40
    assert int(counted["batches"]) < 40, "requests of several threads went through the student together"
    for one, other in zip(expected, found, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-6)


def test_pictures_of_one_request_get_what_each_gets_alone(reader: Place) -> None:
    contents = [encoded(seed) for seed in range(9)]
    together = shares(reader.post("/predict", files=files(*contents), data={"labels": "a,b,c"}))
    for content, row in zip(contents, together, strict=True):
        assert shares(reader.post("/predict", files=files(content), data={"labels": "a,b,c"}))[0] == pytest.approx(
            row, abs=1e-6
        )


def test_what_the_server_says_about_itself(place: Place, reader: Place) -> None:
    info = place.get("/info").json()
    assert info["classes"] == CLASSES
    assert (info["reads_texts"], info["classifies"], info["embeds"]) == (False, True, False)
    assert info["input"] == {"modality": "image", "shape": [3, 24, 24]}
    assert info["card"] == "# A card"
    assert info["parameters"] == sum(p.numel() for p in place.predictor.network.parameters())
    other = reader.get("/info").json()
    assert (other["reads_texts"], other["classifies"], other["embeds"]) == (True, False, True)
    assert reader.get("/health").json() == {"status": "ready"}


def test_the_description_names_every_address_and_nothing_is_loaded_from_elsewhere(place: Place) -> None:
    described = place.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/embed", "/search", "/health", "/info", "/metrics"}
    content = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    assert set(content["application/json"]["schema"]["properties"]) == {"pictures", "labels", "templates", "top"}
    assert place.get("/docs").status_code == place.get("/redoc").status_code == 404
    for path in ("/", "/page.js", "/page.css", "/icon.svg"):
        text = place.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|url\(", text), path


@pytest.mark.parametrize("path", ["/", "/info", "/nowhere", "/openapi.json"])
def test_every_answer_carries_the_protective_headers(place: Place, path: str) -> None:
    headers = place.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "server" not in headers


def test_a_reader_is_warm_before_it_is_ready(two_towers: Path) -> None:
    with running(Predictor(two_towers)) as found:
        counted: Callable[[], str] = lambda: found.get("/metrics").text  # noqa: E731
        before = re.search(r'inputs_total\{tower="text"\} (\d+)', counted())
        assert before is not None
        assert int(before[1]) >= len(CLASSES), "its own classes were read before the first question"
        shares(found.post("/predict", files=files(encoded())))
        assert f'inputs_total{{tower="text"}} {before[1]}' in counted(), "and are not read again"

import ast
import subprocess
import sys
from collections import Counter

import pytest

from nanonet.core.errors import ConfigError, DataError
from nanonet.demo.corpus import AREAS, Docstring, read_corpus, split_corpus


@pytest.fixture(scope="module")
def corpus() -> list[Docstring]:
    return read_corpus()


def names(rows: list[Docstring]) -> list[str]:
    return [doc.name for doc in rows]


def made_up(per_area: int) -> list[Docstring]:
    return [
        Docstring(f"{area} text {i}", area, f"{area}.{i}")
        for area in AREAS
        for i in range(per_area)
    ]


def test_no_module_is_filed_twice():
    modules = [module for group in AREAS.values() for module in group]
    assert len(modules) == len(set(modules))


def test_every_area_is_well_filled(corpus):
    sizes = Counter(doc.area for doc in corpus)
    assert set(sizes) == set(AREAS)
    assert min(sizes.values()) >= 300
    assert 2500 <= len(corpus) <= 5000


def test_each_text_is_one_line_and_occurs_once(corpus):
    assert all(doc.text == " ".join(doc.text.split()) for doc in corpus)
    assert len({doc.text.casefold() for doc in corpus}) == len(corpus)
    assert len(set(names(corpus))) == len(corpus)


def test_names_are_public_and_belong_to_their_area(corpus):
    for doc in corpus:
        assert not any(part.startswith("_") for part in doc.name.split("."))
        assert any(f"{doc.name}.".startswith(f"{module}.") for module in AREAS[doc.area])


def test_known_names_are_read(corpus):
    found = {doc.name: doc for doc in corpus}
    assert found["socket.socket.bind"].area == "networking"  # written in C, inherited
    assert found["os.path.exists"].area == "files and archives"  # lives in genericpath
    assert found["json"].text.startswith("JSON (JavaScript Object Notation)")  # a module
    assert found["decimal.Decimal.sqrt"].area == "numbers and time"
    assert found["asyncio.run"].area == "concurrency"  # lives in asyncio.runners
    assert "ast.Assign" not in found  # a generated signature
    assert "http.server.HTTPServer.serve_forever" not in found  # inherited from socketserver


def test_a_missing_module_is_skipped(corpus, monkeypatch):
    table = {area: (*modules, f"missing{len(area)}") for area, modules in AREAS.items()}
    monkeypatch.setattr("nanonet.demo.corpus.AREAS", table)
    assert read_corpus() == corpus


def test_a_text_of_two_areas_is_dropped_and_one_of_two_modules_kept_once(monkeypatch):
    texts = {
        "a": [("a.both", "In both areas."), ("a.twice", "In both modules.")],
        "b": [("b.twice", "in both MODULES.")],
        "c": [("c.both", "IN BOTH areas."), ("c.only", "Only in this one.")],
    }
    monkeypatch.setattr("nanonet.demo.corpus.AREAS", {"first": ("b", "a"), "second": ("c",)})
    monkeypatch.setattr("nanonet.demo.corpus._read_module", texts.__getitem__)
    assert names(read_corpus()) == ["a.twice", "c.only"]


def test_reading_is_the_same_in_a_fresh_interpreter(corpus):
    code = "from nanonet.demo.corpus import read_corpus\nprint([d.name for d in read_corpus()])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    # Ray, which other tests load, replaces this function by one without a docstring.
    found = [name for name in ast.literal_eval(done.stdout) if name != "inspect.isgenerator"]
    assert found == [name for name in names(corpus) if name != "inspect.isgenerator"]
    assert read_corpus() == corpus


def test_split_is_disjoint_and_complete(corpus):
    split = split_corpus(corpus)
    parts = split.labeled + split.unlabeled + split.test
    assert sorted(names(parts)) == sorted(names(corpus))
    assert len(split.test) >= 1000


def test_split_is_stratified(corpus):
    split = split_corpus(corpus, labeled_per_area=7, test_fraction=0.25)
    assert Counter(doc.area for doc in split.labeled) == dict.fromkeys(AREAS, 7)
    sizes = Counter(doc.area for doc in corpus)
    for area, count in Counter(doc.area for doc in split.test).items():
        assert count == round(0.25 * sizes[area])


def test_split_is_seeded_and_its_test_part_ignores_the_number_of_labels(corpus):
    split = split_corpus(corpus, seed=3)
    assert split == split_corpus(corpus, seed=3)
    assert names(split.test) != names(split_corpus(corpus, seed=4).test)
    more = split_corpus(corpus, seed=3, labeled_per_area=50)
    assert more.test == split.test
    assert set(names(split.labeled)) < set(names(more.labeled))


def test_smallest_corpus_keeps_all_labels():
    split = split_corpus(made_up(20), labeled_per_area=10, test_fraction=0.9)
    assert len(split.labeled) == len(split.test) == 10 * len(AREAS)
    assert split.unlabeled == []


def test_too_small_an_area_is_an_error():
    rows = made_up(20)[1:]
    with pytest.raises(DataError, match="area 'networking' has 19 texts, needs 20"):
        split_corpus(rows)


@pytest.mark.parametrize("setting", [{"labeled_per_area": 0}, {"test_fraction": 1.0}])
def test_settings_out_of_range_are_errors(setting):
    with pytest.raises(ConfigError, match="labeled_per_area must be at least 1"):
        split_corpus(made_up(20), **setting)

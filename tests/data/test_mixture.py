"""Several data sets as one: shares, formats, where rows stand, exact repetition."""

from __future__ import annotations

import collections

import datasets
import numpy as np
import pytest

from align_jax.config import Config
from align_jax.data import BatchLoader, DataConfig, Encoder, GroupDataset, RowLayout
from align_jax.data.arrange import Beliefs, Group, Pair, Unpaired
from align_jax.data.members import holds_rows, is_members, members_of
from align_jax.data.mixture import Shares
from align_jax.data.opened import open_data
from align_jax.errors import UserError
from tests.data.toys import char_tokenizer, opinion, write_jsonl


def pairs(name, count):
    return [{"prompt": f"{name}{i}", "chosen": "a", "rejected": "b"} for i in range(count)]


def groups(name, count):
    return [{"prompt": f"{name}{i}", "responses": ["a", "b", "c"], "scores": [0, 1, 2], "extra": 1} for i in range(count)]


@pytest.fixture
def files(tmp_path):
    """x.jsonl: 12 pairs; y.jsonl: 4 groups."""
    return {
        "x": write_jsonl(tmp_path / "x.jsonl", pairs("x", 12)),
        "y": write_jsonl(tmp_path / "y.jsonl", groups("y", 4)),
    }


def dataset(train, arrangement=None, which="train", **more):
    config = DataConfig(train=train, **more)
    return GroupDataset(config, which, Encoder(char_tokenizer(), config), arrangement=arrangement or Group())


def prompts(data):
    return collections.Counter(data.example_of(i).prompt for i in range(len(data)))


def test_without_weights_every_row_occurs_once(files):
    data = dataset([files["x"], files["y"]])
    assert set(prompts(data).values()) == {1} and len(data) == 16 and data.slots == 3
    assert data.source_names == ("x", "y") and data.format == "groups"
    assert data.notes == ["groups of an epoch: x 12 (75.0%), y 4 (25.0%)", "y: columns not read: extra"]
    assert data.where(0).endswith("x.jsonl:1") and {data.where(i).split("/")[-1] for i in range(16)} == {
        *(f"x.jsonl:{i}" for i in range(1, 13)), *(f"y.jsonl:{i}" for i in range(1, 5)),
    }  # fmt: skip
    labels = [data[i].labels["source_id"] for i in range(16)]
    assert [int(label) for label in labels] == [data.source_names.index(data.example_of(i).source) for i in range(16)]


@pytest.mark.parametrize("weights", [(1e-9, 1), (1, 1e-9), (1e-300, 1e300), (1e-5, 1)])
def test_weights_that_repeat_rows_without_end_are_refused(files, weights):
    train = [{"path": files[name], "weight": weight} for name, weight in zip("xy", weights, strict=True)]
    with pytest.raises(UserError, match="data.train: with these weights an epoch has .* groups of 16, those of [xy] .* times"):
        dataset(train)


def test_few_rows_may_be_repeated_as_often_as_many_are_there():
    shares = Shares(("few", "many"), (1.0, 1.0))
    sources = np.repeat([0, 1], [1, 5000])
    assert len(shares.epoch(list(range(5001)), sources)) == 10000


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1, 1), (12, 12)), ((3, 1), (12, 4)), ((6, 1), (24, 4)), ((0.5, 0.25), (12, 6)), ((1, 5), (12, 60))],
)
def test_shares_are_the_weights_and_every_row_occurs(files, weights, counts):
    data = dataset([{"path": files["x"], "weight": weights[0]}, {"path": files["y"], "weight": weights[1]}])
    found = prompts(data)
    assert tuple(sum(n for p, n in found.items() if p[0] == name) for name in "xy") == counts and len(found) == 16
    for name in "xy":
        times = [n for p, n in found.items() if p[0] == name]
        assert max(times) - min(times) <= 1
    again = dataset([{"path": files["x"], "weight": weights[0]}, {"path": files["y"], "weight": weights[1]}])
    assert [again.where(i) for i in range(len(again))] == [data.where(i) for i in range(len(data))]
    assert again.fingerprint == data.fingerprint


def test_repeats_are_said(files):
    data = dataset([{"path": files["x"], "weight": 2}, {"path": files["y"], "weight": 1}])
    assert data.notes[0] == "groups of an epoch: x 12 (66.7%), y 4 x 1.5 (33.3%)"


def test_data_sets_are_spread_over_an_epoch():
    shares = Shares(("x", "y"), (1.0, 1.0))
    order = shares.epoch([f"x{i}" for i in range(8)] + ["y0", "y1"], np.asarray([0] * 8 + [1] * 2))
    assert len(order) == 16 and all({item[0] for item in order[i : i + 2]} == {"x", "y"} for i in range(0, 16, 2))


def test_shares_of_rows_that_are_left():
    # the third has lost all its rows: it has no share, and the others keep theirs
    shares = Shares(("x", "y", "z"), (1.0, 3.0, 5.0))
    order = shares.epoch(["x0", "y0"], np.asarray([0, 1]))
    assert collections.Counter(order) == {"x0": 1, "y0": 3}
    assert "z 0 (0.0%)" in shares.describe(np.asarray([0, 1]))


def test_limits_are_of_each(files):
    data = dataset([{"path": files["x"], "limit": 3}, files["y"]], max_rows=3)
    assert collections.Counter(p[0] for p in prompts(data)) == {"x": 3, "y": 3}
    assert len(dataset({"path": files["x"], "limit": 5})) == 5 == len(dataset(files["x"], max_rows=5))


def test_the_loader_resumes_exactly(files):
    train = [{"path": files["x"], "weight": 1}, {"path": files["y"], "weight": 1}]

    def loader():
        return BatchLoader(dataset(train), shards=1, groups_per_step=5, layout=RowLayout(pack=False), workers=1, prefetch=1)

    whole, resumed = loader(), loader()
    for _ in range(3):
        next(whole)
    state = whole.state()
    rest = [np.asarray(next(whole).rows).tolist() for _ in range(8)]
    resumed.restore(state)
    assert [np.asarray(next(resumed).rows).tolist() for _ in range(8)] == rest


@pytest.mark.parametrize(
    ("rows", "arrangement", "name"),
    [
        ((pairs("x", 3), groups("y", 3)), Pair(), "groups"),
        ((pairs("x", 3), [{"prompt": f"k{i}", "completion": "c", "label": i % 2} for i in range(4)]), Unpaired(), "unpaired"),
        ((pairs("x", 3), [opinion(f"q{i}") for i in range(3)]), Pair(), "pairs"),
        (([opinion(f"q{i}") for i in range(3)], [opinion(f"r{i}") for i in range(3)]), Beliefs(), "gdpo"),
    ],
)
def test_formats_may_differ_as_far_as_the_arrangement_serves(tmp_path, rows, arrangement, name):
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", part) for i, part in enumerate(rows)]
    data = dataset(paths, arrangement)
    assert data.format == name and {data.example_of(i).source for i in range(len(data))} == {"0", "1"}


def test_a_format_that_cannot_serve_is_named(tmp_path, files):
    opinions = write_jsonl(tmp_path / "o.jsonl", [opinion()])
    with pytest.raises(UserError, match="the objective needs beliefs, which data.format 'pairs' does not have"):
        dataset([opinions, files["x"]], Beliefs())
    alone = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "p"}])
    with pytest.raises(UserError, match="data.train: p has prompts alone, and others of the mixture have responses"):
        dataset([files["x"], alone])


def test_repeated_rows_do_not_change_what_is_estimated(tmp_path):
    rows = [opinion("q", i % 3, (i + 1) % 3, probabilities=None) for i in range(4)]
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((rows, [opinion("r", probabilities=None)]))]
    plain, weighed = (
        dataset([{"path": p} | more for p, more in zip(paths, weights, strict=True)], Beliefs())
        for weights in (({}, {}), ({"weight": 1}, {"weight": 2}))
    )
    assert len(weighed) > len(plain)
    targets = [
        {data.example_of(i).prompt: data[i].labels["target_probs"].tolist() for i in range(len(data))}
        for data in (plain, weighed)
    ]
    assert targets[0] == targets[1]


def test_a_fraction_is_held_out_of_all(files):
    train = [{"path": files["x"], "weight": 1}, {"path": files["y"], "weight": 1}]
    parts = {which: dataset(train, which=which, eval=0.25) for which in ("train", "eval")}
    held, rest = prompts(parts["eval"]), prompts(parts["train"])
    assert sorted(prompt[0] for prompt in held) == ["x", "x", "x", "y"]
    assert not set(held) & set(rest) and len(set(held) | set(rest)) == 16
    assert set(held.values()) == {1}  # weights are of training
    sources = collections.Counter()
    for prompt, n in rest.items():
        sources[prompt[0]] += n
    assert sources["x"] == sources["y"]
    assert not any("columns not read" in note for note in parts["eval"].notes)


def test_data_sets_for_evaluation(files):
    config = DataConfig(eval=[files["x"], {"path": files["y"], "label": "z"}])
    data = GroupDataset(config, "eval", Encoder(char_tokenizer(), config), arrangement=Group())
    assert data.source_names == ("x", "z") and len(data) == 16
    with pytest.raises(UserError, match="data.eval: an evaluation takes every row once"):
        open_data(DataConfig(eval=[{"path": p, "weight": 1} for p in files.values()]), "eval", None)


def test_what_a_mixture_is_decides_the_fingerprint(files):
    x, y = files["x"], files["y"]
    trains = [
        x,
        [x, y],
        [y, x],
        [{"path": x, "weight": 1}, {"path": y, "weight": 1}],
        [{"path": x, "weight": 1}, {"path": y, "weight": 2}],
    ]
    assert len({dataset(train).fingerprint for train in trains}) == len(trains)
    assert dataset(x).fingerprint == dataset({"path": x}).fingerprint


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "data.train: an empty list"),
        ({}, "data.train: a data set needs `name`"),
        ({"limit": 3}, "data.train: a data set needs `name`, of one that is known by name, or `path`"),
        ({"path": "x", "wieght": 1}, "data.train has no key 'wieght'; it accepts name, path"),
        ([{"path": "x"}, 3], "data.train.1: 3 is neither a path nor the keys of a data set"),
        (3, "data.train: 3 is neither"),
        (True, "data.train: True is neither"),
        ({"path": "x", "limit": 0}, "data.train.limit: 0 is not at least 1"),
        ({"path": "x", "limit": "many"}, "data.train.limit: 'many' is not a whole number"),
        ({"path": " "}, "data.train.path: ' ' is blank"),
        ([{"path": "x", "weight": 0}, {"path": "y", "weight": 1}], "data.train.0.weight: 0 is not above 0"),
        ([{"path": "x", "weight": True}, {"path": "y", "weight": 1}], "data.train.0.weight: True is not a number"),
        ([{"path": "x", "weight": 1}, "y"], "data.train.1.weight: is required, since others have a weight"),
        ([{"path": "x", "weight": 1}], "data.train.weight: 1 is the weight of the only data set"),
        (["a/x.jsonl", "b/x.jsonl"], "data.train.1: 'x' is also what data.train.0 is called; give it a `label`"),
    ],
)
def test_what_names_no_data_is_refused(value, said):
    with pytest.raises(UserError, match=said):
        DataConfig(train=value)


@pytest.mark.parametrize(
    ("path", "called"),
    [
        ("data/a.jsonl", "a"), ("a.jsonl.gz", "a"), ("openbmb/UltraFeedback", "UltraFeedback"), ("folder/", "folder"),
        ("a b.parquet", "a-b"), ("v1.2", "v1.2"),
    ],
)  # fmt: skip
def test_what_a_data_set_is_called(path, called):
    assert members_of(path, "data.train")[0].called == called


@pytest.mark.parametrize(
    ("value", "mixture"),
    [
        (["a.jsonl"], True),
        ([{"path": "a", "weight": 1}, "b"], True),
        ([{"name": "nectar"}], True),
        ([{"prompt": "p", "path": "x"}], False),
        ([{"weight": 1}], False),
        ([], False),
        ("a", False),
    ],
)
def test_a_list_of_data_sets_is_no_list_of_rows(value, mixture):
    assert is_members(value) == mixture


def config_of(train, *more, **data):
    values = {"model": {"path": "m"}, "objective": {"name": "dpo"}, "data": {"train": train, **data}}
    return Config.of(values, *more)


def test_rows_given_in_python_may_be_of_a_mixture(files, tmp_path):
    rows = pairs("z", 2)
    train = [{"path": rows, "label": "mine", "weight": 1}, {"path": files["x"], "weight": 3}]
    config = config_of(train, "data.max_prompt_tokens=9")
    source, reading, _ = open_data(config.data, "train", None)
    assert len(source) == 14 and reading.labels == ("mine", "x") and reading.read(source[0]).prompt == "z0"
    assert "python-rows-" in config.to_yaml()
    assert holds_rows(config.data.train) and holds_rows(config_of(rows).data.train)
    assert not holds_rows([{"name": "nectar"}, "a"])
    assert len(open_data(config_of({"path": rows, "limit": 1}).data, "train", None).source) == 1
    assert len(open_data(config_of(rows).data, "train", None).source) == 2
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    with pytest.raises(UserError, match="given in Python, and only there"):
        open_data(Config.of(tmp_path / "c.yaml").data, "train", None)


def test_a_mixture_survives_yaml_and_is_another_run(files, tmp_path):
    train = [{"path": files["x"], "weight": 1.5}, {"path": files["y"], "weight": 1, "limit": 3}]
    config = config_of(train, eval=0.1)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    again = Config.of(tmp_path / "c.yaml")
    assert again == config and again.data.train == train
    names = {config_of(value).run.dir for value in (train, train[:1][0]["path"], train[::-1], {"path": files["x"]})}
    assert len(names) == 4


def test_a_plain_path_is_the_run_that_it_was():
    """The name of a run from before there were mixtures."""
    assert config_of("a.jsonl", eval="b.jsonl").run.dir == "runs/dpo-cc451e33"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("data.train.2.limit=3", "data.train is a list of 2, numbered from 0; '2' is none of them"),
        ("data.train.first.limit=3", "'first' is none of them"),
        ("data.train.1.limit=3", "data.train.1 is 'y.jsonl', which has no key 'limit'"),
        ("data.train.0.limt=3", "has no key 'limt'.*did you mean.*limit"),
        ("data.train.0.limit=many", "'many' is not a whole number"),
        ("data.train.0.weight=2", "data.train.1.weight.*is required"),
        ("data.train.0.name=nectr", "did you mean nectar"),
    ],
)
def test_options_of_a_mixture_that_are_refused(option, said):
    with pytest.raises(UserError, match=said):
        config_of([{"path": "x.jsonl"}, "y.jsonl"], option)


def test_options_reach_the_data_sets_of_a_mixture(tmp_path):
    config = config_of([{"path": "x.jsonl", "limit": 5}, "y.jsonl"], "data.train.0.limit=3", "data.train.1=z.jsonl")
    assert config.data.train == [{"path": "x.jsonl", "limit": 3}, "z.jsonl"]
    assert config_of({"name": "nectar"}, "data.train.limit=3").data.train == {"name": "nectar", "limit": 3}
    assert config_of([{"path": "x.jsonl"}], "data.train=a.jsonl").data.train == "a.jsonl"
    with pytest.raises(UserError, match="a data set needs `name`"):
        config_of("a.jsonl", "data.train.limit=3")
    (tmp_path / "c.yaml").write_text(
        "model: {path: m}\nobjective: {name: dpo}\ndata:\n  train:\n    - path: x\n    - path: y\n      limit: -1\n"
    )
    with pytest.raises(UserError, match=r"c\.yaml:7: data\.train\.1\.limit: -1 is not at least 1"):
        Config.of(tmp_path / "c.yaml")


def test_limits_decide_the_fingerprint_whatever_kind_of_file(tmp_path):
    for name in "pq":
        datasets.Dataset.from_list(pairs(name, 6)).to_parquet(tmp_path / f"{name}.parquet")
    p, q = (str(tmp_path / f"{name}.parquet") for name in "pq")
    mixed = [[{"path": p, "limit": a}, {"path": q, "limit": b}] for a, b in ((2, 4), (4, 2), (3, 3))]
    assert len({dataset(train).fingerprint for train in mixed}) == 3
    # As many rows are left, not the same ones.
    held = [dataset({"path": p, "limit": n}, eval=fraction) for n, fraction in ((5, 0.4), (4, 0.25))]
    assert len(held[0]) == len(held[1]) and held[0].fingerprint != held[1].fingerprint

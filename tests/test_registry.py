"""Things are found by name in a folder, or by `package.module:Class`; what is not found is explained."""

from __future__ import annotations

import sys

import pytest

from align_jax.data.formats import Format
from align_jax.errors import UserError
from align_jax.objectives import MPO, Objective
from align_jax.registry import find, spelled, table

OBJECTIVES = "align_jax.objectives"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory is an empty one, which nothing of this test outlives."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def find_objective(name):
    return find(name, OBJECTIVES, Objective, "objective", "objective.name")


def write_package(folder, **modules):
    (folder / "zoo").mkdir()
    (folder / "zoo" / "__init__.py").write_text("")
    for name, code in modules.items():
        (folder / "zoo" / f"{name}.py").write_text(code)
    sys.path.append(str(folder))


def test_a_file_in_the_folder_adds_what_it_defines(here):
    base = "class Animal:\n    pass\n"
    loud = "from zoo.base import Animal\nclass Shared(Animal):\n    pass\nclass Dog(Shared):\n    name = 'dog'\n"
    quiet = "from zoo.loud import Dog\nclass Puppy(Dog):\n    name = 'puppy'\nclass Unnamed(Dog):\n    pass\n"
    quiet += "rex = Dog()\nrex.name = 'rex'\n"
    write_package(here, base=base, loud=loud, quiet=quiet)
    from zoo.base import Animal
    from zoo.quiet import Puppy, rex

    assert sorted(table("zoo", Animal)) == ["dog", "puppy", "rex"]  # neither the shared base, nor what has no name of its own
    assert find("puppy", "zoo", Animal, "animal", "zoo.animal") is Puppy and table("zoo", Animal)["rex"] is rex
    (here / "zoo" / "third.py").write_text("from zoo.base import Animal\nclass Cat(Animal):\n    name = 'cat'\n")
    assert find("cat", "zoo", Animal, "animal", "zoo.animal").__name__ == "Cat"
    choices = r"did you mean puppy\? choose one of cat, dog"
    with pytest.raises(UserError, match=f"zoo.animal: 'pupy' is unknown; {choices}"):
        find("pupy", "zoo", Animal, "animal", "zoo.animal")


def test_two_things_of_one_name_are_refused(here):
    one = "from zoo.base import Animal\nclass Dog(Animal):\n    name = 'dog'\n"
    write_package(here, base="class Animal:\n    pass\n", a=one, b=one)
    from zoo.base import Animal

    with pytest.raises(ValueError, match="both named 'dog'"):
        table("zoo", Animal)


def test_a_class_outside_is_found_in_the_current_directory_and_by_its_own_spelling(here):
    (here / "mine.py").write_text("from align_jax.objectives import MPO\nclass Other(MPO):\n    pass\n")
    found = find_objective("mine:Other")
    assert issubclass(found, MPO) and found is not MPO
    assert spelled(found(), OBJECTIVES) == "mine:Other" and spelled(MPO(), OBJECTIVES) == "mpo"
    assert find_objective(spelled(found(), OBJECTIVES)) is found


@pytest.mark.parametrize(
    "name, message",
    [
        (None, "objective.name: is required; choose one of .*, or write package.module:Class"),
        ("mop", r"objective.name: 'mop' is unknown; did you mean mpo\?"),
        ("gone:Other", "objective.name: 'gone:Other': there is no module 'gone' .*put it back.*PYTHONPATH"),
        ("gone.deep:Other", "there is no module 'gone'"),
        ("needs:Other", "importing needs failed: No module named 'not_installed'"),
        ("broken:Other", r"importing broken failed: ZeroDivisionError: division by zero"),
        ("unreadable:Other", "importing unreadable failed: SyntaxError"),
        ("mine:Othr", r"mine.py has no 'Othr'; did you mean Other\?"),
        ("mine:zzz", "mine.py has no 'zzz'; its objectives are Other"),
        ("mine:number", "'mine:number' is no objective: it must be a subclass of align_jax.objectives.base.Objective"),
        ("mine:Objective", "'mine:Objective' is no objective"),
        ("mine:", "mine.py has no ''"),
        (":Other", "importing  failed"),
        ("__main__:Missing", "a class of a script or notebook must move to a file of its own"),
    ],
)
def test_what_is_not_found_is_explained(here, name, message):
    mine = "from align_jax.objectives import Objective\nclass Other(Objective):\n    pass\nnumber = 3\n"
    (here / "mine.py").write_text(mine)
    (here / "needs.py").write_text("import not_installed\n")
    (here / "broken.py").write_text("1 / 0\n")
    (here / "unreadable.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=message):
        find_objective(name)


def test_every_thing_of_the_package_has_its_own_name():
    for package, base in ((OBJECTIVES, Objective), ("align_jax.data.formats", Format)):
        found = table(package, base)
        assert len(found) >= 7 and all(thing.name == name for name, thing in found.items())

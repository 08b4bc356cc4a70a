"""The strict loader: all mistakes at once, each with its line."""

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.strict_yaml import MAX_BYTES, Credential, KeyMistake, YamlErrors, line_of, load, loads


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inches: Annotated[int, msgspec.Meta(ge=10, le=30)] = 28
    kind: Literal["front", "rear"] = "front"


class Bike(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    wheels: tuple[Wheel, ...] = ()
    price: float | None = None
    tags: dict[str, int] = {}
    lights: bool = False
    key: Credential | None = None
    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if len(self.wheels) > 2:
            raise KeyMistake("wheels", f"a list of {len(self.wheels)}", "at most two")


def mistakes(text: str) -> list[str]:
    with pytest.raises(YamlErrors) as caught:
        loads(text.encode(), Bike, name="bike.yaml")
    return [str(m) for m in caught.value.mistakes]


def test_a_sound_file_becomes_the_struct() -> None:
    text = "name: one\nwheels: [{inches: 26}, {kind: rear}]\nprice: 12\ntags: {a: 1}\nlights: yes\npoints: [[0, 1.5]]\n"
    bike = loads(text.encode(), Bike)
    assert bike == Bike("one", (Wheel(26), Wheel(kind="rear")), 12.0, {"a": 1}, True, None, ((0.0, 1.5),))


def test_every_mistake_is_told_at_once_with_its_line() -> None:
    text = "nmae: x\nwheels:\n  - inches: 99\n  - kind: middle\n  - 5\nlights: maybe\nprice: cheap\n"
    told = mistakes(text)
    assert told == [
        'bike.yaml:1: nmae is not a known key, expected "name" (did you mean that?)',
        "bike.yaml:1: name is missing, expected text (quote it if it looks like a number)",
        "bike.yaml:3: wheels[0].inches is '99', expected a whole number, 10–30",
        "bike.yaml:4: wheels[1].kind is 'middle', expected one of front, rear",
        "bike.yaml:5: wheels[2] is '5', expected a mapping with the keys inches, kind",
        "bike.yaml:6: lights is 'maybe', expected true or false",
        "bike.yaml:7: price is 'cheap', expected a number",
    ]


def test_a_check_of_the_struct_itself_points_at_its_key() -> None:
    assert mistakes("name: x\nwheels: [{}, {}, {}]\n") == ["bike.yaml:2: wheels is a list of 3, expected at most two"]


def test_a_key_given_twice_is_a_mistake() -> None:
    assert mistakes("name: x\nname: y\n") == ["bike.yaml:2: name is given twice, expected once"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "empty", id="empty file"),
        pytest.param("a: [", "not YAML", id="unclosed list"),
        pytest.param("- 1\n- 2", "expected a mapping", id="a list"),
        pytest.param("name: !!python/object/apply:os.system ['true']", "name is a list", id="python tag"),
        pytest.param("name: x\nprice: 2026-13-45", "price is '2026-13-45'", id="impossible date"),
        pytest.param("x: " + "[" * 3000, "nested too deeply", id="deep nesting"),
        pytest.param("name: 12", "quote it", id="number for text"),
    ],
)
def test_what_is_no_bike_is_named(text: str, told: str) -> None:
    assert told in "\n".join(mistakes(text))


def test_aliases_cannot_unfold_without_bound() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]" for p, c in zip("abcdefg", "bcdefgh", strict=True)]
    lines.append("points: *h")
    assert len(mistakes("\n".join(lines))) < 30


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("site", 1),
        ("heads[1].consent.a.b.until", 6),
        ("heads[1].consent.me", 5),
        ("heads[1].threshold", 4),
        ("heads[7].name", 3),
        ("nothing.of[0].the.kind", 1),
    ],
    ids=["a key", "a key with a dot in it", "a missing one", "a missing leaf", "beyond the list", "nowhere"],
)
def test_the_line_of_a_key_is_found_afterwards_or_that_of_what_is_around_it(
    tmp_path: Path, key: str, line: int
) -> None:
    (tmp_path / "box.yaml").write_text(
        "site: demo\nheads:\n  - name: age\n  - name: us\n    consent: {\n      a.b: {until: 2027-01-30}}\n"
    )
    assert line_of(tmp_path / "box.yaml", key) == line


def test_a_file_larger_than_the_limit_is_not_parsed() -> None:
    with pytest.raises(YamlErrors, match="at most"):
        loads(b"#" * (MAX_BYTES + 1), Bike)


def test_a_missing_file_says_why(tmp_path: Path) -> None:
    with pytest.raises(YamlErrors, match=r"nothing.yaml:0: is unreadable \(No such file"):
        load(tmp_path / "nothing.yaml", Bike)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.text(alphabet="name: wheels[]{}-\n&*!?|>'\"#0x", max_size=120).map(str.encode)
    )
)
def test_no_bytes_crash_the_loader(data: bytes) -> None:
    with contextlib.suppress(YamlErrors):
        assert isinstance(loads(data, Bike), Bike)


class TestCredential:
    """A secret is named in the config and lies in a file that only its owner reads."""

    def test_is_read_from_the_first_folder_that_has_it(self, tmp_path: Path) -> None:
        (tmp_path / "cam1").write_text("s3cret\n")
        (tmp_path / "cam1").chmod(0o600)
        assert Credential("cam1").read([tmp_path / "none", tmp_path]) == "s3cret"

    def test_is_refused_when_others_may_read_it(self, tmp_path: Path) -> None:
        (tmp_path / "cam1").write_text("s3cret")
        (tmp_path / "cam1").chmod(0o644)
        with pytest.raises(ValueError, match="chmod 600") as caught:
            Credential("cam1").read([tmp_path])
        assert "s3cret" not in str(caught.value)

    def test_comes_from_systemd_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "cam1").write_text("from systemd")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert Credential("cam1").read([]) == "from systemd"

    def test_missing_says_where_it_was_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"'cam1' was not found in .* {tmp_path}"):
            Credential("cam1").read([tmp_path])

    @pytest.mark.parametrize("name", ["../etc/passwd", "", ".hidden"])
    def test_a_name_cannot_leave_its_folder(self, name: str) -> None:
        assert "key.credential" in "\n".join(mistakes(f"name: x\nkey: {{credential: '{name}'}}\n"))

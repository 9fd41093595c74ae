"""Tables of paths and labels: what is read, and what is refused by its file and row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from PIL import Image
from pyarrow import parquet

from stvit_cli.data.layouts import find_layout
from stvit_cli.data.table import TableImages, TableOptions, find_table_eval_images, find_table_images, find_table_test_images
from stvit_cli.errors import UserError


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (len(path.stem), 0, 0)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images, images/0.png to images/11.png."""
    for number in range(12):
        image(tmp_path / "images" / f"{number}.png")
    return tmp_path


ROWS = [(f"images/{number}.png", ("cat", "dog", "emu")[number % 3]) for number in range(12)]


def write(path: Path, rows: Any = ROWS, header: str = "path,label", delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([header, *(delimiter.join(row) for row in rows), ""]).encode(encoding))
    return path


def labels(images: TableImages) -> dict[str, Any]:
    """Return the label of each image, by the name of its file."""
    found = {}
    for index in range(len(images)):
        target = images.target(index)
        name = Path(images.path(index)).stem
        if isinstance(target, int):
            found[name] = images.class_names[target]
        else:
            found[name] = {images.class_names[label] for label in np.flatnonzero(target)}
    return found


def read(where: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    train, val = find_table_images(TableOptions(dir=where, **options))
    assert train.class_names == val.class_names
    assert train.open(0).mode == val.open(0).mode == "RGB"
    return labels(train), labels(val)


EXPECTED = {Path(path).stem: label for path, label in ROWS}


def test_of_each_class_a_part_is_held_out_whatever_the_order_of_the_rows(root: Path) -> None:
    train, val = read(write(root / "labels.csv"), val_fraction=0.25)
    assert train | val == EXPECTED
    assert sorted(val.values()) == ["cat", "dog", "emu"]
    assert read(write(root / "labels.csv", ROWS[::-1]), val_fraction=0.25)[1] == val


def test_the_images_of_a_group_are_held_out_together(root: Path) -> None:
    rows = [(path, ("cat", "dog")[number % 2]) for number, (path, _) in enumerate(ROWS)]
    train, val = find_table_images(TableOptions(dir=write(root / "labels.csv", rows), group_by=r"(\d)\.png", val_fraction=0.3))
    tens = {"0", "1", "10", "11"}
    held_out = set(labels(val))
    assert {number[-1] for number in held_out & tens}.isdisjoint({number[-1] for number in set(labels(train)) & tens})
    assert set(labels(val).values()) == {"cat", "dog"}
    assert any("groups by data.group_by" in note for note in train.notes)


@pytest.mark.parametrize(
    ("name", "header", "delimiter", "encoding"),
    [
        ("labels.csv", "Image Path;Class Name", ";", "utf-8-sig"),
        ("labels.tsv", "file_name\tlabel", "\t", "utf-8"),
        ("labels.csv", "filename,target", ",", "utf-16"),
        ("labels.csv", "path\tcategory", "\t", "utf-8"),
    ],
)
def test_delimiters_encodings_and_usual_names_of_columns(
    root: Path, name: str, header: str, delimiter: str, encoding: str
) -> None:
    train, val = read(write(root / name, header=header, delimiter=delimiter, encoding=encoding).parent)
    assert train | val == EXPECTED


def test_quotes_crlf_blank_lines_and_more_columns(root: Path) -> None:
    text = 'id,path,"label"\r\n\r\n' + "".join(f'{number},"{path}", {label} \r\n' for number, (path, label) in enumerate(ROWS))
    (root / "labels.csv").write_bytes(text.encode())
    train, val = read(root)
    assert train | val == EXPECTED


def test_backslashes_are_slashes_and_absolute_paths_stay(root: Path) -> None:
    rows = [(path.replace("/", "\\"), label) for path, label in ROWS[:6]] + [
        (str(root / path), label) for path, label in ROWS[6:]
    ]
    train, _ = find_table_images(TableOptions(dir=write(root / "labels.csv", rows)))
    assert len(train) == 9
    assert any("backslashes" in note for note in train.notes)


def test_the_split_is_that_of_a_column(root: Path) -> None:
    splits = ["train"] * 6 + ["Valid"] * 3 + ["test"] * 3
    rows = [(*row, split) for row, split in zip(ROWS, splits, strict=True)]
    train, val = find_table_images(TableOptions(dir=write(root / "labels.csv", rows, "path,label,split")))
    assert (len(train), len(val)) == (6, 3)
    assert labels(val) == dict(list(EXPECTED.items())[6:9])
    assert any("6 train, 3 val, 3 test; the evaluation is on val" in note for note in train.notes)
    with pytest.raises(UserError, match=r"labels\.csv: the split is 'vall', expected train, val or test.\n.*labels\.csv, line 3"):
        read(write(root / "labels.csv", [(*ROWS[0], "train"), (*ROWS[1], "vall")], "path,label,split"))


def test_test_rows_are_for_neither_training_nor_validation(root: Path) -> None:
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    for val in ("val", "train"):
        rows = [(*row, {"val": val}.get(split, split)) for row, split in zip(ROWS, splits, strict=True)]
        options = TableOptions(dir=write(root / "labels.csv", rows, "path,label,split"), test_split="test")
        train, held_out = find_table_images(options)
        tested = find_table_test_images(options, train.class_names, [train, held_out])
        assert sorted(labels(tested)) == ["10", "11"]
        assert len(train) + len(held_out) == 10
        assert not labels(train).keys() & labels(held_out).keys()
        assert sorted(labels(find_table_eval_images(options, class_names=train.class_names))) == sorted(labels(held_out))
    with pytest.raises(UserError, match=r"no table is named test, and no row of .*plain\.csv has the split test"):
        find_table_test_images(TableOptions(dir=write(root / "plain.csv"), test_split="test"), ("cat", "dog", "emu"), [])


def test_a_table_of_test_images_is_found_by_its_name_or_given(root: Path) -> None:
    write(root / "train.csv", ROWS[:9])
    write(root / "test.csv", ROWS[9:])
    for name in ("test", "test.csv"):
        options = TableOptions(dir=root, table="train.csv" if name == "test.csv" else None, test_split=name)
        train, val = find_table_images(options)
        assert (len(train), len(val)) == (6, 3)  # the third of each class
        assert sorted(labels(find_table_test_images(options, train.class_names, [train, val]))) == ["10", "11", "9"]
    with pytest.raises(UserError, match=r"data\.test_split: train\.csv is trained on"):
        find_table_test_images(TableOptions(dir=root, test_split="train.csv"), train.class_names, [])
    write(root / "test.csv", ROWS[7:])
    notes = find_table_test_images(options, train.class_names, [train, val]).notes
    assert sum("images are in both the training and the test table" in note for note in notes) >= 1


def test_the_split_is_that_of_the_files(root: Path) -> None:
    write(root / "train.csv", ROWS[:9])
    write(root / "val.csv", ROWS[9:])
    assert [len(part) for part in read(root)] == [9, 3]
    write(root / "mine.csv", ROWS[:6])
    assert [len(part) for part in read(root, table="mine.csv", val_table="train.csv")] == [6, 9]


def test_image_folders_of_hugging_face(root: Path) -> None:
    """metadata.jsonl beside the images of each split, with paths below its own folder."""
    for split, rows in (("train", ROWS[:9]), ("validation", ROWS[9:])):
        for path, _ in rows:
            image(root / split / path)
        lines = [json.dumps({"file_name": path, "label": label, "caption": ["a"]}) for path, label in rows]
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    train, val = read(root)
    assert (train | val, len(val)) == (EXPECTED, 3)


def encoded(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (color, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("column", ["struct", "bytes"])
def test_parquet_of_hugging_face_with_embedded_images_and_class_labels(tmp_path: Path, column: str) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for shard in range(2):
        images: list[Any] = [{"bytes": encoded(10 * shard + row), "path": None} for row in range(4)]
        table = arrow.table(
            {"image": images if column == "struct" else [each["bytes"] for each in images], "label": [0, 1, 1, 0]}
        )
        (tmp_path / "data").mkdir(exist_ok=True)
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / f"data/train-{shard:05d}-of-00002.parquet")
    train, val = find_table_images(TableOptions(dir=tmp_path, val_fraction=0.25))
    assert train.class_names == ("dog", "cat")
    seen = {}
    for images_of in (train, val):
        for index in range(len(images_of)):
            red = images_of.open(index).getpixel((0, 0))
            assert isinstance(red, tuple)
            seen[int(red[0])] = images_of.target(index)
    assert seen == {0: 0, 1: 1, 2: 1, 3: 0, 10: 0, 11: 1, 12: 1, 13: 0}
    assert len(val) == 2
    assert "train-00000-of-00002.parquet:" in train.path(0)


def test_parquet_with_paths_and_a_row_whose_image_is_missing(root: Path) -> None:
    parquet.write_table(
        arrow.table({"path": [path for path, _ in ROWS], "label": [label for _, label in ROWS]}), root / "a.parquet"
    )
    train, val = read(root)
    assert train | val == EXPECTED
    (root / "a.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet"):
        read(root)


def test_integers_are_classes_in_their_order_and_take_names_from_a_file(root: Path) -> None:
    rows = [(path, str(2 * (number % 3) + 8) + ".0" * (number == 4)) for number, (path, _) in enumerate(ROWS)]
    train, _ = find_table_images(TableOptions(dir=write(root / "labels.csv", rows)))
    assert train.class_names == ("8", "10", "12")
    rows = [(path, str(number % 3)) for number, (path, _) in enumerate(ROWS)]
    (root / "names.txt").write_text("cat\ndog\nemu\nfox\n")
    options = TableOptions(dir=write(root / "labels.csv", rows), class_names_file="names.txt")
    train, val = find_table_images(options)
    assert labels(train) | labels(val) == EXPECTED
    assert "There are no training images of fox." in train.notes
    assert labels(find_table_eval_images(options, class_names=["dog", "emu", "cat"], all_images=True)) == EXPECTED


def test_the_names_file_orders_classes_and_refuses_others(root: Path) -> None:
    (root / "names.txt").write_text("0 emu\n1 dog\n2 cat\n")
    table = write(root / "labels.csv")
    assert find_table_images(TableOptions(dir=table, class_names_file="names.txt"))[0].class_names == ("emu", "dog", "cat")
    (root / "names.txt").write_text("emu\ndog\ncot\n")
    with pytest.raises(UserError, match=r"4 rows of .*: 'cat' is no class of names\.txt\. Did you mean 'cot'"):
        read(table, class_names_file="names.txt")


SEVERAL = [["cat"], ["cat", "dog"], [], ["sea lion"], ["dog", "sea lion"], ["cat"]] * 2
EXPECTED_SEVERAL = {str(number): set(found) for number, found in enumerate(SEVERAL)}


@pytest.mark.parametrize("form", [";", "|", ", ", "json", "python", "columns", "true and false"])
def test_several_labels_in_every_form(root: Path, form: str) -> None:
    header, classes = "path\tlabels", ("cat", "dog", "sea lion")
    cells = [form.join(found) for found in SEVERAL]
    if form in ("json", "python"):
        cells = [json.dumps(found) if form == "json" else str(found) for found in SEVERAL]
    if form in ("columns", "true and false"):
        header = "path\t" + "\t".join(classes)
        words = ("0", "1") if form == "columns" else ("False", "True")
        cells = ["\t".join(words[name in found] for name in classes) for found in SEVERAL]
    rows = [(path, cell) for (path, _), cell in zip(ROWS, cells, strict=True)]
    text = "\n".join([header, *("\t".join(row) for row in rows)]).replace('"', '""' if form == "json" else '"')
    if form == "json":
        text = "\n".join(
            [header, *(f'{path}\t"{cell}"' for path, cell in (line.split("\t", 1) for line in text.split("\n")[1:]))]
        )
    (root / "labels.tsv").write_text(text)
    train, val = read(root, multi_label=True)
    assert train | val == EXPECTED_SEVERAL
    assert 1 <= len(val) <= 4


@pytest.mark.parametrize("separator", [";", "|", ", "])
def test_cells_that_look_like_several_labels_ask_for_a_key(root: Path, separator: str) -> None:
    cells = ["cat", "dog", f"cat{separator}dog"] * 4
    rows = [f"{path}\t{cell}" for (path, _), cell in zip(ROWS, cells, strict=True)]
    (root / "labels.tsv").write_text("\n".join(["path\tlabel", *rows]))
    with pytest.raises(UserError, match="looks like several labels: cat, dog are in other rows too") as refused:
        read(root)
    assert "labels.tsv, line 4" in str(refused.value)
    assert "data.multi_label=true" in str(refused.value)
    train, val = read(root, multi_label=False)
    assert set((train | val).values()) == {"cat", "dog", f"cat{separator}dog"}
    rows = [f"{path}\t{('Paris, France', 'Lyon, France', 'Rome, Italy')[i % 3]}" for i, (path, _) in enumerate(ROWS)]
    (root / "labels.tsv").write_text("\n".join(["path\tlabel", *rows]))
    assert set(read(root)[0].values()) == {"Paris, France", "Lyon, France", "Rome, Italy"}


def test_a_separator_of_white_space_is_found_last_and_can_be_set(root: Path) -> None:
    rows = [(path, cell) for (path, _), cell in zip(ROWS, ["clear road", "haze", "", "road"] * 3, strict=True)]
    table = write(root / "labels.csv", rows)
    train, _ = find_table_images(TableOptions(dir=table, multi_label=True))
    assert train.class_names == ("clear", "haze", "road")
    assert any("separated by white space" in note for note in train.notes)
    train, _ = find_table_images(TableOptions(dir=table, multi_label=True, label_separator="/"))
    assert train.class_names == ("clear road", "haze", "road")


def test_columns_of_classes_can_be_named_and_are_checked(root: Path) -> None:
    rows = [(path, str(number % 2), str(number % 3 == 0)[0], "1") for number, (path, _) in enumerate(ROWS)]
    table = write(root / "labels.csv", rows, "path,odd,third,seen")
    with pytest.raises(UserError, match=r"column 'third' has F, expected 0 or 1"):
        read(table, multi_label=True, label_column=("odd", "third"))
    rows = [(path, a, str(int(b == "T")), c) for path, a, b, c in rows]
    train, _ = find_table_images(
        TableOptions(dir=write(table, rows, "path,odd,third,seen"), multi_label=True, label_column=("odd", "third"))
    )
    assert train.class_names == ("odd", "third")
    with pytest.raises(UserError, match=r"read with data\.multi_label=true"):
        read(table)


def test_labels_of_one_image_in_several_rows_are_united_or_must_agree(root: Path) -> None:
    rows = [*ROWS, ("images/0.png", "dog"), ("images/1.png", "dog")]
    table = write(root / "labels.csv", rows)
    with pytest.raises(UserError, match=r"0\.png is labelled 'cat' and 'dog'.*multi_label=true\.\n.*line 2\n.*line 14"):
        read(table)
    train, val = read(table, multi_label=True)
    both = train | val
    assert (both["0"], both["1"]) == ({"cat", "dog"}, {"dog"})
    train_images, _ = find_table_images(TableOptions(dir=write(table, [*ROWS, ROWS[1]])))
    assert any("1 rows repeat an image (1.png); the first of each is used" in note for note in train_images.notes)


def test_an_image_in_both_tables_is_said(root: Path) -> None:
    write(root / "train.csv", ROWS[:9])
    write(root / "val.csv", ROWS[8:])
    train, _ = find_table_images(TableOptions(dir=root))
    assert any("1 images are in both" in note for note in train.notes)


def test_the_data_may_move_and_any_change_is_seen(root: Path, tmp_path: Path) -> None:
    table = write(root / "labels.csv")
    first = find_table_images(TableOptions(dir=table))[0].fingerprint()
    moved = tmp_path / "moved"
    moved.mkdir()
    (root / "images").rename(moved / "images")
    table.rename(moved / "labels.csv")
    assert find_table_images(TableOptions(dir=moved))[0].fingerprint() == first
    swapped = [(path, label) for (path, _), (_, label) in zip(ROWS, [*ROWS[1:], ROWS[0]], strict=True)]
    assert find_table_images(TableOptions(dir=write(moved / "labels.csv", swapped)))[0].fingerprint() != first


def test_evaluation_takes_the_models_classes_and_refuses_others(root: Path) -> None:
    table = write(root / "labels.csv", [row for row in ROWS if row[1] != "emu"])
    images = find_table_eval_images(TableOptions(dir=table), class_names=["emu", "dog", "cat"], all_images=True)
    assert labels(images) == {name: label for name, label in EXPECTED.items() if label != "emu"}
    with pytest.raises(UserError, match=r"'dog' is no class of the model"):
        find_table_eval_images(TableOptions(dir=table), class_names=["emu", "cat"])


@pytest.mark.parametrize("header", ["images/0.png,cat", "where,label"])
def test_a_table_without_a_header_or_a_usual_name_of_the_path_is_read(root: Path, header: str) -> None:
    table = write(root / "labels.csv", ROWS[header.startswith("images") :], header)
    train, val = read(table)
    assert {**train, **val} == EXPECTED
    notes = find_table_images(TableOptions(dir=table))[0].notes
    assert ("columns are called path, label" in " ".join(notes)) == header.startswith("images")


@pytest.mark.parametrize("ending", [".png", ""])
def test_bare_names_are_found_in_the_only_folder_that_has_them(root: Path, ending: str) -> None:
    image(root / "other" / "0.png")
    table = write(root / "labels.csv", [(Path(path).stem + ending, label) for path, label in ROWS])
    images = find_table_images(TableOptions(dir=table))[0]
    assert {**read(table)[0], **read(table)[1]} == EXPECTED
    assert "its paths are below images/ (data.image_dir)" in " ".join(images.notes)
    for number in range(12):
        image(root / "small" / f"{number}.png")
    with pytest.raises(UserError, match=r"Which one\? Add one of:\n  data\.image_dir=images\n  data\.image_dir=small"):
        read(table)
    assert {**read(table, image_dir="small")[0], **read(table, image_dir="small")[1]} == EXPECTED


def one_row(**changed: str) -> list[tuple[str, str]]:
    return [(changed.get("path", "images/0.png"), changed.get("label", "cat")), *ROWS[1:]]


REFUSED: dict[str, tuple[Any, str, str]] = {
    "an empty label": (one_row(label=""), "path,label", r"A row of .*labels\.csv: the label is empty.*\n.*labels\.csv, line 2"),
    "an empty path": (one_row(path=""), "path,label", r"the path is empty"),
    "a missing file": (one_row(path="images/00.png"), "path,label", r"there is no file .*images/00\.png\..*\n.*line 2"),
    "a missing ending": (one_row(path="images/0"), "path,label", r"there is no file .*Did you mean '0\.png'"),
    "another machine's paths": ([("C:\\a\\1.png", "cat"), ("C:\\a\\2.png", "dog")], "path,label", r"of another machine"),
    "web addresses": ([("https://a/1.png", "cat"), ROWS[1]], "path,label", r"a web address"),
    "a row too short": ([*ROWS, ("images/0.png",)], "path,label", r"line 14: 1 cells, but the first line names 2 columns"),
    "a row too long": ([*ROWS, ("a", "b", "c")], "path,label", r"line 14: 3 cells"),
    "unusual names": (ROWS, "where,what", r"Its columns: where, what\.\nSet data\.label_column=NAME"),
    "no path": (
        [(str(row), "cat" if row % 2 else "dog") for row in range(12)],
        "where,label",
        r"where, label\.\nSet data\.path_column=NAME",
    ),
    "no label": (ROWS, "path,what", r"Set data\.label_column=NAME"),
    "two label columns": (
        [(*row, "1") for row in ROWS],
        "path,label,class",
        r"label, class could hold the label.*Set data\.label_column",
    ),
    "a column twice": (ROWS, "path,path", r"names the column 'path' twice"),
    "no rows": ([], "path,label", r"has no rows"),
    "one class": ([(path, "cat") for path, _ in ROWS], "path,label", r"only one class, 'cat'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fault_is_refused_by_file_and_row(root: Path, case: str) -> None:
    rows, header, said = REFUSED[case]
    table = write(root / "labels.csv", rows, header)
    with pytest.raises(UserError, match=said) as refused:
        read(table)
    assert "labels.csv" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 6


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"path,label\n1.png,caf\xe9\n", r"a\.csv, line 2: this is not UTF-8"),
        ("a.csv", b'path,label\n"1.png,' + b"x" * 200_000, r"a\.csv, line 2: cannot be parsed"),
        ("a.jsonl", b'{"file_name": "1.png"}\n{"file', r"a\.jsonl, line 2: this is not JSON"),
        ("a.jsonl", b"[1]", r"a\.jsonl, line 1: expected a JSON object"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1: this is not JSON"),
        ("a.xlsx", b"PK", r"has no table"),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read(tmp_path)


def test_folders_without_a_table_or_with_several_ask_for_one(root: Path) -> None:
    with pytest.raises(UserError, match=r"has no table"):
        read(root)
    with pytest.raises(UserError, match=r"data\.table: there is no file .*Did you mean"):
        read(write(root / "labels.csv").parent, table="lables.csv")
    write(root / "others.csv")
    with pytest.raises(UserError, match=r"Which one.*\n  data\.table=labels\.csv\n  data\.table=others\.csv"):
        read(root)
    with pytest.raises(UserError, match=r"data\.dir: there is no file or folder"):
        read(root / "labls.csv")
    with pytest.raises(UserError, match=r"data\.dir is not set"):
        find_table_images(TableOptions(dir=None))


def test_parquet_without_pyarrow_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'stvit\[tables\]'"):
        read(root)


def test_ids_get_the_endings_of_their_files(root: Path) -> None:
    table = write(root / "labels.csv", [(Path(path).stem, label) for path, label in ROWS], "id,breed")
    options: dict[str, Any] = {"path_column": "id", "label_column": "breed"}
    assert {**read(table, **options)[0], **read(table, **options)[1]} == EXPECTED
    assert find_layout(root, {"data.kind": "table"}).kind == find_layout(table).kind == "table"

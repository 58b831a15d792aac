"""Models that are used: predictions, evaluations, and what cannot be loaded or read."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from support import save_image

from disam_jax.dg import load_model
from disam_jax.dg.cli import main as cli
from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.tensors import Tensors, read_metadata, write_tensors
from disam_jax.dg.saving import files
from disam_jax.dg.saving.examples import labelled, splits_of, unlabelled
from disam_jax.dg.saving.predict import by_batches, evaluate
from disam_jax.dg.testing import save_toy_model, toy

NAME = "ERM-sketch-seed0-candidate0-last"


@pytest.fixture(scope="module")
def of_arrays(tmp_path_factory):
    """A model of two numbers, and two classes cat and dog."""
    return save_toy_model(tmp_path_factory.mktemp("arrays"))


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    """A model of images of 8 x 8 pixels."""
    return save_toy_model(tmp_path_factory.mktemp("images"), images=True)


@pytest.fixture
def pictures(tmp_path):
    """Images of two classes, and one more in a folder of its own."""
    for number, name in enumerate(("cat/2.png", "cat/1.jpg", "dog/a/3.png")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(path, seed=number)
    return tmp_path / "pictures"


@pytest.fixture
def copied(of_arrays, tmp_path):
    """A copy of a model to be damaged."""
    return shutil.copytree(of_arrays.parent, tmp_path / "models") / f"{NAME}.json"


def refused(capsys, *arguments):
    """The one line that says why."""
    assert cli.main([*map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


# What it says.


def test_every_image_of_a_folder_has_its_row(of_images, pictures, tmp_path, capsys):
    out = tmp_path / "new" / "predictions.csv"
    assert cli.main(["predict", str(of_images), "--data", str(pictures), "--out", str(out), "--batch", "2"]) == 0
    assert "3 examples: " in capsys.readouterr().out
    head, *rows = rows_of(out)
    assert head == ["file", "class", "p_cat", "p_dog"]
    assert [row[0] for row in rows] == ["cat/1.jpg", "cat/2.png", "dog/a/3.png"]
    model = load_model(of_images)
    pixels = np.concatenate([block.x[block.valid] for block in unlabelled(str(pictures), model).blocks(2)])
    wanted = np.asarray(jax.nn.softmax(model(pixels)))
    np.testing.assert_allclose(np.array([row[2:] for row in rows], float), wanted, rtol=1e-4)
    assert [row[1] for row in rows] == [model.classes[place] for place in wanted.argmax(1)]
    # No class folders are needed, and the order of the rows is that of the names.
    assert cli.main(["predict", str(of_images), "--data", str(pictures / "cat"), "--out", str(out)]) == 0
    assert rows_of(out)[1:] == [[row[0].removeprefix("cat/"), *row[1:]] for row in rows[:2]]


def test_rows_of_arrays_are_numbered(of_arrays, tmp_path):
    data, out = tmp_path / "new.npz", tmp_path / "predictions.csv"
    np.savez(data, x=toy().inputs)
    assert cli.main(["predict", str(of_arrays), "--data", str(data), "--out", str(out), "--batch", "7"]) == 0
    rows = rows_of(out)[1:]
    assert [row[0] for row in rows] == [str(number) for number in range(24)]
    assert [row[1] for row in rows] == [("cat", "dog")[k] for k in load_model(of_arrays)(toy().inputs).argmax(1)]


def test_batches_of_any_size_say_the_same_and_go_through_one_program(of_arrays, tmp_path):
    np.savez(tmp_path / "new.npz", x=toy().inputs)
    model = load_model(of_arrays)
    examples = unlabelled(str(tmp_path / "new.npz"), model)
    seen = []
    program = lambda block: (seen.append(block.x.shape), (model(block.x),))[1]
    for batch in (1, 7, 24, 1000):
        seen.clear()
        found = np.concatenate([each for (each,) in by_batches(program, examples, batch)])
        np.testing.assert_allclose(found, model(toy().inputs), rtol=1e-5, atol=1e-6)
        assert {*seen} == {(min(batch, 24), 2)}


def test_a_domain_is_evaluated_by_its_labels(of_arrays, tmp_path, capsys):
    model, data, out = load_model(of_arrays), toy(), tmp_path / "found.json"
    domain = np.array(data.domain_names)[data.domain_ids]
    arrays = {"x": data.inputs, "y": np.array(data.class_names)[data.labels], "domain": domain}
    np.savez(tmp_path / "toy.npz", **arrays)
    command = ["evaluate", str(of_arrays), "--data", str(tmp_path / "toy.npz"), "--out", str(out)]
    assert cli.main([*command, "--domain", "photo"]) == 0
    found = json.loads(out.read_text())
    assert [*found["measured"]] == ["all"]
    logits = np.asarray(model(data.inputs[:8]), np.float64)
    right = logits.argmax(1) == data.labels[:8]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), data.labels[:8]]
    numbers = found["measured"]["all"]
    assert numbers["examples"] == 8
    assert numbers["accuracy"] == right.mean()
    assert numbers["accuracy_error"] == pytest.approx(right.std(ddof=1) / 8**0.5)
    assert numbers["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert numbers["loss_error"] == pytest.approx(losses.std(ddof=1) / 8**0.5, rel=1e-5)
    # Of the domain that was held out, the splits are known by its seed.
    assert cli.main([*command, "--domain", "sketch"]) == 0
    assert [*json.loads(out.read_text())["measured"]] == ["all", "training", "validation"]
    assert "the tables of its sweep report the accuracy on the training split" in capsys.readouterr().out


def test_splits_are_those_of_the_held_out_domain_alone(of_arrays, tmp_path):
    model, data = load_model(of_arrays), toy()
    rows = data.domain_ids == 1

    def examples(labels):
        np.savez(tmp_path / "sketch.npz", x=data.inputs[rows], y=labels)
        return labelled(str(tmp_path / "sketch.npz"), None, model)

    found = splits_of(examples(data.labels[rows]), model)
    assert sorted(np.concatenate([*found.values()]).tolist()) == [*range(8)]
    assert splits_of(examples(1 - data.labels[rows]), model) == {}
    model.record["data"]["of_target"]["validation"] = [2, 5]
    assert splits_of(examples(data.labels[rows]), model)["validation"].tolist() == [2, 5]


def test_a_new_domain_may_lack_a_class_and_labels_are_those_of_the_model(of_images, pictures):
    model = load_model(of_images)
    shutil.rmtree(pictures / "cat")
    assert labelled(str(pictures), None, model).labels.tolist() == [1]
    assert evaluate(model, labelled(str(pictures), None, model))["all"].examples == 1


def test_the_module_has_the_parameters_and_gives_the_logits(of_arrays):
    model, inputs = load_model(of_arrays), toy().inputs
    np.testing.assert_allclose(model.module(inputs), model(inputs), rtol=1e-5, atol=1e-6)
    kernel = nnx.to_pure_dict(nnx.state(model.module, nnx.Param))["network"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, Tensors([of_arrays.with_suffix(".safetensors")])["network.fc.kernel"])
    assert (
        model.path
        == load_model(of_arrays.with_suffix(".safetensors")).path
        == load_model(of_arrays.with_suffix("")).path
    )


# Files that are no model.


def edit(change):
    """A record with a change."""

    def damage(path):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def tensors(change):
    """Tensors with a change, said to be those of the record."""

    def damage(path):
        own = path.with_suffix(".safetensors")
        arrays = dict(Tensors([own]))
        change(arrays)
        digest = files.digest_of(arrays)
        write_tensors(own, arrays, {**read_metadata(own), files.DIGEST: digest})
        edit(lambda record: record["tensors"].update(own=digest))(path)

    return damage


def cut(path):
    own = path.with_suffix(".safetensors")
    own.write_bytes(own.read_bytes()[:-4])


def flip(path):
    own = path.with_suffix(".safetensors")
    content = bytearray(own.read_bytes())
    content[-1] ^= 1
    own.write_bytes(content)


DAMAGED = {
    "no field": (edit(lambda record: record.pop("classes")), "lacks the entry 'classes'"),
    "no field inside": (edit(lambda record: record["inputs"].pop("shape")), "lacks the entry 'inputs.shape'"),
    "another type": (edit(lambda record: record.update(network=[])), "network must be an object {...}, got []"),
    "later": (edit(lambda record: record.update(format=2)), "was written in format 2 by disam-jax 0.1.0, this version"),
    "foreign": (edit(lambda record: record.pop("writer")), "is not a model of disam-jax"),
    "no JSON": (lambda path: path.write_text("{"), "is not JSON"),
    "unknown network": (
        edit(lambda record: record["network"].update(model="perceptron")),
        "unknown model 'perceptron'",
    ),
    "no option": (edit(lambda record: record["network"].pop("options")), "cannot be built (KeyError: 'options')"),
    "hash": (edit(lambda record: record["tensors"].update(own="../x")), "tensors.own must be a SHA-256"),
    "no tensors": (lambda path: path.with_suffix(".safetensors").unlink(), "copy it into the same folder"),
    "no record": (lambda path: path.unlink(), "is not there, but belongs to a model"),
    "cut": (cut, "truncated"),
    "flipped": (flip, "were not saved together, or a file is damaged"),
    "fewer": (
        tensors(lambda arrays: arrays.pop("network.fc.bias")),
        "of another network than its record describes, mlp",
    ),
    "more": (tensors(lambda arrays: arrays.update(extra=np.zeros(1, np.float32))), "it has, for no variable, extra"),
    "shape": (
        edit(lambda record: record["network"].update(options={"hidden": [5]})),
        "network.fc.kernel is [4, 2] and must be [5, 2]",
    ),
    "frozen": (
        edit(lambda record: record["tensors"].update(frozen="ab" * 32)),
        "frozen-abababababababab.safetensors is not there",
    ),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_model_that_is_damaged_is_refused(copied, capsys, tmp_path, fault):
    damage, said = DAMAGED[fault]
    damage(copied)
    with pytest.raises(InputError) as caught:
        load_model(copied.with_suffix(".safetensors"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_of_no_model_says_what_to_give(tmp_path, capsys):
    message = refused(capsys, "predict", tmp_path / "nothing", "--data", tmp_path)
    assert "is not a model: give NAME.json or NAME.safetensors of a folder models that --save wrote" in message


# Data that the model does not take.


def save(**arrays):
    def write(folder):
        np.savez(folder / "new.npz", **arrays)
        return folder / "new.npz"

    return write


def empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def unreadable(folder):
    (folder / "pictures" / "cat" / "0.jpg").write_bytes(b"no image")
    return folder / "pictures"


def unknown_class(folder):
    (folder / "pictures" / "dog").rename(folder / "pictures" / "dogs")
    return folder / "pictures"


def of_domains(folder):
    (folder / "set").mkdir()
    (folder / "pictures").rename(folder / "set" / "photo")
    return folder / "set"


PIXELS = np.zeros((4, 8, 8, 3), np.uint8)
WRONG = {
    "fewer numbers": ("arrays", "predict", save(x=np.ones((4, 3))), "x must be [N, 2], got [4, 3]: the model takes 2"),
    "images for numbers": ("arrays", "predict", save(x=PIXELS), "must be floating point, as the model was trained on"),
    "a folder for numbers": ("arrays", "predict", lambda folder: folder / "pictures", "the model takes arrays of 2"),
    "not finite": ("arrays", "predict", save(x=np.full((4, 2), np.nan)), "x is not finite in 4 rows"),
    "another size": ("images", "predict", save(x=PIXELS[:, :4]), "must be images of 8 x 8 x 3, got [4, 4, 8, 3]"),
    "numbers for images": ("images", "predict", save(x=np.ones((4, 8, 8, 3))), "must be uint8, images of 0 to 255"),
    "grey": ("images", "predict", save(x=PIXELS[..., :1]), "must be images [N, H, W, 3], got [4, 8, 8, 1]"),
    "no x": ("images", "predict", save(y=np.ones(4)), "has no array 'x', only y"),
    "an empty folder": ("images", "predict", empty, "has no image"),
    "an unreadable image": ("images", "predict", unreadable, "cat/0.jpg"),
    "nothing there": (
        "images",
        "predict",
        lambda folder: folder / "x",
        "is neither a folder of images nor an .npz file",
    ),
    "an unreadable labelled image": ("images", "evaluate", unreadable, "cat/0.jpg"),
    "an unknown class": (
        "images",
        "evaluate",
        unknown_class,
        "the model does not know the class dogs: it has cat, dog; is 'dog' meant?",
    ),
    "no classes": ("images", "evaluate", empty, "has no class folders (expected DIR/class/*.jpg)"),
    "domains": ("images", "evaluate", of_domains, "is --domain photo meant?"),
    "an unknown label": (
        "arrays",
        "evaluate",
        save(x=np.ones((2, 2)), y=["cat", "cow"]),
        "does not know the class cow",
    ),
    "a label too many": ("arrays", "evaluate", save(x=np.ones((2, 2)), y=[0, 2]), "label 2 in row 1 of y"),
    "no labels": ("arrays", "evaluate", save(x=np.ones((2, 2))), "has no array 'y' of labels"),
    "labels of others": ("arrays", "evaluate", save(x=np.ones((2, 2)), y=[0]), "y must have shape [2] like x, got [1]"),
    "several domains": (
        "arrays",
        "evaluate",
        save(x=np.ones((2, 2)), y=[0, 1], domain=["a", "b"]),
        "it has several domains: write --domain and one of a, b",
    ),
    "other inputs": (
        "arrays",
        "evaluate",
        lambda _: "digits",
        "digits has no domain sketch: write --domain and",
    ),
    "an unknown data set": ("arrays", "evaluate", lambda _: "moons", "moons is neither a folder nor an .npz file"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_data_that_a_model_does_not_take_are_refused(of_arrays, of_images, pictures, tmp_path, capsys, fault):
    kind, command, make, said = WRONG[fault]
    model = {"arrays": of_arrays, "images": of_images}[kind]
    out = tmp_path / "out.csv"
    assert said in refused(capsys, command, model, "--data", make(tmp_path), "--out", out)
    assert not out.exists()
    assert not [*tmp_path.glob(".unfinished*")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", "0"), "--batch must be at least 1, got 0"),
        (("--out", "."), "--out . is a folder: give the path of a file"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_options_that_cannot_be_are_refused(of_arrays, capsys, command, arguments, said):
    assert said in refused(capsys, command, of_arrays, "--data", "x.npz", *arguments)


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ((2, 8, 8, 1), np.uint8, "must be images with 3 channels, got [2, 8, 8, 1]"),
        ((2, 4, 8, 3), np.uint8, "must be images of 8 x 8 x 3, got [2, 4, 8, 3]"),
        ((8, 8, 3), np.uint8, "must be images of 8 x 8 x 3, got [8, 8, 3]"),
        ((2, 8, 8, 3), np.float32, "must be uint8, images of 0 to 255, as the model was trained on, got float32"),
    ],
)
def test_inputs_of_a_function_are_checked(of_images, shape, dtype, said):
    with pytest.raises(InputError, match="inputs must be") as caught:
        load_model(of_images)(np.zeros(shape, dtype))
    assert said in str(caught.value)

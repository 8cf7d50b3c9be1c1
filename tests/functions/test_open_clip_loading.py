"""Where `open-clip` takes its models from, what it refuses to load, and the messages."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg import errors
from embedreg.declaration import codec
from embedreg.functions.open_clip import OpenClipEmbeddings
from tests.hub_server import COMMIT, hub
from tests.tiny_clip import CONFIG, PREPROCESS, pictures

LAION = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@pytest.fixture(autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


def create(**config: Any) -> OpenClipEmbeddings:
    """Create the function on the CPU."""
    return OpenClipEmbeddings.create(**{"device": "cpu", **config})


def stored(*, reset: bool = True, **model: Any) -> Any:
    """Rebuild the function from a stored declaration that is not vouched for; `reset` takes grants back."""
    if reset:
        embedreg.get_registry().reset()
    entry = {"name": "open-clip", "model": model, "source_column": "image", "vector_column": "vector"}
    return embedreg.get_registry().parse_functions({codec.KEY: json.dumps([entry])})["vector"].function


@pytest.fixture(scope="module")
def weights(tiny_clip: Path) -> dict[str, Any]:
    """The tiny model's weights."""
    from safetensors.torch import load_file

    return load_file(tiny_clip / "open_clip_model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder that has everything but weights."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}))
    return made


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"name": "ViT-B32"}, "open_clip has no model 'ViT-B32'", "did you mean 'ViT-B-32'?"),
        ({"name": "../../etc/passwd"}, "open_clip has no model", "'hf-hub:owner/model'"),
        (
            {"pretrained": "laion2b_s34b_b79"},
            "no weights 'laion2b_s34b_b79' for 'ViT-B-32'",
            "did you mean 'laion2b_s34b_b79k'",
        ),
        ({"pretrained": "weights.pt"}, "the weights file 'weights.pt' does not exist", "a checkpoint's path"),
        ({"pretrained": "/nowhere/weights.pt"}, "file '/nowhere/weights.pt' does not exist", "a checkpoint's path"),
        ({"pretrained": None}, "without pretrained weights would return random vectors", "pretrained="),
        ({"name": "local-dir:/nowhere"}, "'/nowhere' is not an open_clip model", "put its configuration there"),
        ({"name": "hf-hub:no_owner"}, "invalid model name 'hf-hub:no_owner'", "name='hf-hub:owner/model'"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(config: dict[str, Any], message: str, hint: str) -> None:
    """A wrong model, tag, file or folder is distinguished from the others, with the closest name there is."""
    with pytest.raises((errors.ModelNotFoundError, errors.ConfigError)) as caught:
        create(**config).compute_query_embeddings("x")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_relative_path_is_kept_as_an_absolute_one(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A declaration must mean the same from any other folder; a tag stays a tag, whatever files are there."""
    shutil.copytree(tiny_clip, tmp_path / "clip")
    (tmp_path / "own.pt").touch()
    (tmp_path / "openai").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("local-dir:clip", "local-dir:./clip"):
        function = create(name=name)
        assert function.name == f"local-dir:{tmp_path / 'clip'}"
        assert function.compute_query_embeddings("a red circle").shape == (1, 48)
    assert create(pretrained="own.pt").pretrained == str(tmp_path / "own.pt")
    assert create(pretrained="openai").pretrained == "openai"


def test_no_hub_is_known_at_once() -> None:
    """Offline, the default model reports that it was not found here and that the hub can't be reached."""
    with pytest.raises(
        errors.ModelNotFoundError, match=r"was not found locally, and the hub can't be reached"
    ) as caught:
        create().compute_query_embeddings("x")
    assert "connect once so that it can be downloaded, or use local weights" in str(caught.value)
    assert "pretrained='/path/to/open_clip_model.safetensors'" in str(caught.value)
    with pytest.raises(errors.ModelNotFoundError, match=r"hf-hub:me/clip.*can't be reached"):
        create(name="hf-hub:me/clip").ndims()
    assert create(name="hf-hub:me/clip").cache_key() is None


# -- the hub -----------------------------------------------------------------------------------------------------------

FETCH = """
import json, sys
from embedreg.runtime.image import clip_files
for name, pretrained in json.loads(sys.argv[1]):
    try:
        found = clip_files.resolve(name, pretrained, allow_local=False, safe_only=len(sys.argv) > 2)
        print(json.dumps({"weights": str(found.weights), "folder": str(found.folder), "origin": found.origin}))
    except clip_files.ModelNotFoundError as exc:
        print(json.dumps({"error": str(exc)}))
"""


def fetched(run: Callable[..., str], *names: tuple[str, str], safe: bool = False, **options: Any) -> list[Any]:
    """Return what a new process finds for models, by name and tag."""
    made = run(FETCH, json.dumps(names), *(["safe"] if safe else []), **options)
    return [json.loads(line) for line in made.splitlines()]


def test_the_hub_gives_one_file_of_weights(tiny_clip: Path, tmp_path: Path, run_python: Callable[..., str]) -> None:
    """By a tag its weights alone; by a repository's name its configuration too; the next time no hub is asked."""
    cache = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for repository in (LAION, "me/clip"):
        made = Path(shutil.copytree(tiny_clip, tmp_path / "hub" / repository))
        for other in ("open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin", "evil.py", "vocab.json"):
            (made / other).write_text("{}")
    names = (("ViT-B-32", "laion2b_s34b_b79k", LAION), ("hf-hub:me/clip", "", "me/clip"))
    with hub(tmp_path / "hub") as running:
        asked, env = running.asked, {"HF_ENDPOINT": running.address, "HF_HUB_OFFLINE": "0", **cache}
        *all_found, told = fetched(run_python, *(each[:2] for each in names), ("hf-hub:me/none", ""), env=env)
        assert "the hub has no such model" in told["error"]
        for (name, _, repository), found in zip(names, all_found, strict=True):
            assert (found["origin"], Path(found["weights"]).name) == ("hub", "open_clip_model.safetensors")
            assert (found["folder"] == "None") is (name == "ViT-B-32")
            snapshot = tmp_path / "cache" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
            came = {path.name for path in snapshot.iterdir()}
            whole = {"open_clip_config.json", "vocab.json"} if repository == "me/clip" else set()
            assert came == {"open_clip_model.safetensors"} | whole
        asked.clear()
        again = fetched(run_python, *(each[:2] for each in names), env=env)
        assert [each["origin"] for each in again] == ["hub-cache", "hub-cache"]
        assert asked == []
    offline, local = run_python(
        "import embedreg, sys\n"
        "for name in sys.argv[1:]:\n"
        "    function = embedreg.get('open-clip').create(name=name, device='cpu')\n"
        "    print(function.ndims(), function.compute_query_embeddings('a red ring')[0].tolist())",
        "hf-hub:me/clip",
        f"local-dir:{tiny_clip}",
        env={**cache, "HF_HUB_OFFLINE": "1"},
    ).splitlines()
    assert offline == local


def test_metadata_gets_safetensors_only(tiny_clip: Path, tmp_path: Path, run_python: Callable[..., str]) -> None:
    """A repository that stored metadata names must not have pickled weights; the user's own code may name one."""
    repository = tmp_path / "hub" / "me" / "pickled"
    repository.mkdir(parents=True)
    shutil.copy(tiny_clip / "open_clip_config.json", repository)
    (repository / "open_clip_pytorch_model.bin").write_bytes(b"weights")
    with hub(tmp_path / "hub") as running:
        env = {"HF_ENDPOINT": running.address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "cache")}
        [found] = fetched(run_python, ("hf-hub:me/pickled", ""), safe=True, env=env)
        told = found["error"]
        assert "has no open_clip_model.safetensors" in told
        assert "other formats can run code" in told
        [found] = fetched(run_python, ("hf-hub:me/pickled", ""), env=env)
        assert found["origin"] == "hub"


# -- trust -------------------------------------------------------------------------------------------------------------


def test_metadata_reads_no_local_file_unasked(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored folder or checkpoint is refused with the grant to paste, and a plain name never looked up here."""
    name = f"local-dir:{tiny_clip}"
    for model in ({"name": name}, {"pretrained": str(tiny_clip / "open_clip_model.safetensors")}):
        with pytest.raises(errors.UntrustedError, match=r"embedreg\.trust\(paths="):
            stored(**model)
    embedreg.get_registry().reset()
    with embedreg.trust(paths=[tiny_clip]):
        function = stored(reset=False, name=name)
        assert function.compute_query_embeddings("a red circle").shape == (1, 48)
    with pytest.raises(errors.UntrustedError, match="has not been granted"):  # the grant has ended
        function.compute_query_embeddings("a blue circle")
    (tmp_path / "own.safetensors").write_bytes(b"anything")
    monkeypatch.chdir(tmp_path)
    assert stored(pretrained="own.safetensors").pretrained == "own.safetensors"
    with pytest.raises(errors.ModelNotFoundError, match=r"the weights file 'own\.safetensors' does not exist"):
        stored(pretrained="own.safetensors").compute_query_embeddings("x")
    assert stored(name="hf-hub:me/clip").name == "hf-hub:me/clip"


class Payload:
    """What runs code as it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_pickles_that_hold_more_than_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    """Code in a checkpoint does not run; nor does a TorchScript archive's; the hint explains how to save it anew."""
    import torch

    ran = tmp_path / "ran"
    checkpoint = folder / "open_clip_pytorch_model.bin"
    torch.save({"state_dict": {"visual.proj": Payload(ran)}}, checkpoint)
    for save in (
        lambda: None,
        lambda: checkpoint.write_bytes(pickle.dumps({"visual.proj": Payload(ran)}, protocol=2)),
        lambda: torch.save(torch.nn.Linear(2, 2), checkpoint),
    ):
        save()
        with pytest.raises(
            errors.ConfigError, match="contain objects other than tensors, which could run code"
        ) as caught:
            create(name=f"local-dir:{folder}").compute_query_embeddings("x")
        assert "safetensors.torch.save_file" in str(caught.value)
    assert not ran.exists()


def test_checkpoints_of_numbers_are_loaded(tiny_clip: Path, folder: Path, weights: dict[str, Any]) -> None:
    """safetensors, a state dict pickled by torch, and a training checkpoint that holds one, give the same vectors."""
    import torch
    from safetensors.torch import save_file

    picture = pictures(1, seed=5)[1][0]
    expected = create(name=f"local-dir:{tiny_clip}").compute_query_embeddings(picture)
    for name, save in {
        "open_clip_pytorch_model.bin": lambda path: torch.save(weights, path),
        "epoch_9.pth": lambda path: torch.save(
            {"epoch": 9, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path
        ),
        "model.safetensors": lambda path: save_file(weights, path),
    }.items():
        for old in [*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.safetensors")]:
            old.unlink()
        save(folder / name)
        made = create(name=f"local-dir:{folder}").compute_query_embeddings(picture)
        np.testing.assert_allclose(made, expected, atol=1e-6)
        embedreg.release()


def test_a_changed_checkpoint_is_loaded_anew(tiny_clip: Path, folder: Path, weights: dict[str, Any]) -> None:
    """A model that was trained on since is another one, for another instance of the same name."""
    from safetensors.torch import save_file

    shutil.copy(tiny_clip / "open_clip_model.safetensors", folder)
    first = create(name=f"local-dir:{folder}").compute_query_embeddings("a red circle")
    trained = {key: value + 0.01 if key == "text_projection" else value for key, value in weights.items()}
    save_file(trained, folder / "open_clip_model.safetensors")
    os.utime(folder / "open_clip_model.safetensors", ns=(10**18, 2 * 10**18))
    second = create(name=f"local-dir:{folder}").compute_query_embeddings("a red circle")
    assert not np.allclose(first, second)


def test_weights_that_do_not_fit_say_so(tiny_clip: Path, folder: Path) -> None:
    """Another model's weights, and an invalid file, are distinguished."""
    weights = tiny_clip / "open_clip_model.safetensors"
    with pytest.raises(errors.ConfigError, match="do not fit the model 'ViT-B-32'"):
        create(pretrained=str(weights)).compute_query_embeddings("x")
    (folder / "open_clip_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(errors.CallError, match="cannot be loaded"):
        create(name=f"local-dir:{folder}").compute_query_embeddings("x")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(errors.ModelNotFoundError, match="contains no weights"):
        create(name=f"local-dir:{folder}").compute_query_embeddings("x")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("text_cfg", {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"trust_remote_code": True}}),
        ("text_cfg", {"hf_tokenizer_name": "/etc"}),
        ("text_cfg", {"hf_model_name": "../models/other"}),
        ("vision_cfg", {"timm_model_name": "local-dir:/etc"}),
    ],
)
def test_a_configuration_names_no_code_and_no_other_files(
    tiny_clip: Path, part: str, change: Any, tmp_path: Path
) -> None:
    """What open_clip would hand on to other libraries must be plain names and plain options."""
    made = Path(shutil.copytree(tiny_clip, tmp_path / "model"))
    config = json.loads((made / "open_clip_config.json").read_text())
    config["model_cfg"][part] |= change
    (made / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(errors.UntrustedError, match="has settings that are not allowed"):
        create(name=f"local-dir:{made}").compute_query_embeddings("x")
    (made / "open_clip_config.json").write_text(json.dumps({"model_cfg": 3}))
    with pytest.raises(errors.ConfigError, match="is not a valid model file"):
        create(name=f"local-dir:{made}").ndims()


def test_stored_metadata_loads_no_pickle(folder: Path, tmp_path: Path) -> None:
    """A checkpoint of numbers that the path of a declaration names, though granted: safetensors only."""
    import torch

    checkpoint = folder / "open_clip_pytorch_model.bin"
    torch.save({}, checkpoint)
    with embedreg.trust(paths=[tmp_path]):
        for model in ({"name": f"local-dir:{folder}"}, {"pretrained": str(checkpoint)}):
            with pytest.raises(errors.UntrustedError, match="are pickles, which can run code when loaded"):
                stored(reset=False, **model).compute_query_embeddings("x")
    assert create(pretrained=str(checkpoint)).model_identity() is not None


def test_an_old_torch_unpickles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.6 a crafted checkpoint got past weights_only=True; safetensors load with any."""
    import torch

    torch.save({}, folder / "open_clip_pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(errors.ConfigError, match=r"torch 2\.5\.1 cannot load 'open_clip_pytorch_model\.bin' safely"):
        create(name=f"local-dir:{folder}").compute_query_embeddings("x")


def test_a_tag_brings_its_preprocessing(tiny_clip: Path, tmp_path: Path, run_python: Callable[..., str]) -> None:
    """Weights by a tag get the pixels that they were trained on, and a word where the model computes otherwise."""
    code = """
import logging, sys, warnings
from pathlib import Path
import open_clip, torch
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from huggingface_hub import constants
from embedreg.runtime.image import clip, clip_files
torch.manual_seed(0)
name, tag = "RN50", "yfcc15m"
known = open_clip.get_pretrained_cfg(name, tag)
known.update(mean=(0.1, 0.2, 0.3), interpolation="bilinear", resize_mode="squash")
storage = Path(constants.HF_HUB_CACHE) / ("models--" + known["hf_hub"].strip("/").replace("/", "--"))
(storage / "refs").mkdir(parents=True)
(storage / "refs" / "main").write_text("0" * 40)
snapshot = storage / "snapshots" / ("0" * 40)
snapshot.mkdir(parents=True)
torch.save(open_clip.create_model(name).state_dict(), snapshot / "open_clip_pytorch_model.bin")
warnings.simplefilter("ignore")  # open_clip's own word of the same
theirs = open_clip.create_model_and_transforms(name, pretrained=tag)[2]
files = clip_files.resolve(name, tag, allow_local=False, safe_only=True)
ours = clip.load(name, files, "cpu", "float32").preprocess
print(files.origin, str(ours.transform) == str(theirs), ours.mean, "squash" if len(ours.stages) == 2 else ours.stages)
"""
    told = run_python(code, env={"HF_HUB_CACHE": str(tmp_path / "cache")})
    assert told.splitlines()[-1] == "hub-cache True (0.1, 0.2, 0.3) squash"
    assert "name='RN50-quickgelu' is the matching model" in told

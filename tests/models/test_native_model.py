"""A weights folder on the native engine: the reference's numbers, without PyTorch, and what damaged folders get."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("orthokernels._native")

from safetensors.torch import load_file, save_file  # noqa: E402

from orthokernels.errors import InputError  # noqa: E402
from orthokernels.models.native.load import load_native  # noqa: E402
from orthokernels.models.native.model import NativeModel  # noqa: E402
from orthokernels.models.native.noising import alpha_bar, noised  # noqa: E402
from orthokernels.models.noise import feature_noise  # noqa: E402
from orthokernels.models.orthodiffusion import GaussianDiffusion, SelfAttentionPool, UNet  # noqa: E402
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead  # noqa: E402
from orthokernels.models.orthodiffusion.study_model import load_torch  # noqa: E402
from orthokernels.models.orthodiffusion.weights import (  # noqa: E402
    digest_of,
    load_weights,
    save_encoder,
    save_module,
)
from orthokernels.models.study_model import StudyModel  # noqa: E402
from orthokernels.models.weights_folder import Settings, demo_folder  # noqa: E402

# Winograd's error of 2e-6 a layer through some thirty layers of network and head, independent of each other; a
# pooling's histograms move by whole voxels where two classes are alike to six digits.
CLOSE = 1e-4
UNET = {"base_channels": 16, "channel_mults": (1, 2), "groups": 8}
SIZE = 32


def slab(size: int) -> np.ndarray:
    """Smooth structure with noise, in [-1, 1]."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(0, 6, side) for side in (16, size, size)), indexing="ij")
    volume = np.sin(axes[0]) + np.cos(axes[1]) * np.sin(axes[2]) + 0.1 * rng.standard_normal((16, size, size))
    return (volume / np.abs(volume).max()).astype(np.float32)


def relative(found, expected) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("joint", ["knee", "ankle", "shoulder"])
def test_the_demo_weights_give_the_reference_s_numbers(joint):
    native: StudyModel = load_native(demo_folder(), joint, ("sagittal", "coronal"), threads=2)
    reference = load_torch(load_weights("demo", joint, ("sagittal", "coronal")), "cpu")
    for told in ("name", "digest", "trained", "notice", "joint", "size", "fusion_name", "thresholds", "form", "bundle"):
        assert getattr(native, told) == getattr(reference, told), told
    assert native.engine == "native"
    assert list(native.planes) == ["sagittal", "coronal"]
    x0, vectors = slab(native.size), []
    for plane in native.planes:
        ours, theirs = native.planes[plane], reference.planes[plane]
        for told in ("timestep", "block", "classes", "scores"):
            assert getattr(ours, told) == getattr(theirs, told), told
        given = {"seed": 3, "draws": 1, "sample": 16}
        maps = ours.features(x0, **given)
        found, expected = ours.heads(maps, x0), theirs.heads(theirs.features(x0, **given), x0)
        assert (found.logits is None) == (expected.logits is None)
        if found.logits is not None:
            assert relative(found.logits, expected.logits) < CLOSE
        # Of the reference's logits: a voxel whose two largest are as good as equal counts for either structure.
        of_ours, vector = (
            ours.pooling.vector(maps.diagnosis[ours.block], own.logits, x0, threads=2) for own in (found, expected)
        )
        assert np.array_equal(found.vector, of_ours)
        assert relative(vector, expected.vector) < CLOSE
        vectors.append(theirs.series_vector([expected.vector, expected.vector * 0.5]))
        assert relative(ours.series_vector([vector, vector * 0.5]), vectors[-1]) < CLOSE
        assert relative(ours.score(vectors[-1]), theirs.score(vectors[-1])) < CLOSE
    planes = np.stack([*vectors, vectors[0]])
    (logits, shares), (expected_logits, _) = native.fuse(planes), reference.fuse(planes)
    assert shares is None
    assert relative(logits, expected_logits) < CLOSE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small network with a head that shares its pass, and an encoder of its own for the knee."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights")
    unet = UNet(**UNET).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_module(unet, path / "axial.safetensors", "unet", arguments=UNET)
    head = {"widths": (16, 32, 32), "classes": 3, "input_skip": True}
    save_module(
        MultiscaleSegmentationHead(**head), path / "axial.segmentation.safetensors", "multiscale_segmentation_head",
        arguments=head, half=True, joint="knee",
    )  # fmt: skip
    pooling = {"channels": 32, "heads": 4}
    save_module(SelfAttentionPool(**pooling), path / "axial.knee.pooling.safetensors", "selfattn", arguments=pooling)
    tuned = UNet(**UNET)
    tuned.load_state_dict({name: value * 1.5 for name, value in unet.state_dict().items()})
    save_encoder(tuned, path / "axial.knee.encoder.safetensors", plane="axial", joint="knee", trained=False)
    settings = Settings(name="small", size=SIZE, timestep={"axial": 50}, thresholds={"knee": {"ACL": 0.25}})
    (path / "weights.json").write_text(settings.model_dump_json())
    return path


def test_a_fine_tuned_encoder_has_a_pass_of_its_own_and_draws_are_averaged(folder):
    native = load_native(folder, "knee").planes["axial"]
    reference = load_torch(load_weights(str(folder), "knee"), "cpu").planes["axial"]
    x0 = slab(SIZE)
    given = {"seed": 1, "draws": 3, "sample": 5}
    found, expected = (own.heads(own.features(x0, **given), x0) for own in (native, reference))
    assert relative(found.logits, expected.logits) < CLOSE
    assert relative(found.vector, expected.vector) < CLOSE
    assert native.segmenting.network is not native.diagnosing.network
    assert not native.scores
    with pytest.raises(ValueError, match="draws must be at least 1, not 0"):
        native.features(x0, seed=1, draws=0, sample=0)


def test_another_joint_s_heads_are_left_out(folder):
    native, reference = load_native(folder, "ankle"), load_torch(load_weights(str(folder), "ankle"), "cpu")
    assert native.digest == reference.digest
    assert native.trained
    assert (native.thresholds, native.fusion_name) == ({}, None)
    plane, x0 = native.planes["axial"], slab(SIZE)
    assert (plane.classes, plane.pooling) == (None, None)
    found = plane.features(x0, seed=0, draws=1, sample=0)
    expected = reference.planes["axial"].features(x0, seed=0, draws=1, sample=0)
    assert relative(found.diagnosis["mid_2"], expected.diagnosis["mid_2"][0].numpy()) < CLOSE
    assert not load_native(folder, "knee").trained  # the encoder's card says so


def everything(model: NativeModel) -> bytes:
    x0, made = slab(SIZE), []
    plane = model.planes["axial"]
    output = plane.heads(plane.features(x0, seed=0, draws=2, sample=0), x0)
    made += [output.logits, output.vector]
    return b"".join(own.tobytes() for own in made)


def test_any_number_of_threads_and_any_run_gives_the_same_bytes(folder):
    models = [load_native(folder, "knee", threads=threads) for threads in (1, 2, 3)]
    assert len({everything(model) for model in (*models, models[0])}) == 1


def test_what_is_let_go_is_made_anew(folder):
    model = load_native(folder, "knee", threads=1)
    before = everything(model)
    memory = model.planes["axial"].engine.memory
    model.planes["axial"].release()
    assert memory.bytes > 0, "the next plane works in it"
    assert everything(model) == before
    model.release()
    assert memory.bytes == 0
    assert everything(model) == before


def test_a_study_model_needs_no_pytorch_in_the_process(folder, tmp_path):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from orthokernels.models.native.load import load_native\n"
        f"model = load_native(Path({str(folder)!r}), 'knee', threads=1)\n"
        "x0 = np.load('x0.npy')\n"
        "plane = model.planes['axial']\n"
        "output = plane.heads(plane.features(x0, seed=0, draws=2, sample=0), x0)\n"
        "Path('made').write_bytes(output.logits.tobytes() + output.vector.tobytes())\n"
        "print(model.digest)\n"
    )
    np.save(tmp_path / "x0.npy", slab(SIZE))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == load_weights(str(folder), "knee").digest()
    assert (tmp_path / "made").read_bytes() == everything(load_native(folder, "knee"))


def test_the_schedule_and_its_noise_are_the_reference_s():
    diffusion = GaussianDiffusion()
    # A thousand products of numbers that cosines make: both libraries' differ in the last place.
    np.testing.assert_allclose(alpha_bar(), diffusion.alpha_bar.numpy(), rtol=1e-11, atol=0)
    x0 = slab(SIZE)[None]
    noise = torch.from_numpy(feature_noise(x0.shape, seed=2, draw=1, sample=3))
    expected = diffusion.add_noise(torch.from_numpy(x0)[None], torch.tensor([500]), noise[None])[0].numpy()
    np.testing.assert_allclose(noised(x0, 500, seed=2, draw=1, sample=3), expected, rtol=0, atol=1e-6)


def test_bfloat16_is_widened(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "axial.safetensors"
    state = {name: value.bfloat16() for name, value in load_file(path).items()}
    save_file(state, path)
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, "digest": digest_of(state)}))
    assert load_native(tmp_path, "ankle").digest == load_weights(str(tmp_path), "ankle").digest()


def altered(path, **changes) -> None:
    card = path.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


def test_a_folder_that_is_damaged_is_refused_with_the_reason(folder, tmp_path):
    def refused(message, change, joint="knee"):
        own = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, own)
        change(own)
        with pytest.raises(InputError, match=message) as caught:
            load_native(own, joint)
        assert str(own) in str(caught.value)

    unet, head = "axial.safetensors", "axial.segmentation.safetensors"
    pooling, encoder = "axial.knee.pooling.safetensors", "axial.knee.encoder.safetensors"
    refused("holds no denoiser", lambda own: (own / unet).unlink())
    refused("no valid card", lambda own: (own / unet).with_suffix(".json").unlink())
    refused("not a readable safetensors file", lambda own: (own / unet).write_bytes(b"nothing"))
    refused("does not match the digest", lambda own: altered(own / unet, digest="0" * 64))
    refused("describes a module 'selfattn', not unet", lambda own: altered(own / unet, module="selfattn"))
    refused("not unet_encoder", lambda own: altered(own / encoder, module="unet"))
    refused(r"holds no denoiser \(axial\.safetensors\)", lambda own: altered(own / unet, joint="ankle"))
    refused("no argument 'width'", lambda own: altered(own / unet, arguments={**UNET, "width": 3}))
    refused("does not fit its card", lambda own: altered(own / unet, arguments={**UNET, "groups": 7}))
    refused("does not fit its card", lambda own: altered(own / unet, arguments={**UNET, "groups": "many"}))
    refused("does not fit its card", lambda own: altered(own / unet, arguments={**UNET, "patch": [1, 2]}))
    refused("reads 1 levels, the network has 2", lambda own: one_level(own / head))
    refused("not the encoder of the denoiser", swapped)
    refused(
        "5 heads do not divide 32 channels", lambda own: altered(own / pooling, arguments={"channels": 32, "heads": 5})
    )
    refused(
        r"axial\.segmentation\.safetensors: was trained on another denoiser",
        lambda own: altered(own / head, origin={"denoiser": "0" * 64}),
    )
    refused(
        r"axial\.knee\.pooling\.safetensors: was trained on another segmentation",
        lambda own: altered(own / pooling, origin={"segmentation": "0" * 64}),
    )
    refused("mid_9", lambda own: (own / "weights.json").write_text('{"size": 32, "block": {"axial": "mid_9"}}'))
    refused(
        r"weights\.json: not a valid settings file \(timestep\.axial = 1000: input should be less than 1000\)",
        lambda own: (own / "weights.json").write_text('{"size": 32, "timestep": {"axial": 1000}}'),
    )


def one_level(path) -> None:
    arguments = {"widths": (16, 32), "classes": 3}
    save_module(MultiscaleSegmentationHead(**arguments), path, "multiscale_segmentation_head", arguments=arguments)


def swapped(folder) -> None:
    """A pooling's tensors with the card of an encoder."""
    shutil.copy(folder / "axial.knee.pooling.safetensors", folder / "axial.knee.encoder.safetensors")
    card = json.loads((folder / "axial.knee.pooling.json").read_text())
    altered(folder / "axial.knee.encoder.safetensors", digest=card["digest"], shapes=card["shapes"])

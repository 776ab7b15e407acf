"""PFNet on whole scenes: tiles of one size, whatever the scene's."""

import numpy as np
import pytest

from model_utils import checkpoint
from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.scenes.config import SceneConfig
from model_utils.scenes.generating import generate_scene
from research.pfsegnets import PFSegNets
from research.pfsegnets.src.task import PFNetTask
from tests.model_utils.scene_cases import read


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights, and as few points as small tiles have."""
    task, path = PFNetTask(), tmp_path_factory.mktemp("pfnet") / "net.ckpt"
    config = task.config_class()
    config.max_pool_size, config.avg_pool_size, config.edge_points = 2, 2, 8
    network = task.build_network(config, Ranks())
    info = {"settings": task.settings(config)}
    checkpoint.save(path, checkpoint.weights_of(network), network=task.name, info=info)
    return PFSegNets.from_checkpoint(path, "mindspore", config)


def test_tiles_are_segmented_as_images_of_their_size(model, tmp_path, monkeypatch):
    """Flat: away from seams, each pixel is what its tile alone gives."""
    source = generate_scene(tmp_path / "scene.tif", 150, 200)
    sizes, outputs = set(), model.outputs

    def watch(form, images):
        sizes.add(images.shape[2:])
        return outputs(form, images)

    monkeypatch.setattr(model, "outputs", watch)
    keys = SceneConfig(tile=128, halo=16, blend="flat")
    report = model.predict_scene(source, tmp_path / "out.tif", keys, show=False)
    assert report.tiles == 4 and sizes == {(128, 128)}
    pixels, found = np.moveaxis(read(source), 0, 2), read(tmp_path / "out.tif", 1)
    first = model.predict(pixels[:128, :128])
    np.testing.assert_array_equal(found[:64, :96], first[:64, :96])
    # The last tile begins at a multiple of 32 and is filled up by reflection.
    last = model.predict(pixels[32:, 96:])
    np.testing.assert_array_equal(found[90:, 120:], last[90 - 32 :, 120 - 96 :])


def test_other_settings_are_not_taken_for_the_same_network(model, tmp_path, caplog):
    """The parameters are the same, so that only the configuration tells both apart."""
    source, target = generate_scene(tmp_path / "scene.tif", 150, 200), tmp_path / "out.tif"
    keys = SceneConfig(tile=128, halo=16, blend="flat", most_tiles=2)
    assert model.predict_scene(source, target, keys, show=False).done == 2
    config = PFNetTask().config_class()
    config.max_pool_size, config.avg_pool_size, config.edge_points = 2, 2, 9
    other = PFSegNets.from_checkpoint(model.source, "mindspore", config)
    assert "edge_points=8, not 9" in caplog.text and "avg_pool_size" not in caplog.text
    with pytest.raises(UserError, match="tiles of a run with another network"):
        other.predict_scene(source, target, keys, show=False)


def test_one_bad_scene_does_not_cost_the_others(model, tmp_path, monkeypatch, caplog):
    source = generate_scene(tmp_path / "in" / "b good.tif", 60, 70)
    (tmp_path / "in" / "a ü.tif").write_bytes(source.read_bytes()[:100])
    monkeypatch.setattr(PFSegNets, "from_checkpoint", classmethod(lambda cls, *_: model))
    config = PFNetTask().config_class()
    config.infer.scene = SceneConfig(source=str(tmp_path / "in"), tile=128, halo=16, blend="flat")
    config.infer.flip = True
    with pytest.raises(UserError, match=r"1 of 2 scenes have no result.* .*a ü\.tif; replace"):
        PFSegNets.run_scenes(config, tmp_path / "out")
    assert "a ü.tif is corrupt, cut off" in caplog.text
    assert "infer.flip and infer.resize have no effect" in caplog.text
    assert read(tmp_path / "out" / "b good_classes.tif", 1).shape == (60, 70)
    assert "b good.tif" in (tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")
    config.infer.scene.source = str(tmp_path / "in" / "a ü.tif")
    with pytest.raises(UserError, match="is corrupt, cut off"):
        PFSegNets.run_scenes(config, tmp_path / "out")


def test_sizes_that_the_network_does_not_take(model, tmp_path):
    source = generate_scene(tmp_path / "scene.tif", 150, 200)
    with pytest.raises(UserError, match="tiles of 100 pixels do not fit .* multiples of 32"):
        model.predict_scene(source, tmp_path / "out.tif", SceneConfig(tile=100, halo=8))

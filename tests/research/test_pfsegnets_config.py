"""Command lines of the reference's scripts."""

import pytest

from model_utils.entry import load_config
from model_utils.errors import UserError
from research.pfsegnets.src.task import PFNetTask

# What upstream's training scripts pass.
TRAINING = (
    "--dataset {data} --cv 0 --arch network.pointflow.{arch} --class_uniform_tile 1024 "
    "--max_cu_epoch 16 --lr 0.01 --lr_schedule poly --poly_exp 0.8 --repoly 1.5 --rescale 1.0 "
    "--sgd --aux --joint_edge_loss_pfnet --edge_weight 20.0 --seg_weight 2 --ohem "
    "--maxpool_size 12 --avgpool_size 8 --edge_points 64 --match_dim 32 --thicky 5 "
    "--max_epoch 17 --crop_size 640 --bs_mult 3 --wt_bound 1.0 --scale_min 0.5 --scale_max 2.0 "
    "--weight_decay 0.0002 --momentum 0.8 --snapshot some.ckpt --exp name --ckpt logs --tb_path tb"
)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("iSAID", "isaid"),
        ("Posdam", "potsdam"),
        ("Vaihingen", "vaihingen"),
        ("GAOFENIMG", "gaofen_img"),
        ("GAOFENSAR", "gaofen_sar"),
    ],
)
@pytest.mark.parametrize(
    ("arch", "backbone"),
    [
        ("DeepR50_PF_maxavg_deeply", "resnet50"),
        ("DeepR101_PF_maxavg_deeply", "resnet101"),
        ("DeepR2N101_PF_maxavg_deeply", "res2net101"),
    ],
)
def test_the_references_training_flags_are_understood(data, name, arch, backbone):
    config = load_config(PFNetTask(), "train", TRAINING.format(data=data, arch=arch).split())
    assert (config.data.format, config.backbone) == (name, backbone)
    rule = config.optimizer
    assert (rule.name, rule.lr, rule.schedule, rule.power) == ("sgd", 0.01, "poly", 0.8)
    assert (rule.weight_decay, rule.momentum) == (0.0002, 0.8)
    assert (config.loss.edge, config.loss.segmentation, config.loss.ohem) == (20, 2, True)
    assert (config.max_pool_size, config.avg_pool_size) == (12, 8)
    assert (config.edge_points, config.match_dim, config.data.edge_thickness) == (64, 32, 5)
    assert (config.train.epochs, config.train.batch_size, config.data.crop_size) == (17, 3, 640)
    assert (config.data.augment.scale_min, config.data.augment.scale_max) == (0.5, 2)
    assert config.checkpoint_path == "some.ckpt"


# Flags of upstream's train.py that change nothing here.
SWITCHES = (
    "img_wt_loss batch_weighting jointwtborder strict_bdr_cls aux sgd amsgrad freeze_trunk hardnm "
    "scf ignore_background restore_optimizer evaluateF dump_augmentation_images test_mode "
    "draw_train apex fp16 syncbn gblur"
).split()
VALUES = (
    "cv rlx_off_epoch wt_bound max_cu_epoch rescale repoly trunk maxSkip start_epoch exp tb_tag "
    "ckpt tb_path print_freq local_rank"
).split()


def test_flags_without_effect_say_why(capsys):
    plain = load_config(PFNetTask(), "train", [])
    line = [f"--{name}" for name in SWITCHES] + [f"--{name}=1" for name in VALUES]
    assert load_config(PFNetTask(), "train", line) == plain
    notes = capsys.readouterr().out.splitlines()
    for name in (*SWITCHES, *VALUES):
        assert any(f"'{name}' has no effect here (" in note for note in notes), name


def test_flags_that_upstream_declares_and_never_reads_work_here():
    line = "--adam --dice_loss --bblur --with_aug --fix_bn".split()
    config = load_config(PFNetTask(), "train", line)
    assert config.optimizer.name == "adam" and config.loss.edge_loss == "dice"
    assert config.data.augment.blur == "bilateral" and config.data.resize == "crop"
    assert config.freeze_batch_norm


def test_the_references_evaluation_flags_are_understood():
    line = (
        "--dataset iSAID --arch network.x.DeepR50_PF_maxavg_deeply --inference_mode sliding "
        "--single_scale --scales 1.0 --split val --cv_split 0 --resize_scale 896 --mode fine "
        "--no_flip --crop_size 800 --dump_images --with_f1 --beta 1 --dataset_dir data "
        "--num_workers 3 --batch_size 2"
    )
    config = load_config(PFNetTask(), "eval", line.split())
    keys = config.evaluate
    assert (keys.inference, keys.window, keys.resize, keys.batch_size) == ("sliding", 800, 896, 2)
    assert keys.split == "val"
    assert (config.data.root, config.data.workers, config.data.crop_size) == ("data", 3, 896)


def test_an_unknown_builder_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="network.deepv3.DeepWV3Plus is not one of resnet50, "):
        load_config(PFNetTask(), "train", ["--arch=network.deepv3.DeepWV3Plus"])

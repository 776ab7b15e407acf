"""ModelArts inputs and outputs, with real processes racing for one folder.

The storage here is a folder: ``store://name/...`` is served from $STORE by a backend registered
through the adapter's documented interface. It copies slowly, notes who copied what, and fails on
request, as a real one does.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from model_utils import device_adapter, moxing_adapter
from model_utils.errors import UserError
from model_utils.moxing_adapter import modelarts_job, moxing_wrapper, register_backend, sync_data
from model_utils.task import Config

ROOT = Path(__file__).resolve().parents[2]
FILES = 20

BACKEND = """
import os, shutil, time
from pathlib import Path

class FolderStore:
    def place(self, url):
        return Path(os.environ["STORE"]) / url.split("://", 1)[1]

    def note(self, what, address):
        with open(Path(os.environ["STORE"]) / "journal", "a") as stream:
            stream.write(f"{what} {address} {os.getpid()}\\n")

    def download(self, url, target):
        self.note("download", url)
        source = self.place(url)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            return
        for file in sorted(source.rglob("*")):
            if file.is_file():
                time.sleep(float(os.environ.get("SLOW", "0")))
                to = target / file.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to)
        self.note("downloaded", url)

    def upload(self, source, url):
        self.note("upload", url)
        if os.environ.get("FULL"):
            raise OSError("the bucket is full")
        shutil.copytree(source, self.place(url), dirs_exist_ok=True)
"""
namespace = {}
exec(BACKEND, namespace)

RANK = (
    BACKEND
    + """
import sys, time
from model_utils.moxing_adapter import register_backend, sync_data

register_backend("store", FolderStore)
start = time.monotonic()
where = sync_data("store://bucket/data", sys.argv[1])
print(where, len(list(Path(where).glob("*.npz"))))
"""
)


@pytest.fixture
def store(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    (folder / "bucket" / "data").mkdir(parents=True)
    for number in range(FILES):
        (folder / "bucket" / "data" / f"{number}.npz").write_bytes(bytes([number]) * 1000)
    monkeypatch.setenv("STORE", str(folder))
    monkeypatch.setattr(moxing_adapter, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("RANK_ID", raising=False)
    register_backend("store", namespace["FolderStore"])
    yield folder
    moxing_adapter._factories.pop("store")


def journal(store, what):
    lines = (store / "journal").read_text().splitlines() if (store / "journal").exists() else []
    return [line.split()[1:] for line in lines if line.split()[0] == what]


def start_ranks(store, target, count, slow):
    script = store / "rank.py"
    script.write_text(RANK)
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(target)],
            env=os.environ | {"STORE": str(store), "SLOW": str(slow), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]


def complete(target):
    return all(
        (target / f"{number}.npz").read_bytes() == bytes([number]) * 1000 for number in range(FILES)
    )


def test_of_racing_processes_one_copies_and_all_see_everything(store, tmp_path):
    target = tmp_path / "cache" / "data"
    ranks = start_ranks(store, target, 4, slow=0.05)
    for rank in ranks:
        out, err = rank.communicate(timeout=60)
        assert rank.returncode == 0, err
        assert out.split() == [str(target), str(FILES)], "returned before the copy was complete"
    assert len(journal(store, "download")) == 1
    assert complete(target)


def test_a_killed_copier_is_noticed_and_replaced(store, tmp_path):
    target = tmp_path / "cache" / "data"
    ranks = start_ranks(store, target, 3, slow=0.1)
    while len(list(target.glob("*.npz"))) < 5:
        time.sleep(0.02)
    (_, copier) = journal(store, "download")[0]
    assert not list(target.glob("*.done")), "half a copy must not be declared complete"
    os.kill(int(copier), signal.SIGKILL)
    killed = time.monotonic()
    for rank in ranks:
        out, err = rank.communicate(timeout=60)
        if rank.pid == int(copier):
            assert rank.returncode == -9
        else:
            assert rank.returncode == 0, err
            assert out.split()[1] == str(FILES)
    assert time.monotonic() - killed < FILES * 0.1 + 10, "the others waited for a dead process"
    assert len(journal(store, "download")) == 2 and len(journal(store, "downloaded")) == 1
    assert complete(target)


def test_a_second_job_does_not_copy_again_but_another_address_does(store, tmp_path):
    target = tmp_path / "data"
    for _ in range(2):
        assert sync_data("store://bucket/data", target) == str(target)
    assert len(journal(store, "download")) == 1
    (store / "bucket" / "more").mkdir()
    (store / "bucket" / "more" / "new.npz").write_text("x")
    sync_data("store://bucket/more", target)
    assert (target / "new.npz").exists()


def test_a_failed_copy_is_tried_again_by_the_next_call(store, tmp_path, monkeypatch):
    target = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setenv("SLOW", "not a number")
        with pytest.raises(ValueError):
            sync_data("store://bucket/data", target)
    sync_data("store://bucket/data", target)
    assert complete(target)


def test_waiting_for_a_hanging_copier_has_a_limit(store, tmp_path):
    target = tmp_path / "data"
    (rank,) = start_ranks(store, target, 1, slow=30)
    try:
        while not journal(store, "download"):
            time.sleep(0.02)
        with pytest.raises(UserError, match=f"process {rank.pid} has been copying into"):
            sync_data("store://bucket/data", target, wait_limit_s=0.5)
    finally:
        rank.kill()
        rank.communicate()


def test_local_addresses_are_used_where_they_are(tmp_path):
    assert sync_data(tmp_path, tmp_path / "cache") == str(tmp_path)
    assert sync_data(f"file://{tmp_path}", tmp_path / "cache") == str(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_obs_without_a_library_says_what_to_install(tmp_path):
    for name in ("moxing", "obs"):
        if name in sys.modules:
            pytest.skip(f"{name} is installed")
    with pytest.raises(UserError, match="pip install esdk-obs-python"):
        sync_data("obs://bucket/data", tmp_path / "data")
    with pytest.raises(UserError, match="no storage for ftp://"):
        sync_data("ftp://host/data", tmp_path / "data")


def test_the_unrelated_moxing_of_pypi_is_not_mistaken_for_the_real_one(tmp_path, monkeypatch):
    (tmp_path / "moxing.py").write_text("def llama(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moxing", raising=False)
    with pytest.raises(UserError, match="something else"):
        sync_data("obs://bucket/data", tmp_path / "data")
    sys.modules.pop("moxing", None)


def config(**values):
    names = ("data_url", "train_url", "checkpoint_url", "data_path", "load_path", "output_path")
    return SimpleNamespace(**{"enable_modelarts": True} | dict.fromkeys(names, "") | values)


def test_a_job_gets_its_inputs_and_uploads_its_results(store, tmp_path):
    (store / "bucket" / "old.ckpt").write_text("weights")
    settings = config(
        data_url="store://bucket/data",
        checkpoint_url="store://bucket/old.ckpt",
        train_url="store://bucket/out",
        output_path="./outputs",
    )
    with modelarts_job(settings) as job:
        assert job is settings
        assert complete(Path(job.data_path))
        assert Path(job.load_path).read_text() == "weights"
        assert Path(job.output_path).is_absolute(), "each rank has its own working directory"
        (Path(job.output_path) / "ckpt").mkdir()
        (Path(job.output_path) / "ckpt" / "a.ckpt").write_text("new weights")
    assert (store / "bucket" / "out" / "ckpt" / "a.ckpt").read_text() == "new weights"


def test_results_of_a_crashed_job_are_uploaded(store, tmp_path):
    settings = config(train_url="store://bucket/out", output_path=str(tmp_path / "out"))
    with pytest.raises(ZeroDivisionError), modelarts_job(settings):
        (tmp_path / "out" / "last.ckpt").write_text("saved")
        raise ZeroDivisionError
    assert (store / "bucket" / "out" / "last.ckpt").read_text() == "saved"


def test_results_are_uploaded_while_the_job_runs(store, tmp_path):
    settings = config(train_url="store://bucket/out", output_path=str(tmp_path / "out"))
    with modelarts_job(settings, upload_every_s=0.1):
        (tmp_path / "out" / "first.ckpt").write_text("saved")
        end = time.monotonic() + 10
        while not (store / "bucket" / "out" / "first.ckpt").exists():
            assert time.monotonic() < end
            time.sleep(0.05)


def test_only_rank_0_uploads(store, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK_ID", "1")
    settings = config(train_url="store://bucket/out", output_path=str(tmp_path / "out"))
    with modelarts_job(settings, upload_every_s=0.05):
        time.sleep(0.3)
    assert not journal(store, "upload")


def test_a_failed_upload_is_an_error_but_never_hides_the_jobs_own(store, tmp_path, monkeypatch):
    monkeypatch.setenv("FULL", "1")
    settings = config(train_url="store://bucket/out", output_path=str(tmp_path / "out"))
    with pytest.raises(OSError, match="bucket is full"), modelarts_job(settings):
        pass
    with pytest.raises(ZeroDivisionError), modelarts_job(settings):
        raise ZeroDivisionError


def test_new_jobs_with_mounted_folders_copy_nothing(store, tmp_path):
    settings = config(data_url=str(tmp_path), train_url=f"file://{tmp_path}/out")
    with modelarts_job(settings):
        assert settings.data_path == str(tmp_path)
        assert settings.output_path == f"{tmp_path}/out"
    assert not (store / "journal").exists()


def test_off_means_untouched(store):
    settings = config(enable_modelarts=False, data_url="store://bucket/data", data_path="here")
    with modelarts_job(settings):
        assert settings.data_path == "here"
    assert not (store / "journal").exists()


def test_sdnets_spelling_and_a_remote_checkpoint_path(store):
    (store / "bucket" / "old.ckpt").write_text("weights")
    settings = SimpleNamespace(modelArts_mode=True, checkpoint_path="store://bucket/old.ckpt")
    with modelarts_job(settings):
        assert Path(settings.checkpoint_path).read_text() == "weights"
    assert not hasattr(settings, "load_path")


def test_keys_inside_groups(store):
    settings = config(data_url="store://bucket/data", input=SimpleNamespace(folder=""))
    with modelarts_job(settings, names={"data_path": "input.folder"}):
        assert complete(Path(settings.input.folder))
    assert settings.data_path == ""


def test_the_networks_own_configuration_is_understood(store, tmp_path):
    settings = Config(enable_modelarts=True, data_url="store://bucket/data")
    settings.output_path = "outputs/train"
    settings.train_url = "store://bucket/out"
    settings.checkpoint_url = "store://bucket/old.ckpt"
    (store / "bucket" / "old.ckpt").write_text("weights")
    with modelarts_job(settings):
        assert complete(Path(settings.data.root))
        assert Path(settings.checkpoint_path).read_text() == "weights"
        assert settings.output_path == str(tmp_path / "cache" / "train")


def test_an_input_nobody_would_read_is_refused(store):
    settings = SimpleNamespace(enable_modelarts=True, data_url="store://bucket/data")
    with pytest.raises(UserError, match="no data_path to set"), modelarts_job(settings):
        pass


def test_wrapper_passes_results_and_arguments_through(store, tmp_path):
    order = []
    settings = config(train_url="store://bucket/out", output_path=str(tmp_path / "out"))

    @moxing_wrapper(
        pre_process=lambda name: order.append(f"pre {name}"),
        post_process=lambda: order.append("post"),
        pre_args=("data.zip",),
    )
    def train(job, factor, *, offset):
        """The run."""
        order.append("run")
        (tmp_path / "out" / "x").write_text("1")
        return job, 2 * factor + offset

    assert train(settings, 3, offset=1) == (settings, 7)
    assert order == ["pre data.zip", "run", "post"]
    assert train.__name__ == "train" and (store / "bucket" / "out" / "x").exists()


NAMES = ("DEVICE_ID", "ASCEND_DEVICE_ID", "RANK_ID", "RANK_SIZE", "DEVICE_NUM", "JOB_ID")


@pytest.fixture
def bare(monkeypatch):
    for name in (*NAMES, "MA_VJ_NAME", "BATCH_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("OMPI_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_device_functions_without_a_launcher(bare):
    assert device_adapter.get_device_id() == 0
    assert device_adapter.get_device_num() == 1
    assert device_adapter.get_rank_id() == 0
    assert device_adapter.get_job_id() == "Local Job"


def test_device_functions_under_launchers(bare):
    bare.setenv("OMPI_COMM_WORLD_RANK", "9")
    assert device_adapter.get_rank_id() == 9
    bare.setenv("RANK_ID", "12")
    bare.setenv("RANK_SIZE", "16")
    bare.setenv("ASCEND_DEVICE_ID", "4")
    bare.setenv("JOB_ID", "job-7")
    assert device_adapter.get_rank_id() == 12
    assert device_adapter.get_device_num() == 16
    assert device_adapter.get_local_device_num() == 8
    assert device_adapter.get_device_id() == 4
    assert device_adapter.get_job_id() == moxing_adapter.get_job_id() == "job-7"


@pytest.mark.parametrize(("name", "value"), [("RANK_SIZE", "0"), ("RANK_SIZE", "eight")])
def test_nonsense_in_the_environment_is_named(bare, name, value):
    bare.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}='{value}'"):
        device_adapter.get_device_num()
